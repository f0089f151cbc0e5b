"""The server: answers that are the model's, and everything that it refuses."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Answer
from PIL import Image
from starlette.testclient import TestClient

import fieldguide as fg
from fieldguide.analysis.conformal import Sets
from fieldguide.errors import ResourceError, UnreadablePhoto, UsageError
from fieldguide.predict.about import COVERAGE, about
from fieldguide.predict.classifier import Classifier
from fieldguide.predict.model import Machine, Model
from fieldguide.serve import app, server
from fieldguide.serve.service import Busy, Service
from fieldguide.study import similar

MOST = 200_000  # bytes
HERE = {"base_url": "http://127.0.0.1:8000"}


@pytest.fixture(scope="module")
def model(trained: fg.Run) -> Classifier:
    return trained.classifier("ensemble")


@pytest.fixture
def service(model: Classifier) -> Iterator[Service]:
    made = Service(model, most=4, readers=1, sets=Sets(COVERAGE))
    yield made
    made.close()


@pytest.fixture
def client(service: Service, model: Classifier) -> TestClient:
    answering = model.answers_by(rank="label")
    application = app.build(
        service, about(model), most_bytes=MOST, answering=answering,
        names=frozenset({"fern"}),
    )  # fmt: skip
    return TestClient(application, **HERE)


@pytest.fixture
def photo(parts: Path) -> Path:
    return min((parts / "val").glob("*/*.jpg"))


def test_an_answer_is_the_models(client: TestClient, photo: Path, model: Classifier) -> None:
    found = client.post("/predict?top=2", content=photo.read_bytes())
    assert found.status_code == 200
    told = found.json()
    own = model.predict(photo, sets=Sets(COVERAGE), machine=Machine("cpu", 0))
    assert told["status"] == "ok"
    assert len(told["classes"]) == 2
    assert told["classes"][0]["class"] == own.labels[0]
    assert told["classes"][0]["probability"] == pytest.approx(own.confidences[0], abs=1e-5)
    assert own.sets is not None
    assert set(told["set"]) == {own.classes[n] for n in np.flatnonzero(own.sets[0])}
    assert own.familiarity is not None
    assert told["familiarity"] == pytest.approx(own.familiarity[0])
    assert told["unknown"] == own.unknown[0]
    assert told["taxon"]["name"] == own.labels[0]


def test_forms_and_other_types_of_bodies_give_the_same(client: TestClient, photo: Path) -> None:
    data = photo.read_bytes()
    plain = client.post("/predict", content=data).json()
    odd = "../../etc/passwd\x00" + 10_000 * "x"
    for files in ({"photo": data}, {"photo": (odd, data)}):
        assert client.post("/predict", files=files).json() == plain
    named = {"filename": (None, "abc"), "photo": ("a.jpg", data)}  # a field, then the file
    assert client.post("/predict", files=named).json() == plain
    head = b'--b\r\nContent-Disposition: form-data; name="photo"; filename="a"\r\n\r\n'
    kind = {"Content-Type": "Multipart/Form-Data; boundary=b"}
    whole = head + data + b"\r\n--b--\r\n"
    assert client.post("/predict", content=whole, headers=kind).json() == plain
    cut = client.post("/predict", content=whole[:-8], headers=kind)
    assert (cut.status_code, cut.json()["error"]) == (400, "the form ends early")
    typed = client.post("/predict", content=data, headers={"Content-Type": "image/jpeg"})
    assert typed.json() == plain


@pytest.mark.parametrize(
    ("content", "status", "said"),
    [
        (b"", 400, "no photo in the request"),
        (b"hello, world", 415, "not an image (text)"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "not an image (SVG)"),
        (b"\x00" * 100, 415, "only zero bytes"),
        (b"\xff\xd8\xff\xe0 cut", 400, "truncated"),
        (b"x" * (MOST + 1), 413, "more than 200,000 bytes"),
    ],
)
def test_what_is_no_photo_is_refused_with_a_sentence(
    client: TestClient, photo: Path, content: bytes, status: int, said: str
) -> None:
    for each in (content, iter([content[:50], content[50:]])):  # the latter without a length
        found = client.post("/predict", content=each)
        assert found.status_code == status
        assert said in found.json()["error"]
    assert client.post("/predict", content=photo.read_bytes()).status_code == 200
    assert client.get("/health").json() == {"status": "ok", "photos_in_work": 0}


def test_a_picture_of_too_many_pixels_is_refused(
    client: TestClient, tmp_path: Path, service: Service
) -> None:
    Image.new("1", (20_000, 20_000)).save(tmp_path / "wide.png")
    found = client.post("/predict", content=(tmp_path / "wide.png").read_bytes())
    assert found.status_code == 413
    assert "20000 × 20000 pixels" in found.json()["error"]


@pytest.mark.parametrize(
    ("body", "kind", "said"),
    [
        (b"no form", "multipart/form-data", "the form names no boundary"),
        (b"no form", "multipart/form-data; boundary=b", "the form cannot be read"),
        (b"--b\r\n\r\n", "multipart/form-data; boundary=b", "the form"),
    ],
)
def test_a_form_that_is_none_is_refused(
    client: TestClient, body: bytes, kind: str, said: str
) -> None:
    found = client.post("/predict", content=body, headers={"Content-Type": kind})
    assert found.status_code == 400
    assert said in found.json()["error"]
    assert client.post("/predict", data={"x": "1"}, files={}).status_code in {400, 415}
    empty = client.post("/predict", files={"photo": b""})
    assert (empty.status_code, empty.json()["error"]) == (
        400,
        "the photo cannot be read: empty file",
    )


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 421),
        ({"Host": "evil.example:8000"}, 421),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 200),
        ({"Origin": "http://127.0.0.1:8000"}, 200),
        ({"Host": "localhost:8000"}, 200),
        ({"Host": "Fern:8000"}, 200),
        ({"Host": "[::1]:8000"}, 200),
    ],
)
def test_only_its_own_names_and_pages_may_ask(
    client: TestClient, photo: Path, headers: dict[str, str], status: int
) -> None:
    found = client.post("/predict", content=photo.read_bytes(), headers=headers)
    assert found.status_code == status
    assert found.headers["x-content-type-options"] == "nosniff"


def test_a_form_of_many_parts_is_refused_early(client: TestClient) -> None:
    part = b"--b\r\nContent-Disposition: form-data; name=x\r\n\r\ny\r\n"
    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    found = client.post("/predict", content=part * 500 + b"--b--\r\n", headers=kind)
    assert (found.status_code, found.json()["error"]) == (
        400,
        "the form cannot be read: more than 100 parts",
    )


def test_class_names_that_utf_8_cannot_hold_are_told(
    model: Classifier, photo: Path, service: Service
) -> None:
    names = ("a\udcff", "b", "c")
    odd = replace(model, card=replace(model.card, classes=names))
    own = Service(odd, most=1, readers=1)
    client = TestClient(app.build(own, about(odd), most_bytes=MOST), **HERE)
    assert client.get("/model").json()["classes"] == list(names)
    told = client.post("/predict", content=photo.read_bytes()).json()
    assert {each["class"] for each in told["classes"]} == set(names)
    own.close()


def test_everything_else_is_told(client: TestClient, photo: Path, model: Classifier) -> None:
    for path in ("/", "/page.js", "/answers.js", "/page.css"):
        found = client.get(path)
        assert found.status_code == 200
        assert "default-src 'none'" in found.headers["content-security-policy"]
    assert client.get("/model").json()["classes"] == list(model.classes)
    assert client.post("/predict?top=0", content=b"x").status_code == 400
    assert client.post("/predict?top=x", content=b"x").status_code == 400
    wrong = client.get("/predict")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert wrong.json()["error"] == "GET is not for this address"
    assert client.get("/nothing").json()["error"] == "there is no such thing here"
    client.post("/predict", content=photo.read_bytes())
    client.post("/predict", content=b"text")
    told = client.get("/metrics").text
    assert 'fieldguide_photos_total{outcome="answered"} 1\n' in told
    assert 'fieldguide_photos_total{outcome="unreadable"} 1\n' in told
    assert "fieldguide_in_work 0" in told
    described = client.get("/openapi.json").json()
    assert set(described["paths"]) == {"/predict", "/explain", "/health", "/model", "/metrics"}
    assert described["paths"]["/predict"]["post"]["responses"].keys() >= {"200", "413", "503"}


def test_a_run_explains_its_answers(
    trained: fg.Run, model: Classifier, photo: Path, service: Service
) -> None:
    explain = server._explained(model, trained)
    client = TestClient(app.build(service, {}, most_bytes=MOST, explain=explain), **HERE)
    data = photo.read_bytes()
    found = client.post(f"/explain?class={model.classes[0]}", content=data)
    assert found.status_code == 200
    told = found.json()
    assert told["heat"].startswith("data:image/jpeg;base64,")
    (own,) = similar.similar(trained, photo, top=4, machine=Machine("cpu", 0))
    assert [each["path"] for each in told["similar"]] == [
        trained.catalog.photos[like.photo].path for like in own.likes
    ]
    for each, like in zip(told["similar"], own.likes, strict=True):
        assert each["similarity"] == pytest.approx(like.similarity, abs=1e-3)
        assert each["picture"].startswith("data:image/jpeg;base64,")
    assert client.post("/explain?class=none", content=data).status_code == 400
    assert client.post(f"/explain?class={model.classes[0]}", content=b"text").status_code == 415
    plain = TestClient(app.build(service, {}, most_bytes=MOST), **HERE)
    assert plain.post(f"/explain?class={model.classes[0]}", content=data).status_code == 404


class Slow(Model):
    """A model that waits until it may answer."""

    def __init__(self, model: Classifier) -> None:
        self.model, self.card, self.out_of_fold = model, model.card, model.out_of_fold
        self.may, self.sizes = threading.Event(), list[int]()

    def look(self, squares: Any) -> Any:
        self.may.wait(30)
        self.sizes.append(len(squares))
        return self.model.look(squares)

    def logits(self, photos: Any, machine: Machine, views: Any) -> Any:
        raise NotImplementedError

    def require_machine(self, machine: Machine, views: Any = ()) -> str:
        return ""


def test_photos_of_several_callers_share_a_batch_and_one_too_many_is_told_to_wait(
    model: Classifier, photo: Path
) -> None:
    slow = Slow(model)
    service = Service(slow, most=3, readers=2)
    client = TestClient(app.build(service, {}, most_bytes=MOST), **HERE)
    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(client.post, "/predict", content=photo.read_bytes()) for _ in "abc"]
        while service.inside < 3:
            time.sleep(0.01)
        busy = client.post("/predict", content=photo.read_bytes())
        assert busy.status_code == 503
        assert busy.headers["retry-after"] == "1"
        slow.may.set()
        answers = [each.result().json() for each in asked]
    for each in answers:  # to rounding, whatever batch they shared
        assert each["classes"][0]["class"] == answers[0]["classes"][0]["class"]
        own = answers[0]["classes"][0]["probability"]
        assert each["classes"][0]["probability"] == pytest.approx(own, abs=1e-5)
    assert service.counts.answered == sum(slow.sizes) == 3
    assert service.counts.refused == 1
    assert service.inside == 0
    service.close()


def test_what_nobody_waits_for_is_not_computed(model: Classifier, photo: Path) -> None:
    slow = Slow(model)
    service = Service(slow, most=9, readers=1)
    first = service.submit(photo.read_bytes())
    while not first.running():
        time.sleep(0.01)
    left = [service.submit(photo.read_bytes()) for _ in range(3)]
    assert all(each.cancel() for each in left)
    slow.may.set()
    assert first.result(30).predictions.labels[0] in model.classes
    last = service.submit(photo.read_bytes())
    last.result(30)
    assert sum(slow.sizes) == 2
    with pytest.raises(CancelledError):
        left[0].result()
    with pytest.raises(UnreadablePhoto):
        service.submit(b"text").result(30)
    service.close()
    assert service.counts.dropped == 3


def test_places_are_bounded(service: Service) -> None:
    for _ in range(4):
        service.enter()
    with pytest.raises(Busy):
        service.enter()
    service.leave()
    service.enter()


def test_a_taken_port_is_passed_over_or_named() -> None:
    first = server.listening("127.0.0.1", None)
    second = server.listening("127.0.0.1", None)
    try:
        assert first.getsockname()[1] != second.getsockname()[1]
        with pytest.raises(ResourceError, match="cannot be used"):
            server.listening("127.0.0.1", first.getsockname()[1])
        with pytest.raises(UsageError, match="no address"):
            server.listening("no.such.host.invalid", None)
    finally:
        first.close()
        second.close()


def test_the_command_refuses_what_it_cannot_serve(
    trained: fg.Run, tmp_path: Path, command: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    for flags, said in (
        (("--max-mb", 0), "--max-mb is below 1"),
        (("--port", 70000), "--port"),
        (("--combine", "sup"), "sup"),
    ):
        done = command("serve", trained.folder, *flags)
        assert done.code == 2
        assert said in done.err
    assert command("serve", tmp_path).code == 2
    taken = socket.create_server(("127.0.0.1", 0))
    with taken:
        done = command("serve", trained.folder, "--port", taken.getsockname()[1])
    assert done.code == ResourceError.exit_code
    monkeypatch.setitem(__import__("sys").modules, "uvicorn", None)
    done = command("serve", trained.folder)
    assert done.code == ResourceError.exit_code
    assert "fieldguide[serve]" in done.err
