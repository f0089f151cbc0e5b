import io
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from fits import Killed, killer, small_fit
from PIL import Image

import fieldguide as fg
from fieldguide.errors import ResourceError, UsageError
from fieldguide.fitting.progress import Watcher
from fieldguide.report import figures

NAMES = ["learning-curves.png", "learning-curves.svg", "confusion.png", "confusion.svg"]


@pytest.fixture(scope="module")
def saved(trained: fg.Run, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return figures.save(trained, tmp_path_factory.mktemp("figures") / "new" / "folder")


def text_of(path: Path) -> str:
    return " ".join(ElementTree.parse(path).getroot().itertext())


def test_each_figure_is_saved_as_png_and_svg(saved: list[Path]) -> None:
    assert [path.name for path in saved] == NAMES
    assert sorted(path.name for path in saved[0].parent.iterdir()) == sorted(NAMES)


def test_pictures_are_wide_enough_for_print_and_on_white(saved: list[Path]) -> None:
    for path in (saved[0], saved[2]):
        with Image.open(io.BytesIO(path.read_bytes())) as picture:
            assert picture.width >= 2 * figures.LEAST_MATRIX
            assert picture.convert("RGB").getpixel((1, 1)) == (255, 255, 255)


def test_drawings_hold_their_texts(saved: list[Path], trained: fg.Run) -> None:
    curves, confusion = text_of(saved[1]), text_of(saved[3])
    assert "loss" in curves and "accuracy" in curves and "replica 1" in curves
    assert all(name in confusion for name in (*trained.classes, "given", "predicted"))


def test_the_same_run_gives_the_same_figures(
    saved: list[Path], trained: fg.Run, tmp_path: Path
) -> None:
    again = figures.save(trained, tmp_path / "again")
    for one, other in zip(saved[::2], again[::2], strict=True):  # in SVG, numbers of clips go on
        assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_overwritten_and_then_nothing_is_written(
    name: str, trained: fg.Run, tmp_path: Path
) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(UsageError, match="is there already") as caught:
        figures.save(trained, tmp_path)
    assert name in caught.value.message
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"


def test_a_run_with_one_fold_has_figures_and_one_without_none(discs: Path, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        small_fit(discs, tmp_path / "run", watcher=Watcher(on_step=killer(1)), epochs=1)
    with pytest.raises(ResourceError, match=r"no fold of .* is trained yet"):
        figures.save(fg.Run(tmp_path / "run"), tmp_path / "figures")
    assert not (tmp_path / "figures").exists()
    part = small_fit(discs, tmp_path / "run", fold=0, epochs=1)
    assert len(figures.save(part, tmp_path / "figures")) == 4
