"""The page of the server and the one without, in a real browser with real files.

The latter's runtime is npm's, which `make test-all` puts into `.venv-all/onnxruntime-web`.
"""

import functools
import http.server
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from browser import CHROMIUM, SCHEMES, SIZES, Browser
from PIL import Image, ImageOps

import fieldguide as fg
from fieldguide.analysis.conformal import Sets
from fieldguide.predict.about import COVERAGE, about
from fieldguide.predict.classifier import Classifier
from fieldguide.predict.exported import Exported
from fieldguide.serve import app, server
from fieldguide.serve.service import Service
from fieldguide.study.export import export

RUNTIME = Path(__file__).parents[1] / ".venv-all" / "onnxruntime-web"

pytestmark = pytest.mark.skipif(
    not CHROMIUM or sys.platform == "win32", reason="there is no Chromium to look with"
)

HOSTILE = ("<img src=x onerror=window.hurt=1>", "=cmd|' /C calc'!A0\n\"x\"", "🐞" * 20 + "x" * 90)
ROWS = """[...document.querySelectorAll('#answers > li')].map((item) => ({
    name: item.querySelector('h2').textContent,
    classes: [...item.querySelectorAll('dt')].map((each) => each.textContent),
    probability: item.querySelector('dl progress')?.value,
    notes: [...item.querySelectorAll('p')].map((each) => each.textContent),
}))"""


@pytest.fixture(scope="module")
def hostile(trained: fg.Run) -> Classifier:
    """A classifier whose classes have names that attack."""
    classifier = trained.classifier("ensemble")
    return replace(classifier, card=replace(classifier.card, classes=HOSTILE))


@pytest.fixture(scope="module")
def served(hostile: Classifier) -> Iterator[str]:
    """The address of a server of it."""
    service = Service(hostile, most=8, readers=1, sets=Sets(COVERAGE))
    with running(app.build(service, about(hostile), most_bytes=1_000_000)) as address:
        yield address


@contextmanager
def running(application: Any) -> Iterator[str]:
    """The address of a server of an application."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(application, log_level="error", access_log=False)
    own = uvicorn.Server(config)
    thread = threading.Thread(target=own.run, kwargs={"sockets": [listener]})
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
    own.should_exit = True
    thread.join()
    listener.close()


@pytest.fixture(scope="module")
def site(hostile: Classifier, parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of its page."""
    if not RUNTIME.is_dir():
        pytest.skip(f"{RUNTIME.name} is not there: make test-all fetches it")
    place = tmp_path_factory.mktemp("site") / "page"
    export(hostile, place, photos=parts / "val", page=True, runtime=RUNTIME)
    return place


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def serving(folder: Path, port: int = 0) -> Iterator[str]:
    """The address of a plain server of files."""
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", port), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture
def pages(request: pytest.FixtureRequest) -> Callable[[str], Any]:
    """Opens the address of either page."""

    @contextmanager
    def address(kind: str) -> Iterator[str]:
        if kind == "server":
            yield request.getfixturevalue("served")
            return
        with serving(request.getfixturevalue("site")) as place:
            yield place

    return address


@pytest.fixture
def photos(parts: Path, tmp_path: Path) -> list[Path]:
    """Photos in several forms, one turned by EXIF, one transparent, one broken."""
    drawn = sorted((parts / "val").glob("*/*.jpg"))
    turned, clear, cut = (tmp_path / name for name in ("turned.jpg", "clear.png", "cut.jpg"))
    with Image.open(drawn[0]) as first:
        exif = Image.Exif()
        exif[0x0112] = 6
        first.crop((0, 0, 40, 30)).save(turned, exif=exif, quality=95)
        mask = Image.linear_gradient("L").resize(first.size)
        first.putalpha(mask)
        first.save(clear)
    cut.write_bytes(drawn[0].read_bytes()[:300])
    (tmp_path / "text.jpg").write_text("no picture")
    return [*drawn[:17], turned, clear, cut, tmp_path / "text.jpg"]


def opened(browser: Browser, address: str, size: tuple[int, int], scheme: str = "light") -> None:
    browser.open(address, size=size, scheme=scheme)
    browser.wait("document.getElementById('about').textContent.includes('classes')")


def looked_at(browser: Browser, photos: list[Path]) -> list[dict[str, Any]]:
    browser.choose("#files", *photos)
    browser.wait(f"document.getElementById('count').textContent === '{len(photos)} of"
                 f" {len(photos)} done'")  # fmt: skip
    found: list[dict[str, Any]] = browser.ask(ROWS)
    return found


