"""To repeat this: command, recipe, hashes, licence."""

import hashlib
import re
import shlex
import tomllib
from html import unescape
from pathlib import Path

import pytest
from fits import small_recipe
from hypothesis import given
from hypothesis import strategies as st

import fieldguide as fg
from fieldguide import recipe as recipes
from fieldguide.fitting.fit import fit
from fieldguide.report import repeat

COMMAND = ["/somewhere/__main__.py", "fit", "my photos", "--out", "runs/a", "--epochs=3"]


def test_the_command_is_typed_as_it_was_given() -> None:
    assert repeat.command_line(COMMAND) == "fieldguide fit 'my photos' --out runs/a --epochs=3"
    assert repeat.command_line([]) == ""
    for fold in (["--fold", "3"], ["--fold=3"], []):
        line = repeat.command_line([*COMMAND, *fold], fold=None)
        assert line == repeat.command_line(COMMAND)


def test_flags_are_replaced_in_place_or_added() -> None:
    line = repeat.command_line(COMMAND, epochs=6, out="b c", head_rate=0.01)
    assert line == "fieldguide fit 'my photos' --out 'b c' --epochs=6 --head-rate 0.01"


@given(st.lists(st.text(max_size=5)), st.text(max_size=8))
def test_a_shell_reads_back_the_words(words: list[str], out: str) -> None:
    assert shlex.split(repeat.command_line(["x", *words])) == ["fieldguide", *words]
    found = shlex.split(repeat.command_line(["x", "fit", "--out", "old"], out=out))
    assert found == ["fieldguide", "fit", "--out", out]


@pytest.mark.parametrize("license", ["apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0"])
def test_a_free_licence_needs_no_warning(license: str) -> None:
    assert repeat.weights_license("pretrained", license) == repeat.License(license)


@pytest.mark.parametrize(
    "license", ["cc-by-nc-4.0", "CC_BY-NC-SA-4.0", "non-commercial", "fair-noncommercial-research"]
)
def test_a_licence_without_commercial_use_is_warned_of(license: str) -> None:
    told = repeat.weights_license("pretrained", license)
    assert told.text == license
    assert "does not allow commercial use" in told.warning


@pytest.mark.parametrize("license", ["", "other", "unknown", "Other"])
def test_an_unknown_licence_is_warned_of(license: str) -> None:
    told = repeat.weights_license("weights.safetensors", license)
    assert told.text == "unknown"
    assert "not known" in told.warning


def test_random_weights_need_no_licence() -> None:
    assert not repeat.weights_license("none", "").warning


def test_the_recipe_on_the_page_is_the_run_s(trained: fg.Run) -> None:
    body = repeat.section(trained)
    found = re.search(r'<pre id="repeat-recipe"[^>]*>(.*?)</pre>', body, re.DOTALL)
    assert found
    shown = recipes.build(tomllib.loads(unescape(found[1])))
    assert shown.model_dump() == trained.recipe.model_dump()


def test_the_hash_of_the_photos_does_not_depend_on_their_order(trained: fg.Run) -> None:
    digests = [photo.sha256 for photo in trained.catalog.photos if photo.split == "train"]
    assert repeat.content_hash(digests) == repeat.content_hash(digests[::-1])
    own = trained.ingredients().provenance["training_photos_sha256"]
    assert repeat.content_hash(digests) == own
    assert own in repeat.section(trained)


def test_every_hash_and_version_is_told(trained: fg.Run) -> None:
    body = repeat.section(trained)
    for name in ("catalog.csv", "environment.json", "recipe.toml", "start.safetensors"):
        assert hashlib.sha256((trained.folder / name).read_bytes()).hexdigest() in body
    for version in trained.environment["versions"].values():
        assert version in body
    assert "3 of 3 folds" in body


def test_a_run_begun_from_python_has_no_command_to_show(trained: fg.Run) -> None:
    body = repeat.section(trained)
    assert "begun from Python" in body and "repeat-command" not in body


def test_a_command_that_attacks_stays_text(discs: Path, tmp_path: Path) -> None:
    words = ["fieldguide", "fit", "<script>alert(1)</script>", "--out", "x"]
    run = fit(fg.scan(discs), small_recipe(), tmp_path / "run", fold=0, command=words)
    body = repeat.section(run)
    assert "<script>" not in body
    assert unescape(body).count("fieldguide fit '<script>alert(1)</script>' --out x") == 1
