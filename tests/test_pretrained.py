import argparse
import collections
import datetime
import http.server
import pickle
import random
import socket
import sys
import threading
import time
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import huggingface_hub as hub
import numpy as np
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save, save_file
from torch import Tensor

from fieldguide.errors import ResourceError, UsageError
from fieldguide.network import pretrained
from fieldguide.network.pretrained import download, read_weights

CONFIG = {"hf_hub_id": "timm/small.of_a_test"}


def tensors() -> dict[str, Tensor]:
    return {"conv.weight": torch.arange(6.0).reshape(2, 3), "steps": torch.tensor(7)}


def refusal(path: Path) -> UsageError:
    with pytest.raises(UsageError) as caught:
        read_weights(path)
    assert f"`{path}`" in caught.value.message
    assert caught.value.exit_code == 2
    return caught.value


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)


def test_safetensors_come_back_as_they_were(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "a.safetensors")
    assert_same(read_weights(tmp_path / "a.safetensors"), tensors())


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_torch_old_and_new_come_back_as_they_were(
    suffix: str, zipped: bool, tmp_path: Path
) -> None:
    path = tmp_path / f"a{suffix}"
    torch.save(tensors(), path, _use_new_zipfile_serialization=zipped)
    assert_same(read_weights(path), tensors())


@pytest.mark.parametrize("key", pretrained.NESTED)
def test_weights_are_found_inside_a_checkpoint(key: str, tmp_path: Path) -> None:
    torch.save({"epoch": 3, "loss": 0.5, key: tensors()}, tmp_path / "a.pth")
    assert_same(read_weights(tmp_path / "a.pth"), tensors())


def test_other_things_beside_tensors_are_left_out(tmp_path: Path) -> None:
    torch.save(tensors() | {"epoch": 3, "classes": ["a", "b"]}, tmp_path / "a.pth")
    assert_same(read_weights(tmp_path / "a.pth"), tensors())


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."]
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_the_prefixes_of_wrappers_are_taken_off(prefix: str, suffix: str, tmp_path: Path) -> None:
    wrapped = {prefix + name: tensor for name, tensor in tensors().items()}
    path = tmp_path / f"a{suffix}"
    save_file(wrapped, path) if suffix == ".safetensors" else torch.save(wrapped, path)
    assert_same(read_weights(path), tensors())


def test_a_name_that_only_contains_a_prefix_stays(tmp_path: Path) -> None:
    save_file({"my.module.weight": torch.ones(1)}, tmp_path / "a.safetensors")
    assert set(read_weights(tmp_path / "a.safetensors")) == {"my.module.weight"}


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_floating_tensors_become_float32_and_counters_stay_whole(
    kind: torch.dtype, tmp_path: Path
) -> None:
    given = {"weight": torch.tensor([0.5, -2.0], dtype=kind), "steps": torch.tensor(7)}
    save_file(given, tmp_path / "a.safetensors")
    found = read_weights(tmp_path / "a.safetensors")
    assert torch.equal(found["weight"], torch.tensor([0.5, -2.0]))
    assert (found["weight"].dtype, found["steps"].dtype) == (torch.float32, torch.int64)


@pytest.mark.parametrize("zipped", [True, False])
def test_plain_data_beside_the_weights_is_no_hindrance(zipped: bool, tmp_path: Path) -> None:
    beside = {
        "args": argparse.Namespace(lr=0.1, output=tmp_path, betas=(0.9, 0.99)),
        "metric": np.float64(0.5),
        "curve": np.arange(3.0),
        "when": datetime.datetime(2026, 1, 1),
        "callbacks": collections.defaultdict(list, {"best": [1]}),
        "last": collections.deque([1, 2], maxlen=2),
        "kinds": {int, frozenset({1})},
    }
    path = tmp_path / "a.pth.tar"
    torch.save(beside | {"state_dict": tensors()}, path, _use_new_zipfile_serialization=zipped)
    assert_same(read_weights(path), tensors())


