"""What every test shares: shapes checked at run time, one thread, pictures made on the spot."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import numpy as np
import pytest
from jaxtyping import install_import_hook
from PIL import Image

if TYPE_CHECKING:
    from browser import Browser

    import fieldguide as fg

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
# Decoded photos are kept for this session alone, away from the user's.
_CACHE = tempfile.TemporaryDirectory(prefix="fieldguide-tests-")
os.environ["FIELDGUIDE_CACHE"] = _CACHE.name

# Shapes and dtypes in signatures are checked while testing; users pay nothing.
install_import_hook("fieldguide", "beartype.beartype")

# The same examples in every run: a failure is the change's, not the day's.
hypothesis.settings.register_profile("steady", derandomize=True, deadline=None)
hypothesis.settings.load_profile("steady")

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture
def nature100() -> Path:
    """Real photographs, where they lie beside the project."""
    folder = SHARED / "data" / "nature100"
    if not folder.is_dir():
        pytest.skip("../shared/data/nature100 is not there")
    return folder


def draw_photo(path: Path, color: tuple[int, int, int], seed: int, side: int = 40) -> None:
    """A noisy picture around one colour, with a disc that lies elsewhere in each."""
    rng = np.random.default_rng(seed)
    pixels = rng.normal(90, 40, (side, side + seed % 5, 3))
    y, x = np.mgrid[: pixels.shape[0], : pixels.shape[1]]
    inside = (x - rng.uniform(10, side - 10)) ** 2 + (y - rng.uniform(10, side - 10)) ** 2 < 100
    pixels[inside] = color + rng.normal(0, 20, 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)


COLORS = {"amber": (230, 160, 20), "blue": (30, 60, 220), "crimson": (200, 20, 60)}


@pytest.fixture(scope="session")
def draw_collection() -> Callable[..., Path]:
    """Draws a small collection of discs: one folder a class, photos numbered from `first`."""

    def draw(folder: Path, each: int = 8, classes: int = 3, first: int = 0) -> Path:
        for number, (name, color) in enumerate(list(COLORS.items())[:classes]):
            for index in range(first, first + each):
                draw_photo(folder / name / f"{index:03d}.jpg", color, 1000 * number + index)
        return folder

    return draw


@pytest.fixture(scope="session")
def discs(tmp_path_factory: pytest.TempPathFactory, draw_collection: Callable[..., Path]) -> Path:
    """Three classes of eight discs each; read only."""
    return draw_collection(tmp_path_factory.mktemp("discs"))


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory, draw_collection: Callable[..., Path]) -> Path:
    """The discs as `train`, and four others of each class as `val`; read only."""
    folder = tmp_path_factory.mktemp("parts")
    draw_collection(folder / "train")
    draw_collection(folder / "val", each=4, first=20)
    return folder


@pytest.fixture(scope="session")
def trained(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> "fg.Run":
    """Three folds that have learned something, and twelve photos outside of them; read only."""
    from fits import small_fit

    return small_fit(
        parts,
        tmp_path_factory.mktemp("trained") / "run",
        folds=3,
        replicas=1,
        merge="none",
        mix="none",
        epochs=6,
        crop_scale=(0.8, 1.0),
        color_jitter=0.0,
        backbone_rate=0.01,
        head_rate=0.02,
    )


HOSTILE = ("<script>alert(1)<b>", 'new\nline "quoted" \'\u202e\x07', "🌻" + "x" * 200)


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> "fg.Run":
    """A run that learned next to nothing, of names that nobody should use; one of two folds is
    done. Read only.
    """
    from fits import small_fit

    folder = tmp_path_factory.mktemp("hostile")
    for number, name in enumerate(HOSTILE):
        for index in range(8):
            path = folder / "photos" / name / f"{index} <i>.jpg"
            draw_photo(path, (120, 120, 120), 100 * number + index)
    return small_fit(folder / "photos", folder / "run", fold=1, epochs=1, warmup=0.0, mix="mixup")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The photos that were read since the test began."""
    from fieldguide.photos import pixels

    paths: list[Path] = []
    original = pixels.load

    def load(path: Path, **options: Any) -> object:
        paths.append(path)
        return original(path, **options)

    monkeypatch.setattr(pixels, "load", load)
    return paths


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own, without a file."""
    from fieldguide.storage import cache_folder

    monkeypatch.setenv("FIELDGUIDE_CACHE", str(tmp_path / "cache"))
    return cache_folder.root()


@pytest.fixture
def own(trained: "fg.Run", tmp_path: Path) -> Path:
    """The folder of a copy of the run, to write into."""
    return shutil.copytree(trained.folder, tmp_path / "run")


@pytest.fixture
def unfinished(own: Path) -> Path:
    """The same before fold 2 was trained."""
    for place in (own, own / "folds" / "2"):
        (place / "manifest.json").unlink()
    return own


@dataclass(frozen=True)
class Answer:
    """What a command printed, and its exit code. Lines of `err` are joined: a console wraps."""

    code: int
    out: str
    err: str


@pytest.fixture
def command(plain_consoles: None, capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Runs a command in this process."""
    from fieldguide import cli

    def run(*arguments: object) -> Answer:
        code = cli.run([str(each) for each in arguments])
        said = capsys.readouterr()
        return Answer(code, said.out, said.err.replace("\n", " "))

    return run


@pytest.fixture
def plain_consoles(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Consoles look up the captured streams, and see no settings of the tester's own."""
    from fieldguide.cli import terminal

    plain: dict[str, Any] = {"highlight": False, "markup": False}
    out = terminal.Terminal(**plain, soft_wrap=True, width=terminal.PIPED_WIDTH)
    monkeypatch.setattr(terminal, "stdout", out)
    monkeypatch.setattr(terminal, "stderr", terminal.Terminal(**plain, stderr=True))
    for name in list(os.environ):
        if name.startswith("FIELDGUIDE_"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Browser"]:
    """One headless Chromium."""
    from browser import Browser

    opened = Browser(tmp_path_factory.mktemp("chromium"))
    yield opened
    opened.close()
