"""The report as a browser shows it: headless Chromium without a network, steered over a pipe.

Nothing but the standard library is needed for that: the browser's debugging protocol is JSON
between zero bytes on two file descriptors.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from browser import CHROMIUM, SCHEMES, SIZES, Browser
from fits import small_fit
from markupsafe import Markup

import fieldguide as fg
from fieldguide.report import page
from fieldguide.report.build import build, topics
from fieldguide.report.page import Section

pytestmark = pytest.mark.skipif(
    not CHROMIUM or sys.platform == "win32", reason="there is no Chromium to look with"
)

# Names that do harm where somebody forgets to escape them: in HTML, in JSON, in a script, in CSV.
HOSTILE = {
    "amber": "<script>window.hurt = 1</script>",
    "blue": "\"'><img src=x onerror=window.hurt=1>\nsecond line, </script><!--",
    "crimson": "🐞 " * 20 + "x" * 160,
}


@pytest.fixture(scope="module")
def hostile_run(
    draw_collection: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> fg.Run:
    """A run whose classes have names that attack, and that has photos outside its folds."""
    folder = tmp_path_factory.mktemp("hostile")
    drawn = fg.scan(draw_collection(folder / "photos"))
    photos = tuple(replace(photo, label=HOSTILE[photo.label or ""]) for photo in drawn.photos)
    return small_fit(replace(drawn, photos=photos), folder / "run", folds=2, holdout=0.2)


@pytest.fixture(scope="module")
def report(hostile_run: fg.Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(hostile_run, tmp_path_factory.mktemp("report") / "report.html")


def draw_everything(browser: Browser) -> None:
    """All charts, as before printing, and until they are there."""
    browser.ask("dispatchEvent(new Event('beforeprint'))")
    browser.ask("""new Promise((resolve, reject) => {
        const end = Date.now() + 60000;
        const look = () => {
            const left = document.querySelectorAll("figure.chart:not(.drawn, .failed)").length;
            if (!left) resolve(true);
            else if (Date.now() > end) reject(new Error(left + " charts are not drawn"));
            else setTimeout(look, 50);
        };
        look();
    })""")


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("size", SIZES, ids=lambda size: str(size[0]))
def test_everything_is_drawn_without_network_and_without_a_word_of_complaint(
    browser: Browser, report: Path, size: tuple[int, int], scheme: str
) -> None:
    browser.open(report, size=size, scheme=scheme)
    draw_everything(browser)
    sections = browser.ask("[...document.querySelectorAll('main > section')].map(s => s.id)")
    assert sections == [topic.id for topic in topics()]
    empty = browser.ask("""[...document.querySelectorAll("figure.chart")].filter((figure) => {
        const box = figure.querySelector(".plot svg, .plot canvas")?.getBoundingClientRect();
        return !(box && box.width > 50 && box.height > 30);
    }).map((figure) => figure.closest("section").id + ": " + figure.textContent.slice(-300))""")
    assert empty == []
    assert browser.ask("document.querySelectorAll('figure.chart').length") > 0
    assert browser.faults == []
    assert [url for url in browser.requests if not url.startswith("data:")] == [report.as_uri()]
    assert browser.ask("typeof window.hurt") == "undefined"


@pytest.mark.parametrize("size", SIZES, ids=lambda size: str(size[0]))
def test_the_page_is_no_wider_than_the_window(
    browser: Browser, report: Path, size: tuple[int, int]
) -> None:
    browser.open(report, size=size)
    draw_everything(browser)
    wide = browser.ask("""[...document.querySelectorAll("main *")]
        .filter((e) => e.getBoundingClientRect().right > innerWidth + 1)
        .filter((e) => !e.closest(".scroll, .plot, pre"))
        .map((e) => e.closest("section").id + ": " + e.outerHTML.slice(0, 120))""")
    assert wide == []
    assert browser.ask("document.documentElement.scrollWidth") <= size[0]


def test_charts_and_texts_are_legible_in_dark_and_light(browser: Browser, report: Path) -> None:
    contrast = """(() => {
        const paint = (color) => {
            const context = document.createElement("canvas").getContext("2d");
            context.fillStyle = color;
            context.fillRect(0, 0, 1, 1);
            const linear = [...context.getImageData(0, 0, 1, 1).data].slice(0, 3)
                .map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
            return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
        };
        const back = paint(getComputedStyle(document.body).backgroundColor);
        const ratio = (color) => {
            const [low, high] = [paint(color), back].sort((a, b) => a - b);
            return (high + 0.05) / (low + 0.05);
        };
        const style = (selector, name) =>
            [...document.querySelectorAll(selector)].map((e) => ratio(getComputedStyle(e)[name]));
        return Math.min(
            ...style("main :is(p, li, td, th, dd, figcaption, caption)", "color"),
            ...style("main :is(a, summary):not(.vega-embed *)", "color"),
            ...style(".plot .role-axis-label text, .plot .role-legend-label text", "fill"),
        );
    })()"""
    for scheme in SCHEMES:
        browser.open(report, size=SIZES[1], scheme=scheme)
        draw_everything(browser)
        assert browser.ask(contrast) >= 4.5, scheme


def test_a_heading_sorts_its_table_by_keyboard(browser: Browser, report: Path) -> None:
    browser.open(report, size=SIZES[1])
    browser.ask("""(() => {
        window.table = document.querySelector("#classes table.sortable");
        window.heading = table.querySelector("thead th");
        window.order = () => [...table.tBodies[0].rows].map((row) => row.cells[0].innerText.trim());
        heading.querySelector("button").focus();
    })()""")
    unsorted = browser.ask("order()")
    for key in ("keyDown", "keyUp"):
        browser.call("Input.dispatchKeyEvent", type=key, key="Enter", code="Enter", text="\r")
    rising = browser.ask("order()")
    assert browser.ask("heading.getAttribute('aria-sort')") == "ascending"
    browser.ask("heading.querySelector('button').click()")
    assert browser.ask("heading.getAttribute('aria-sort')") == "descending"
    assert browser.ask("order()") == rising[::-1]
    assert sorted(rising) == sorted(unsorted)


def press(browser: Browser, key: str) -> None:
    for kind in ("keyDown", "keyUp"):
        browser.call("Input.dispatchKeyEvent", type=kind, key=key)


@pytest.fixture
def matrix(browser: Browser, report: Path) -> Browser:
    """The report, with the names that are seen across and down of its matrix in reach."""
    browser.open(report, size=SIZES[1])
    draw_everything(browser)
    browser.ask("""(() => {
        window.buttons = document.querySelector("#confusion .enlarge");
        const path = "#confusion .plot .mark-rect path";
        window.cells = () => [...document.querySelectorAll(path)].map((cell) => {
            const box = cell.getBoundingClientRect();
            const plot = cell.closest("svg").getBoundingClientRect();
            return [box.x - plot.x, box.y - plot.y, box.width, box.height].map(Math.round);
        });
        window.told = () => document.getElementById("announcements").textContent;
        window.widest = () => Math.max(...cells().map((cell) => cell[2]));
        buttons.querySelector("button").focus();
    })()""")
    return browser


def test_the_matrix_is_enlarged_moved_and_shown_whole_by_keyboard(matrix: Browser) -> None:
    whole, width = matrix.ask("cells()"), matrix.ask("widest()")
    assert matrix.ask("buttons.getClientRects().length") == 1
    press(matrix, "+")
    assert matrix.ask("widest()") == pytest.approx(1.5 * width, abs=2)
    assert matrix.ask("told()") == "shown: 1 to 3 of 3 across, 1 to 3 of 3 down"
    press(matrix, "+")
    middle = matrix.ask("cells()")
    for there, back in (("ArrowLeft", "ArrowRight"), ("ArrowUp", "ArrowDown")):
        press(matrix, there)
        assert matrix.ask("cells()") != middle
        press(matrix, back)
        assert matrix.ask("cells()") == middle
    for _ in range(9):
        press(matrix, "+")
    for key in ["ArrowLeft", "ArrowUp"] * 9:
        press(matrix, key)
    assert matrix.ask("told()") == "shown: 1 to 1 of 3 across, 1 to 1 of 3 down"
    assert matrix.ask("widest()") == pytest.approx(3 * width, abs=2)
    press(matrix, "-")
    assert matrix.ask("widest()") == pytest.approx(2 * width, abs=2)
    press(matrix, "0")
    assert matrix.ask("cells()") == whole
    assert matrix.ask("told()") == "shown: 1 to 3 of 3 across, 1 to 3 of 3 down"
    assert matrix.faults == []


def test_the_matrix_has_buttons_with_names_for_the_same(matrix: Browser) -> None:
    whole = matrix.ask("cells()")
    tree = matrix.call("Accessibility.getFullAXTree")["nodes"]
    names = {
        node["name"]["value"] for node in tree if node.get("role", {}).get("value") == "button"
    }
    assert names >= {"Enlarge", "Shrink", "Show all", "Move left", "Move right", "Move up"}
    matrix.ask("buttons.querySelector('[aria-label=Enlarge]').click()")
    enlarged = matrix.ask("cells()")
    assert enlarged != whole
    matrix.ask("buttons.querySelector('[aria-label=Shrink]').click()")
    assert matrix.ask("cells()") == whole
    press(matrix, "x")
    assert matrix.ask("cells()") == whole


def test_numbers_are_sorted_as_numbers_and_blanks_come_last(
    browser: Browser, tmp_path: Path
) -> None:
    cells = ("10.5&nbsp;%", "9.5&nbsp;%", "–", "1,200", "-3")
    rows = "".join(f"<tr><td>{cell}</td></tr>" for cell in cells)
    body = Markup(f'<table class="sortable"><thead><tr><th>n</th></tr></thead>{rows}</table>')
    file = tmp_path / "page.html"
    file.write_text(page.page("t", [Section("s", "S", body)], page.chart_libraries()), "utf-8")
    browser.open(file, size=SIZES[0])
    order = "[...document.querySelectorAll('td')].map((cell) => cell.textContent.trim())"
    browser.ask("document.querySelector('th button').click()")
    assert browser.ask(order) == ["-3", "9.5\xa0%", "10.5\xa0%", "1,200", "–"]
    browser.ask("document.querySelector('th button').click()")
    assert browser.ask(order) == ["1,200", "10.5\xa0%", "9.5\xa0%", "-3", "–"]


def test_a_filter_leaves_the_rows_that_hold_its_words(browser: Browser, report: Path) -> None:
    browser.open(report, size=SIZES[1])
    shown = """(() => {
        const input = document.querySelector("#classes input.filter");
        input.value = "IMG onerror";
        input.dispatchEvent(new Event("input"));
        const rows = [...document.querySelector("#classes table.sortable").tBodies[0].rows];
        return rows.filter((row) => row.getClientRects().length).map((row) => row.innerText);
    })()"""
    (row,) = browser.ask(shown)
    assert "onerror" in row
    assert "1 rows" in browser.ask("document.getElementById('announcements').textContent")


def test_paper_is_light_and_shows_what_is_folded_away(browser: Browser, report: Path) -> None:
    browser.open(report, size=SIZES[1], scheme="dark")
    draw_everything(browser)
    browser.media("dark", "print")
    assert (
        browser.ask("document.querySelectorAll('main details:not([open], .vega-embed *)').length")
        == 0
    )
    assert browser.ask("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.ask("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    assert browser.ask("getComputedStyle(document.querySelector('nav')).display") == "none"
    label = "getComputedStyle(document.querySelector('.plot .role-axis-label text')).fill"
    assert browser.ask(label) == "rgb(0, 0, 0)"


def test_a_name_that_attacks_is_text_where_a_pointer_shows_it(
    browser: Browser, report: Path
) -> None:
    browser.open(report, size=SIZES[1])
    draw_everything(browser)
    cells = "document.querySelectorAll('#confusion .plot svg .mark-rect path')"
    seen = ""
    for number in range(browser.ask(f"{cells}.length")):
        x, y = browser.ask(f"""(() => {{
            const cell = {cells}[{number}];
            cell.scrollIntoView({{block: "center", behavior: "instant"}});
            const box = cell.getBoundingClientRect();
            return [box.x + box.width / 2, box.y + box.height / 2];
        }})()""")
        browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        seen += browser.ask("document.getElementById('vg-tooltip-element')?.textContent ?? ''")
    assert HOSTILE["amber"] in seen and "onerror=window.hurt" in seen
    assert (
        browser.ask("document.querySelectorAll('#vg-tooltip-element :is(img, script)').length") == 0
    )
    assert browser.ask("typeof window.hurt") == "undefined"
    assert browser.faults == []


def test_printing_draws_what_nobody_scrolled_to(browser: Browser, report: Path) -> None:
    browser.open(report, size=SIZES[1])
    browser.call("Page.printToPDF")
    assert browser.ask("document.querySelectorAll('figure.chart:not(.drawn)').length") == 0
    assert browser.ask("document.querySelectorAll('[data-opened]').length") == 0  # closed again
    assert browser.faults == []


def test_the_policy_stops_a_script_that_was_not_escaped(browser: Browser, tmp_path: Path) -> None:
    attack = Markup(
        "<script>window.hurt = 1</script>"
        "<img src='http://localhost:9/x.png' onerror='window.hurt = 1'>"
        "<button id='trap' onclick='window.hurt = 1'>x</button>"
    )
    file = tmp_path / "page.html"
    file.write_text(page.page("t", [Section("s", "S", attack)], page.chart_libraries()), "utf-8")
    browser.open(file, size=SIZES[1])
    browser.ask("document.getElementById('trap').click()")
    assert browser.ask("typeof window.hurt") == "undefined"
    assert len(browser.faults) >= 3
    assert all("Content Security Policy" in fault for fault in browser.faults)


def test_the_texts_are_there_without_javascript(
    browser: Browser, report: Path, hostile_run: fg.Run
) -> None:
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(report, size=SIZES[0])
        root = browser.call("DOM.getDocument")["root"]["nodeId"]
        found = browser.call("DOM.querySelector", nodeId=root, selector="figure noscript p")
        box = browser.call("DOM.getBoxModel", nodeId=found["nodeId"])["model"]
        assert box["height"] > 0
        found = browser.call("DOM.querySelector", nodeId=root, selector=".enlarge[hidden]")
        assert found["nodeId"]
        assert browser.faults == []
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