def test_settings_of_a_class_that_is_not_installed_are_no_hindrance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "pytorch_lightning.utilities.parsing"
    module = types.ModuleType(name)
    kind = type("AttributeDict", (dict,), {"__module__": name})
    module.AttributeDict = kind  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, name, module)
        patch.setitem(sys.modules, "pytorch_lightning", types.ModuleType("pytorch_lightning"))
        content = {"hyper_parameters": kind(lr=0.1), "state_dict": tensors()}
        torch.save(content, tmp_path / "a.ckpt")
    assert_same(read_weights(tmp_path / "a.ckpt"), tensors())


def test_averaged_weights_come_first_and_are_told(tmp_path: Path) -> None:
    path, told = tmp_path / "a.pth", list[str]()
    plain = {name: tensor + 1 for name, tensor in tensors().items()}
    torch.save({"state_dict": plain, "state_dict_ema": tensors()}, path)
    assert_same(read_weights(path, told.append), tensors())
    assert told == [
        f"weights: `state_dict_ema` of `{path}` is taken; it also holds `state_dict`, which is"
        f" taken under the name `{path}:state_dict`"
    ]
    assert_same(read_weights(Path(f"{path}:state_dict"), told.append), plain)
    assert len(told) == 1


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": tensors(), "ema": {"decay": torch.tensor(0.9)}},
        {"state_dict": {"epoch": torch.tensor(3)}, "model": tensors()},
    ],
)
def test_an_entry_of_a_number_is_no_set_of_weights(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    assert read_weights(tmp_path / "w.pth").keys() == tensors().keys()


def test_a_newer_pickle_protocol_is_named(tmp_path: Path) -> None:
    torch.save(tensors(), tmp_path / "w.pth", pickle_protocol=4)
    with pytest.raises(UsageError, match="newer pickle protocol"):
        read_weights(tmp_path / "w.pth")


def test_an_entry_may_be_part_of_the_names(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({f"{part}.{n}": t for part in "ab" for n, t in tensors().items()}, path)
    assert_same(read_weights(Path(f"{path}:b")), tensors())
    with pytest.raises(UsageError, match="no tensors under `c`") as caught:
        read_weights(Path(f"{path}:c"))
    assert "`a`, `b`" in caught.value.hint


def test_weights_under_an_unusual_name_are_found_by_it(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"classifier": tensors()}, path)
    assert f"`{path}:classifier`" in refusal(path).hint
    assert_same(read_weights(Path(f"{path}:classifier")), tensors())


def test_the_counter_of_an_averaged_model_is_left_out(tmp_path: Path) -> None:
    averaged = torch.optim.swa_utils.AveragedModel(torch.nn.Linear(2, 1))
    torch.save({"model_ema": averaged.state_dict()}, tmp_path / "a.pth")
    assert set(read_weights(tmp_path / "a.pth")) == {"weight", "bias"}


def test_what_is_in_the_way_is_named(tmp_path: Path) -> None:
    torch.save({"model": torch.nn.Linear(2, 1)}, tmp_path / "a.pth")
    assert "`torch.nn.modules.linear.Linear`" in refusal(tmp_path / "a.pth").message


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self.marker, "the pickle has run"))


@pytest.mark.parametrize("how", ["zipped", "old", "bare"])
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(how: str, tmp_path: Path) -> None:
    marker, path = tmp_path / "marker", tmp_path / "x.pt"
    content = tensors() | {"extra": Evil(marker)}
    if how == "bare":
        path.write_bytes(pickle.dumps({"extra": Evil(marker)}))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "zipped")
    error = refusal(path)
    assert "are refused" in error.message
    assert ".safetensors" in error.hint
    assert not marker.exists()


def test_the_evil_pickle_is_evil(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Evil(tmp_path / "marker")))
    assert (tmp_path / "marker").exists()


