from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fieldguide.analysis import paired
from fieldguide.compare.results import save_figures
from fieldguide.report import comparison
from fieldguide.report.comparison import Comparison, Row, Winner
from fieldguide.report.curves import Mean

HOSTILE = "<script>hurt()</script>\"'><img src=x>\n</script><!-- 🐞" + "x" * 200


def contrast(difference: float, p: float = 0.5) -> paired.Contrast:
    verdict: paired.Verdict = "no difference shown"
    if p <= paired.LEVEL:
        verdict = "better" if difference > 0 else "worse"
    return paired.Contrast(difference, difference - 0.01, difference + 0.01, p, p, verdict)


def row(name: str, accuracy: float | None = 0.9, **more: Any) -> Row:
    interval = None if accuracy is None else (accuracy - 0.02, accuracy + 0.02)
    settings = {"changes": {}, "folder": name, "status": "complete", "folds": 3} | more
    return Row(name, accuracy=accuracy, interval=interval, log_loss=0.3, seconds=60.0, **settings)


def a_comparison(*rows: Row, **more: Any) -> Comparison:
    curve = tuple(
        Mean(epoch, "merged", "test_accuracy", 0.8 + 0.01 * epoch, 0.7, 0.95, 3)
        for epoch in (1, 2, 3)
    )
    curves = {each.name: curve for each in rows if each.accuracy is not None}
    return Comparison(rows, **{"photos": 500, "groups": 500, "folds": 3, "curves": curves} | more)


def body(found: Comparison) -> str:
    return str(comparison.section(found)).replace("\N{NO-BREAK SPACE}", " ")


def test_the_lead_says_what_is_shown_and_what_is_not() -> None:
    found = a_comparison(
        row("base"),
        row("cutmix", contrast=contrast(0.021, 0.001)),
        row("mixup", contrast=contrast(0.004)),
        row("se", contrast=contrast(-0.03, 0.01)),
    )
    assert comparison.lead(found).replace("\N{NO-BREAK SPACE}", " ") == (
        "The base classifies 90.0 % of photos correctly."
        " Shown to be better: cutmix (+2.1 points). Shown to be worse: se (−3.0 points)."
        " A difference may be a seed's: --seeds 3 tests over seeds too."
        " No difference is shown for mixup."
    )
    alike = a_comparison(row("base"), row("a", contrast=contrast(0.1)))
    assert comparison.lead(alike).endswith("No difference from it is shown for the other trial.")
    assert comparison.lead(a_comparison(row("base"))).endswith("No other trial is complete yet.")


def test_the_winner_is_warned_of() -> None:
    rows = row("base"), row("b", contrast=contrast(0.01))
    text = body(a_comparison(*rows, winner=Winner("b", 0.91, 0.9, 2)))
    assert "The trial b is the most accurate of 2." in text
    assert "91.0 % is optimistic" in text and "on other photos is 90.0 %" in text
    assert "optimistic" not in body(a_comparison(row("base")))


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.021, "+2.1"), (-0.003, "−0.3"), (0.0, "0.0"), (-0.0001, "0.0"), (0.0004, "0.0")],
)
def test_differences_have_a_sign_unless_they_are_none(value: float, text: str) -> None:
    assert comparison.signed(value) == text


def test_p_is_never_shown_as_0() -> None:
    shown = [comparison.shown_p(p) for p in (0.0, 1e-9, 0.00123, 0.049, 0.3, 1.0)]
    assert shown == ["< 0.001", "< 0.001", "0.001", "0.049", "0.30", "1.00"]


def test_hostile_names_do_no_harm() -> None:
    found = a_comparison(
        row("base"),
        row(f"weights={HOSTILE}", contrast=contrast(0.1, 0.01), changes={"weights": HOSTILE}),
        row(f"{HOSTILE}2", status="failed", note=f"failed: {HOSTILE}"),
        notes=(HOSTILE,),
        winner=Winner(HOSTILE, 0.9, 0.9, 3),
    )
    text = body(found)
    assert "<script>hurt" not in text and "<img src=x" not in text and "<!--" not in text
    assert "&lt;script&gt;hurt" in text


def test_charts_name_trials_shortly_and_apart() -> None:
    rows = [row(f"{'x' * 300}{n}") for n in range(3)] + [row("a\nb"), row("c", folds=1)]
    found = comparison.labels(rows, 3)
    assert len(set(found.values())) == 5
    assert all(len(label) < 60 and "\n" not in label for label in found.values())
    assert found["c"] == "c (1 of 3 folds)"


def test_no_two_of_many_trials_look_alike() -> None:
    rows = [row("base"), *(row(f"t{n}") for n in range(42))]
    layer = comparison.epochs_chart(a_comparison(*rows)).to_dict()["layer"][1]
    colors, shapes = (layer["encoding"][key]["scale"]["range"] for key in ("color", "shape"))
    assert len(set(zip(colors, shapes, strict=True))) == 43


def test_the_luck_of_seeds_is_reported_where_it_is_known() -> None:
    base = replace(row("base"), accuracies=(0.91, 0.9, 0.92))
    text = comparison.luck(replace(a_comparison(base), seeds=3))
    assert "With 3 seeds the base classifies 90.0\N{NO-BREAK SPACE}% to 92.0" in text
    assert "the mean of the folds with the first seed" in body(replace(a_comparison(base), seeds=3))
    assert comparison.luck(a_comparison(row("base"), row("head=se"))) == ""


def test_a_difference_of_one_seed_is_said_to_be_perhaps_the_seeds() -> None:
    better = row("head=se", contrast=contrast(0.02, 0.01))
    assert "--seeds 3" in comparison.lead(a_comparison(row("base"), better))
    assert "--seeds" not in comparison.lead(replace(a_comparison(row("base"), better), seeds=3))
    alike = row("head=se", contrast=contrast(0.0))
    assert "--seeds" not in comparison.lead(a_comparison(row("base"), alike))


def test_whatever_is_missing_is_reported(tmp_path: Path) -> None:
    missing: dict[str, Any] = {"accuracy": None, "status": "not begun", "folds": 0}
    waiting = a_comparison(row("base", **missing), row("b", **missing, note="left out: no time"))
    text = body(waiting)
    assert "is not complete yet" in text
    assert "No epoch of any trial is finished yet" in text
    assert "must be complete before differences can be shown" in text
    assert "left out: no time" in text
    assert "None" not in text and "nan" not in text
    (place,) = save_figures(waiting, tmp_path)  # the table is the only figure
    assert place.read_text("utf-8").splitlines()[1].startswith("base,,not begun,0,")


def test_the_axis_of_differences_has_signs_but_for_zero() -> None:
    found = a_comparison(row("base"), row("b", contrast=contrast(0.01)))
    chart = comparison.charts(found)[comparison.DIFFERENCES]
    svg = comparison.figures.drawn(chart)["svg"].decode()
    assert ">+1<" in svg and ">0<" in svg and ">+0<" not in svg


def test_chosen_epochs_and_unequal_lengths_are_warned_of() -> None:
    found = a_comparison(row("base"), row("b", contrast=contrast(0.1)))
    text = body(
        replace(found, groups=12, stop="fold", curves={**found.curves, "b": found.curves["b"][:2]})
    )
    assert "in 12 groups" in text
    assert "Epochs were chosen on these same test photos" in text
    assert "Not all trials have the same number of epochs" in text
    for warning in ("chosen on these same", "same number of epochs"):
        assert warning not in body(found)
