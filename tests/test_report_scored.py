"""The table of outside photos in a report: shown while it is of the run, else said to be old."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from fieldguide.predict.model import Machine
from fieldguide.report import scored
from fieldguide.runs.run import Run
from fieldguide.storage import files
from fieldguide.study import holdout_scores


@pytest.fixture(scope="module")
def merged(trained: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with a soup, all of it scored as `fieldguide score` does; read only."""
    folder = tmp_path_factory.mktemp("scored") / "run"
    run = Run(shutil.copytree(trained.folder, folder))
    holdout_scores.merge_into_run(
        run, "soup", batch_norm="recalibrate", machine=Machine(device="cpu")
    )
    holdout_scores.worths(run, Machine())
    return run


@pytest.fixture
def own(merged: Run, tmp_path: Path) -> Run:
    """A copy to write into, with the times of its files."""
    return Run(shutil.copytree(merged.folder, tmp_path / "run"))


def record(run: Run) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run.folder / scored.SCORES).read_bytes())
    return content


def change(run: Run, **values: Any) -> None:
    """Writes the table with other values, and the time that it had."""
    place = run.folder / scored.SCORES
    time = place.stat().st_mtime_ns
    files.write_json(place, record(run) | values)
    os.utime(place, ns=(time, time))


def write_model_anew(run: Run, seconds: float) -> None:
    """Another soup under the same name, written so long after the table."""
    place = run.folder / "models" / "soup-recal" / files.MANIFEST
    content = json.loads(place.read_bytes())
    next(iter(content["files"].values()))["sha256"] = "0" * 64
    files.write_json(place, content)
    time = (run.folder / scored.SCORES).stat().st_mtime + seconds
    os.utime(place, (time, time))


def test_the_table_of_the_run_as_it_stands_is_shown(own: Run) -> None:
    found = scored.read(own)
    assert found == scored.Kept(holdout_scores.worths(own, Machine()).rows)
    names = [row.name for row in found.rows]
    assert names[-3:] == ["mean of folds", "ensemble", "soup-recal"]


def test_times_do_not_matter_where_the_key_can_be_checked(own: Run) -> None:
    for place in own.folder.rglob(files.MANIFEST):
        place.touch()
    assert len(scored.read(own).rows) == 6 and not scored.read(own).doubt


def test_a_model_of_the_same_name_that_was_written_later_makes_it_stale(own: Run) -> None:
    write_model_anew(own, 1)
    assert scored.read(own) == scored.Kept(stale="Written after scores.json: soup-recal.")


def test_the_scores_of_another_device_are_shown_with_a_doubt(own: Run) -> None:
    change(own, key="of another device")
    found = scored.read(own)
    assert len(found.rows) == 6
    assert found.doubt == scored.ELSEWHERE and not found.stale


def test_models_that_came_or_went_make_it_stale(own: Run) -> None:
    (own.folder / "models" / "soup-recal").rename(own.folder / "models" / "stock")
    assert scored.read(own).rows == ()
    said = "scores.json does not contain stock."
    said += " scores.json contains models that are gone: soup-recal."
    assert scored.read(own).stale == said


def test_other_photos_make_it_stale(own: Run) -> None:
    change(own, photos=1300)
    assert scored.read(own) == scored.Kept(
        stale="scores.json is of 1,300 photos, and now there are 12."
    )


@pytest.mark.parametrize("values", [{"rows": [{"beauty": 1}]}, {"rows": 3}, {"rows": ["x"]}])
def test_a_table_of_another_version_is_told(own: Run, values: dict[str, Any]) -> None:
    change(own, **values)
    assert scored.read(own) == scored.Kept(stale="scores.json is of another version.")


@pytest.mark.parametrize("text", ["", "{", None])
def test_without_a_table_there_is_nothing_to_tell(own: Run, text: str | None) -> None:
    (own.folder / scored.SCORES).unlink()
    if text is not None:
        (own.folder / scored.SCORES).write_text(text)
    assert scored.read(own) == scored.Kept()


def test_scoring_again_makes_it_fit(own: Run) -> None:
    change(own, key="of another device")
    holdout_scores.worths(own, Machine())
    assert len(scored.read(own).rows) == 6 and not scored.read(own).doubt


def test_a_table_from_before_paired_tests_is_not_shown_and_made_anew(own: Run) -> None:
    place = own.folder / scored.SCORES
    content = json.loads(place.read_bytes())
    for row in content["rows"]:
        del row["better_than"]
    place.write_text(json.dumps(content))
    assert scored.read(own).stale == "scores.json is of another version."
    assert holdout_scores._kept(place, content["key"]) is None