def test_no_such_file_and_a_folder(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "none.safetensors").message
    assert "no such file" in refusal(tmp_path).message


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html><html>log in</html>", b"\x00" * 64])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".bin"])
def test_what_are_no_weights_is_refused(content: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    assert not isinstance(refusal(path).message, type(None))
    if suffix != ".safetensors":
        assert "was not written by torch" in refusal(path).message


def test_a_safetensors_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path, whole = tmp_path / "a.safetensors", save(tensors())
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert "no readable safetensors file" in refusal(path).message


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_of_torch_cut_anywhere_is_refused(zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save(tensors(), path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        refusal(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_of_torch_with_a_changed_byte_is_refused_or_read(
    zipped: bool, tmp_path: Path
) -> None:
    path, draws = tmp_path / "a.pth", random.Random(0)
    torch.save(tensors(), path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[draws.randrange(len(whole))] = draws.randrange(256)
        path.write_bytes(damaged)
        try:
            read_weights(path)
        except UsageError as error:
            assert f"`{path}`" in error.message


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {}, 5, torch.ones(2), {"model": [1]}])
def test_a_file_without_tensors_by_name_is_refused(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pth")
    assert "hold no tensors by name" in refusal(tmp_path / "a.pth").message


class FakeHub(http.server.BaseHTTPRequestHandler):
    """Serves one file, as the hub does, a web page for everything, or less than it promises."""

    def do_GET(self) -> None:
        content = save(tensors())
        if self.server.behaviour == "portal":  # type: ignore[attr-defined]
            self.answer(200, {"Content-Type": "text/html"}, b"<html>log in</html>")
        elif "/resolve/" not in self.path:
            self.answer(200, {}, b"")
        elif not self.path.endswith("model.safetensors"):
            self.answer(404, {"X-Error-Code": "EntryNotFound"}, b"")
        else:
            headers = {"ETag": '"abc"', "X-Repo-Commit": "0" * 40}
            self.answer(200, headers, content)

    do_HEAD = do_GET

    def answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            short = self.server.behaviour == "cut"  # type: ignore[attr-defined]
            self.wfile.write(content[: len(content) // 2] if short else content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def serving(behaviour: str) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    server.behaviour = behaviour  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache of the hub's library, which is told to be online."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path / "cache"


def point_to(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def unreachable() -> ResourceError:
    with pytest.raises(ResourceError) as caught:
        download("small", CONFIG)
    error = caught.value
    assert "`small` (timm/small.of_a_test)" in error.message
    assert "--weights FILE" in error.hint and "--weights none" in error.hint
    assert error.exit_code == 4
    return error


def test_a_closed_port_is_told_at_once(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    point_to(monkeypatch, f"http://127.0.0.1:{port}")
    started = time.monotonic()
    assert "refused" in unreachable().message
    assert time.monotonic() - started < 5


def test_a_hub_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr(pretrained, "HUB_SECONDS", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        point_to(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        unreachable()
        assert time.monotonic() - started < 5


def test_the_patience_with_the_hub_is_under_five_seconds() -> None:
    assert pretrained.HUB_SECONDS < 4


def test_a_hub_that_has_no_name_is_given_up(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    point_to(monkeypatch, "http://no-such-name.invalid")
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(0.5))
    monkeypatch.setattr(pretrained, "HUB_SECONDS", 0.1)
    assert "gave no answer" in unreachable().message


def test_offline_mode_asks_nobody(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    def ask(endpoint: str) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(pretrained, "_require_hub", ask)
    unreachable()


@pytest.mark.parametrize("behaviour", ["portal", "cut"])
def test_a_hub_that_gives_something_else_is_no_hub(
    behaviour: str, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between the library's attempts
    with serving(behaviour) as endpoint:
        point_to(monkeypatch, endpoint)
        unreachable()


def test_weights_are_fetched_once_and_then_found_without_a_network(
    monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    with serving("hub") as endpoint:
        point_to(monkeypatch, endpoint)
        first = download("small", CONFIG)
    assert cache in first.parents
    assert_same(read_weights(first), tensors())
    assert download("small", CONFIG) == first  # the hub is gone


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_cached_file_is_used_without_asking(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def cached(repository: str, wanted: str) -> str | None:
        return f"cache/{repository}/{wanted}" if wanted == name else None

    def ask(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(hub, "try_to_load_from_cache", cached)
    monkeypatch.setattr(hub, "hf_hub_download", ask)
    monkeypatch.setattr(pretrained, "_require_hub", ask)
    assert download("small", CONFIG) == Path("cache") / CONFIG["hf_hub_id"] / name


@pytest.mark.parametrize("config", [{}, {"hf_hub_id": None}, {"hf_hub_id": ""}])
def test_a_network_without_published_weights_is_told(config: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="no pretrained weights for `seresnet18`") as caught:
        download("seresnet18", config)
    assert "--weights none" in caught.value.hint