@pytest.mark.parametrize("kind", ["server", "site"])
def test_answers_are_the_models_and_what_is_no_photo_has_a_sentence(
    browser: Browser,
    pages: Callable[[str], Any],
    photos: list[Path],
    hostile: Classifier,
    kind: str,
    request: pytest.FixtureRequest,
) -> None:
    with pages(kind) as address:
        opened(browser, address, SIZES[1])
        rows = looked_at(browser, photos)
    assert [row["name"] for row in rows] == [photo.name for photo in photos]
    assert all(row["notes"] and not row["classes"] for row in rows[-2:])
    for photo, row in zip(photos[:-2], rows, strict=False):
        if kind == "server":
            own = hostile.predict(photo).probabilities[0]
        else:  # decoded in full
            model = Exported.load(request.getfixturevalue("site"))
            with Image.open(photo) as file:
                upright = ImageOps.exif_transpose(file).convert("RGBA")
            picture = Image.new("RGB", upright.size, "white")
            picture.paste(upright, mask=upright.getchannel("A"))
            own = model.run([np.asarray(picture)])[0][0]
        assert row["probability"] == pytest.approx(own.max(), abs=0.01)
        assert row["classes"][0] == HOSTILE[int(own.argmax())]
    told = hostile.predict(photos[:-2], sets=Sets(COVERAGE))
    assert told.sets is not None
    for row, inside in zip(rows, told.sets, strict=False):
        names = [HOSTILE[n] for n in np.flatnonzero(inside)]
        said = next(note for note in row["notes"] if "the class is among" in note)
        assert all(name in said for name in names)
        assert sum(name in said for name in HOSTILE) == len(names)
    assert browser.ask("typeof window.hurt") == "undefined"
    assert browser.ask("document.querySelectorAll('#answers [onerror]').length") == 0
    refused = [fault for fault in browser.faults if "status of 4" not in fault]
    assert refused == []  # a refusal is what the browser logs as an error
    here = [url for url in browser.requests if not url.startswith(("blob:", "data:"))]
    assert all(url.startswith(address) for url in here)


@pytest.mark.parametrize("kind", ["server", "site"])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("size", SIZES, ids=lambda size: str(size[0]))
def test_the_page_fits_the_window(
    browser: Browser,
    pages: Callable[[str], Any],
    photos: list[Path],
    size: tuple[int, int],
    scheme: str,
    kind: str,
) -> None:
    with pages(kind) as address:
        opened(browser, address, size, scheme)
        looked_at(browser, photos[:3])
    assert browser.ask("document.documentElement.scrollWidth") <= size[0]
    assert browser.faults == []
    reached = browser.ask("""(() => {
        const all = [...document.querySelectorAll("input, button")].filter((e) => !e.disabled);
        return all.filter((e) => (e.focus(), document.activeElement === e)).length;
    })()""")
    assert reached == 4  # by keyboard: choose, take, table, clear


def test_a_run_says_why(browser: Browser, trained: fg.Run, photos: list[Path]) -> None:
    model = trained.classifier("ensemble")
    explain = server._explained(model, trained)
    application = app.build(
        Service(model, most=8, readers=1), about(model, explains=True), most_bytes=1_000_000,
        explain=explain,
    )  # fmt: skip
    with running(application) as address:
        opened(browser, address, SIZES[0])
        looked_at(browser, photos[:1])
        browser.ask("document.querySelector('#answers button').click()")
        browser.wait("document.querySelectorAll('.reasons img').length === 5")
        assert browser.ask("document.documentElement.scrollWidth") <= SIZES[0][0]
    assert browser.faults == []


def test_a_table_is_taken_away_without_formulas(
    browser: Browser, served: str, photos: list[Path]
) -> None:
    opened(browser, served, SIZES[1])
    browser.ask("""(() => {
        window.made = new Promise((resolve) => {
            const own = URL.createObjectURL;
            URL.createObjectURL = (blob) => {
                if (blob.type === "text/csv") resolve(blob.text());
                return own(blob);
            };
        });
        HTMLAnchorElement.prototype.click = () => {};
    })()""")
    looked_at(browser, photos[:3] + photos[-1:])
    browser.ask("document.getElementById('table').click()")
    table = browser.ask("window.made")
    assert table.startswith("path,label,confidence,second,second_confidence,status,set,unknown\n")
    assert table.count("\n020.jpg,") + table.count("\n021.jpg,") >= 1
    assert "unreadable: the photo cannot be read: not an image (text)" in table
    cells = table.replace("\n", ",").split(",")
    assert not any(each.lstrip('"').startswith(("=", "+", "@")) for each in cells)


def test_a_file_that_is_too_large_is_refused_in_both(
    browser: Browser, pages: Callable[[str], Any], tmp_path: Path
) -> None:
    Image.new("1", (14_000, 8_000)).save(tmp_path / "wide.png")
    (tmp_path / "long.jpg").write_bytes(bytes(1_100_000))
    with pages("server") as address:
        opened(browser, address, SIZES[1])
        (row,) = looked_at(browser, [tmp_path / "long.jpg"])
    assert "large" in row["notes"][-1] or "more than" in row["notes"][-1]
    with pages("site") as address:
        opened(browser, address, SIZES[1])
        (row,) = looked_at(browser, [tmp_path / "wide.png"])
    assert "too large for a browser: 14000 × 8000 pixels" in row["notes"][-1]


def test_the_page_works_without_a_network_once_it_is_loaded(
    browser: Browser, site: Path, photos: list[Path]
) -> None:
    with serving(site) as address:
        opened(browser, address, SIZES[0])
        browser.ask("navigator.serviceWorker.ready.then(() => true)")
    opened(browser, address, SIZES[0])
    (row,) = looked_at(browser, photos[:1])
    assert row["classes"]
