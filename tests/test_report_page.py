"""The page's frame: escaping, charts as data, the policy; and the report of runs in any state."""

import base64
import hashlib
import json
import re
import shutil
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import altair as alt
import pytest
from fits import Killed, killer, small_fit
from markupsafe import Markup
from pages import without_scripts

import fieldguide as fg
from fieldguide.errors import ResourceError
from fieldguide.fitting.progress import Watcher
from fieldguide.report import build as report
from fieldguide.report import page
from fieldguide.report.build import Topic, topics
from fieldguide.report.page import Section
from fieldguide.runs import run as runs

HOSTILE = ("<script>alert(1)</script>", "\"'><img src=x onerror=alert(1)>", "</script><!--", "a\nb")


class Outline(HTMLParser):
    """The elements of a page with their attributes, and the text of each script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1][0] == "script":
            self.scripts[-1] += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self.elements.append(("", {}))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def bars(name: str = "a", **properties: Any) -> alt.Chart:
    chart: alt.Chart = (
        alt.Chart(page.inline([{"name": name, "n": 1}])).mark_bar().encode(x="n:Q", y="name:N")
    )
    return chart.properties(**properties)


def spec_of(figure: str) -> dict[str, Any]:
    (script,) = Outline(figure).scripts
    spec: dict[str, Any] = json.loads(script)
    return spec


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_makes_no_element_anywhere(name: str) -> None:
    figure = page.figure(bars(name), caption=name, description=name)
    section = Section("s", name, page.fragment("failed.html", message=name, hint=name))
    plain = Section("s", "x", page.fragment("failed.html", message="x", hint="x"))
    hostile = page.page(name, [section, Section("f", name, figure)], "")
    harmless = page.page(
        "x", [plain, Section("f", "x", page.figure(bars("x"), caption="x", description="x"))], ""
    )
    tags = [[tag for tag, _ in Outline(text).elements] for text in (hostile, harmless)]
    assert tags[0] == tags[1]
    assert spec_of(figure)["datasets"].popitem()[1] == [{"name": name, "n": 1}]


def test_the_description_of_a_chart_is_read_out_and_shown_without_javascript() -> None:
    figure = page.figure(bars(), caption="a caption", description="three bars")
    (plot,) = [each for each in Outline(figure).all("div") if each.get("class") == "plot"]
    assert (plot["role"], plot["aria-label"]) == ("img", "three bars")
    noscript = figure.partition("<noscript>")[2].partition("</noscript>")[0]
    assert "three bars" in noscript


def test_a_single_chart_is_as_wide_as_the_page_unless_it_says_otherwise() -> None:
    def width(chart: alt.TopLevelMixin) -> object:
        return spec_of(page.figure(chart, caption="", description="")).get("width")

    assert width(bars()) == "container"
    assert width(alt.layer(bars(), bars())) == "container"
    assert width(bars(width=200)) == 200
    assert width(alt.hconcat(bars(), bars())) is None


def test_a_step_for_each_name_becomes_their_sum() -> None:
    rows = [{"name": name, "n": n} for name in ("a", "b", "c") for n in (1, 2)]
    chart = alt.Chart(page.inline(rows)).mark_point().encode(x="n:Q", y="name:N")
    stepped = chart.properties(height=alt.Step(18))
    assert spec_of(page.figure(stepped, caption="", description=""))["height"] == 3 * 18
    assert "height" not in spec_of(page.figure(chart, caption="", description=""))


def test_numbers_that_json_lacks_become_null() -> None:
    chart = alt.Chart(page.inline([{"n": float("nan")}, {"n": [float("inf"), 1.5]}])).mark_bar()
    (rows,) = spec_of(page.figure(chart, caption="", description=""))["datasets"].values()
    assert rows == [{"n": None}, {"n": [None, 1.5]}]


def test_the_policy_names_the_hash_of_each_script_as_it_stands_in_the_page() -> None:
    libraries = 'const a = "</script>";\r\nconst b = "é<!--";'
    outline = Outline(page.page("t", [], libraries))
    (policy,) = [each["content"] for each in outline.all("meta") if "http-equiv" in each]
    assert policy is not None
    found = [
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
        for text in outline.scripts
    ]
    assert len(found) == 2
    assert f"script-src {' '.join(found)};" in policy
    assert policy.startswith("default-src 'none';")
    assert "unsafe-eval" not in policy and "http" not in policy


def test_the_page_is_found_one_s_way_in_without_a_mouse() -> None:
    text = page.page("t", [Section("a", "A", Markup("")), Section("b", "B", Markup(""))], "")
    outline = Outline(text)
    assert [tag for tag, _ in outline.elements].count("h1") == 1
    assert [a["href"] for a in outline.all("a")] == ["#content", "#a", "#b"]
    assert [s["id"] for s in outline.all("section")] == ["a", "b"]
    labelled = [s["aria-labelledby"] for s in outline.all("section")]
    assert labelled == [h["id"] for h in outline.all("h2")]
    assert outline.all("main")[0]["id"] == "content"
    assert outline.all("html")[0]["lang"] == "en"
    assert ":focus-visible" in text and "prefers-reduced-motion" in text


def test_percent_keeps_number_and_sign_together() -> None:
    assert page.percent(0.9276) == "92.8\N{NO-BREAK SPACE}%"
    assert page.percent(1.0, 0) == "100\N{NO-BREAK SPACE}%"


def sections_of(path: Path) -> list[str | None]:
    return [each["id"] for each in Outline(path.read_text("utf-8")).all("section")]


EVERY_SECTION = [topic.id for topic in topics()]


@pytest.fixture(scope="module")
def finished(trained: fg.Run, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = report(trained, tmp_path_factory.mktemp("report") / "r.html")
    return path.read_text("utf-8")


def test_every_section_is_there_in_its_order() -> None:
    assert [
        *("verdict", "curves", "merging", "confusion", "classes", "mistakes"),
        *("trust", "collection", "repeat"),
    ] == EVERY_SECTION


def test_the_page_points_to_nothing_outside_of_itself(finished: str) -> None:
    outline = Outline(finished)
    addresses = [
        value or ""
        for tag, attributes in outline.elements
        for name, value in attributes.items()
        if name in {"src", "href", "srcset", "data", "action"} and tag != "a"
    ]
    assert addresses and all(each.startswith("data:") for each in addresses)
    links = [a["href"] or "" for a in outline.all("a")]
    assert all(":" not in each.partition("/")[0] for each in links)


def test_ids_are_unique_and_every_anchor_has_its_place(finished: str) -> None:
    outline = Outline(finished)
    ids = [attributes["id"] for _, attributes in outline.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    wanted = {(a["href"] or "")[1:] for a in outline.all("a") if (a["href"] or "").startswith("#")}
    named = {
        attributes[name]
        for _, attributes in outline.elements
        for name in ("aria-controls", "aria-labelledby", "data-copy", "for")
        if name in attributes
    }
    assert wanted | named <= set(ids)


def test_tables_have_captions_and_headings_with_a_scope(finished: str) -> None:
    tables = re.findall(r"<table.*?</table>", without_scripts(finished), re.DOTALL)
    assert tables
    for table in tables:
        assert "<caption>" in table
        assert all("scope" in heading for heading in Outline(table).all("th"))


def test_the_run_s_own_folder_is_where_the_report_goes(parts: Path, tmp_path: Path) -> None:
    run = small_fit(parts, tmp_path / "run", epochs=1, warmup=0.0)
    counted: list[int] = []
    before = {path.name for path in run.folder.iterdir()}
    assert report(run, heat_maps=False, progress=counted.append) == run.folder / "report.html"
    assert counted == list(range(1, len(EVERY_SECTION) + 1))
    assert {path.name for path in run.folder.iterdir()} == before | {"report.html"}
    assert report(run, heat_maps=False) == run.folder / "report.html"  # again


def states(run: fg.Run, photos: Path, out: Path) -> dict[str, Callable[[], fg.Run]]:
    """A finished run, made poorer in every way that a run may be."""

    def copied(name: str, *lost: str, photos: Path | None = None) -> fg.Run:
        shutil.copytree(run.folder, out / name)
        for each in lost:
            place = out / name / each
            shutil.rmtree(place) if place.is_dir() else place.unlink()
        return fg.Run(out / name, photos=photos)

    results = ("manifest.json", "oof.csv", "summary.json")
    return {
        "no fold": lambda: copied("none", "folds", *results),
        "one fold": lambda: copied("one", "folds/1", "folds/2", *results),
        "two folds": lambda: copied("two", "folds/0", *results),
        "not written up": lambda: copied("late", *results),
        "photos gone": lambda: copied("gone", photos=out / "nowhere"),
    }


@pytest.fixture(scope="module")
def begun(discs: Path, tmp_path_factory: pytest.TempPathFactory) -> fg.Run:
    """A run that was killed in its first epoch; read only."""
    out = tmp_path_factory.mktemp("begun") / "run"
    with pytest.raises(Killed):
        small_fit(discs, out, watcher=Watcher(on_step=killer(1)))
    return fg.Run(out)


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ("verdict", "The accuracy is not known yet: none of 2 folds is done"),
        ("curves", "No epoch of any fold is finished yet"),
        ("merging", "No merge of any fold is finished yet"),
        ("confusion", "No fold is done yet"),
        ("classes", "No fold is trained yet"),
        ("mistakes", "No fold is trained yet"),
        ("trust", "No fold is done yet"),
        ("repeat", "no fold is done yet"),
    ],
)
def test_before_the_first_fold_each_section_says_so(
    begun: fg.Run, section: str, words: str
) -> None:
    (topic,) = [topic for topic in topics() if topic.id == section]
    body = topic.make(begun)
    assert words in " ".join(body.split())
    assert section in ("verdict", "repeat") or ("<figure" not in body and "<table" not in body)


@pytest.mark.parametrize(
    "state", ["no fold", "one fold", "two folds", "not written up", "photos gone"]
)
def test_a_run_in_any_state_has_a_report(
    trained: fg.Run, parts: Path, tmp_path: Path, state: str
) -> None:
    run = states(trained, parts, tmp_path)[state]()
    path = report(run, tmp_path / "r.html")
    assert sections_of(path) == EVERY_SECTION
    text = path.read_text("utf-8")
    assert "This part could not be made" not in text
    assert "Traceback" not in text
    assert not re.search(r"\bnan\b", without_scripts(text))


def test_what_cannot_be_made_says_why_and_leaves_the_rest(trained: fg.Run, tmp_path: Path) -> None:
    shutil.copytree(trained.folder, tmp_path / "run")
    (tmp_path / "run/folds/1/history.csv").write_text("broken <b>")
    path = report(fg.Run(tmp_path / "run"), tmp_path / "r.html", heat_maps=False)
    text = path.read_text("utf-8")
    assert sections_of(path) == EVERY_SECTION
    assert "This part could not be made" in text and "history.csv" in text
    trust = text.partition('<section id="trust"')[2].partition("</section>")[0]
    assert "could not be made" not in trust


def test_a_mistake_of_ours_is_not_hidden(trained: fg.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(run: fg.Run) -> Markup:
        raise ZeroDivisionError

    module = sys.modules["fieldguide.report.build"]
    monkeypatch.setattr(module, "topics", lambda *_: (Topic("a", "A", broken),))
    with pytest.raises(ZeroDivisionError):
        report(trained)


def test_a_place_that_cannot_be_written_to_is_named(trained: fg.Run, tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="nowhere"):
        report(trained, tmp_path / "nowhere" / "r.html", heat_maps=False)


def test_the_report_changes_nothing_in_the_run(trained: fg.Run, tmp_path: Path) -> None:
    def content() -> dict[str, bytes]:
        return {
            str(path): path.read_bytes() for path in trained.folder.rglob("*") if path.is_file()
        }

    before = content()
    report(trained, tmp_path / "r.html")
    assert content() == before
    assert runs.Run(trained.folder).complete
