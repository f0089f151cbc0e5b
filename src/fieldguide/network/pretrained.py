"""The weights from outside: files that a user names, and timm's weights from the hub.

No pickle is ever run. Knows nothing of networks: it returns tensors by name.
"""

import pickle
import re
import struct
import urllib.request
import warnings
from collections.abc import Mapping
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fieldguide.errors import ResourceError, UsageError
from fieldguide.storage.addresses import act_within

# For the hub's first answer; a download may take long. Taste: with the imports it leaves the
# promise of five seconds.
HUB_SECONDS = 3.0

# Names under which training scripts save the weights inside a checkpoint.
NESTED = ("state_dict", "model", "state_dict_ema", "model_state_dict")

# Prefixes that wrappers put before every name, in any order: DataParallel and torch.compile.
_WRAPPERS = re.compile(r"^(module\.|_orig_mod\.)+")

# What torch's reader raises on damaged files, found by cutting and changing small ones.
_BROKEN = (
    *(RuntimeError, OSError, EOFError, ValueError, TypeError, LookupError, AttributeError),
    *(AssertionError, ArithmeticError, MemoryError, struct.error),
)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return tensors by name from a .safetensors, .pth, .pt or .bin file, floats as float32."""
    return {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in read_tensors(path).items()
    }


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return tensors by name, without the wrappers' prefixes, of the types in the file."""
    if not path.is_file():
        raise UsageError(f"weights `{path}`: there is no such file")
    tensors = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    return {_WRAPPERS.sub("", name): tensor for name, tensor in tensors.items()}


def download(backbone: str, config: Mapping[str, Any]) -> Path:
    """Return the weights file of a timm network, from the hub's local cache or else from the hub.

    `config` is timm's `pretrained_cfg`. Offline it raises `ResourceError` within five seconds.
    """
    import huggingface_hub as hub
    from huggingface_hub import constants
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # its library's own

    repository = config.get("hf_hub_id")
    if not repository:
        raise UsageError(
            f"timm has no pretrained weights for `{backbone}`",
            hint="name a file with --weights, or set --weights none",
        )
    for name in ("model.safetensors", "pytorch_model.bin"):
        cached = hub.try_to_load_from_cache(repository, name)
        if isinstance(cached, str):
            return Path(cached)
    try:
        if not constants.HF_HUB_OFFLINE:
            _require_hub(constants.ENDPOINT)
        return Path(hub.hf_hub_download(repository, "model.safetensors"))
    except (OSError, ValueError, HTTPError) as error:
        raise ResourceError(
            f"the pretrained weights of `{backbone}` ({repository}) are not in the local cache,"
            f" and the hub cannot be reached: {error}",
            hint=f"go online once; or copy model.safetensors of {repository} here and name it with"
            " --weights FILE; or start from random weights with --weights none",
        ) from error


def _require_hub(endpoint: str) -> None:
    """Raise OSError unless the hub answers in time; a name's look-up has no limit of its own."""

    def ask() -> None:
        request = urllib.request.Request(endpoint, method="HEAD")
        with suppress(urllib.error.HTTPError):  # an answer, if not a friendly one
            urllib.request.urlopen(request, timeout=HUB_SECONDS).close()

    try:
        act_within(HUB_SECONDS, ask)
    except TimeoutError as error:
        raise OSError(f"{endpoint} gave no answer within {HUB_SECONDS:.0f} s") from error
    except HTTPException as error:
        raise OSError(str(error)) from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UsageError(f"weights `{path}` are no readable safetensors file: {error}") from error


def _read_torch(path: Path) -> dict[str, Tensor]:
    _require_pickle(path)
    try:
        with warnings.catch_warnings(action="ignore"):  # of what is refused just after
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UsageError(
            f"weights `{path}` are refused: they are no plain tensors,"
            " and loading them could run code",
            hint="convert them to .safetensors if you trust them",
        ) from error
    except _BROKEN as error:
        raise UsageError(f"weights `{path}` cannot be read: {str(error)[:200]}") from error
    for name in NESTED:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    tensors = {} if not isinstance(content, dict) else content
    found = {str(name): tensor for name, tensor in tensors.items() if isinstance(tensor, Tensor)}
    if not found:
        raise UsageError(f"weights `{path}` hold no tensors by name")
    return found


def _require_pickle(path: Path) -> None:
    """Raise `UsageError` for a file that torch never wrote, such as a web page under that name."""
    with path.open("rb") as file:
        start = file.read(2)
    if start != b"PK" and start[:1] != b"\x80":  # a zip archive since torch 1.6, a pickle before
        what = "an empty file" if not start else f"a file that begins with {start!r}"
        raise UsageError(
            f"weights `{path}`: {what} was not written by torch",
            hint="download it again; a safetensors file must be called .safetensors",
        )
