"""The weights from outside: files that a user names, and timm's weights from the hub.

No pickle is ever run: classes of plain data are left out, others refused. Knows nothing of
networks: it returns tensors by name.
"""

import pickle
import re
import struct
import urllib.request
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fieldguide.errors import ResourceError, UsageError
from fieldguide.recipe import weights_file
from fieldguide.storage.addresses import act_within
from fieldguide.words import some

# For the hub's first answer; a download may take long. Taste: with the imports it leaves the
# promise of five seconds.
HUB_SECONDS = 3.0

# Names under which training scripts save weights inside a checkpoint, the first found is taken:
# running averages before the last step's weights, as timm's own reader does (timm, Lightning,
# torchvision, fastai, MMEngine, MoCo).
NESTED = (
    *("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema"),
    *("state_dict", "model_state_dict", "model", "network", "net", "weights", "module"),
)

# Prefixes that wrappers put before every name, in any order: DataParallel and torch.compile.
_WRAPPERS = re.compile(r"^(module\.|_orig_mod\.)+")

# The counter that torch's AveragedModel saves beside the names under `module.`.
_AVERAGED = "n_averaged"

# How torch's reader names a class or function that it refuses.
_REFUSED = re.compile(r"(?:GLOBAL |<class ')([\w.]+)")


class _Ignored:
    """A stand-in for plain data beside the weights: it takes anything and keeps nothing."""

    def __new__(cls, *_arguments: object) -> "_Ignored":
        return super().__new__(cls)

    def __init__(self, *_arguments: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


def _ignored_list(*_arguments: object) -> list[object]:
    return []


def _ignored_dict(*_arguments: object) -> OrderedDict[object, object]:
    return OrderedDict()


# Classes of plain data that training scripts save beside the weights: the arguments, paths, numbers
# and settings. Stand-ins of ours take their place, so none of them is imported or constructed.
_PATHS = ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
_NODES = ("Any", "String", "Integer", "Float", "Boolean", "Enum", "Path", "Bytes", "Union")
_LIGHTNING = ("pytorch_lightning", "lightning.pytorch")
_STAND_INS: Mapping[str, Callable[..., object]] = {
    "argparse.Namespace": _Ignored,
    **{f"{module}.{name}": _Ignored for module in ("pathlib", "pathlib._local") for name in _PATHS},
    **{f"datetime.{name}": _Ignored for name in ("date", "datetime", "timedelta", "timezone")},
    **{f"builtins.{name}": _Ignored for name in ("bool", "bytes", "dict", "float", "frozenset")},
    **{f"builtins.{name}": _Ignored for name in ("int", "list", "range", "slice", "str", "tuple")},
    **{name: _Ignored for name in ("decimal.Decimal", "uuid.UUID", "typing.Any", "typing.Union")},
    **{
        f"{module}.{name}": _Ignored
        for module in ("numpy.core", "numpy._core")
        for name in ("multiarray.scalar", "multiarray._reconstruct", "numeric._frombuffer")
    },
    **{f"numpy.{name}": _Ignored for name in ("dtype", "ndarray")},
    **{f"omegaconf.nodes.{name}Node": _Ignored for name in _NODES},
    **{f"omegaconf.base.{name}": _Ignored for name in ("ContainerMetadata", "Metadata")},
    "omegaconf.dictconfig.DictConfig": _Ignored,
    "omegaconf.listconfig.ListConfig": _Ignored,
    "mmengine.logging.history_buffer.HistoryBuffer": _Ignored,
    **{
        f"{module}.callbacks.{name}": _Ignored
        for module in _LIGHTNING
        for name in ("model_checkpoint.ModelCheckpoint", "early_stopping.EarlyStopping")
    },
    **{f"{module}.utilities.parsing.AttributeDict": OrderedDict for module in _LIGHTNING},
    "lightning_fabric.utilities.data.AttributeDict": OrderedDict,
    "lightning.fabric.utilities.data.AttributeDict": OrderedDict,
    **{name: OrderedDict for name in ("easydict.EasyDict", "yacs.config.CfgNode", "munch.Munch")},
    **{name: OrderedDict for name in ("addict.addict.Dict", "mmengine.config.config.ConfigDict")},
    "collections.defaultdict": _ignored_dict,
    "collections.deque": _ignored_list,
}

# What torch's reader raises on damaged files, found by cutting and changing small ones.
_BROKEN = (
    *(RuntimeError, OSError, EOFError, ValueError, TypeError, LookupError, AttributeError),
    *(AssertionError, ArithmeticError, MemoryError, struct.error),
)


def read_weights(path: Path, tell: Callable[[str], None] = lambda _: None) -> dict[str, Tensor]:
    """Return tensors by name as `read_tensors` does, floats as float32."""
    return {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in read_tensors(path, tell).items()
    }


def read_tensors(path: Path, tell: Callable[[str], None] = lambda _: None) -> dict[str, Tensor]:
    """Return tensors by name, without the wrappers' prefixes, of the types in the file.

    `path` is a .safetensors, .pth, .pt, .ckpt or .bin file, and `FILE:entry` the tensors that a
    checkpoint holds under one name, or whose names begin with `entry.`. Where it holds several
    sets of weights and none is named, `tell` is called with which was taken (`NESTED`).
    """
    file, entry = weights_file(path)
    if not file.is_file():
        raise UsageError(f"weights `{path}`: there is no such file")
    content = _read_safetensors(file) if file.suffix == ".safetensors" else _read_torch(file)
    tensors = _chosen(content, entry, file, tell)
    wrapped = all(_WRAPPERS.match(name) for name in tensors if name != _AVERAGED)
    return {
        _WRAPPERS.sub("", name): tensor
        for name, tensor in tensors.items()
        if not (wrapped and name == _AVERAGED)
    }


def _chosen(
    content: Mapping[Any, Any], entry: str, file: Path, tell: Callable[[str], None]
) -> dict[str, Tensor]:
    """Return the tensors of one entry; if none is asked for, of the first of `NESTED`."""
    found = _tensors(content)
    sets = {
        str(name): inner
        for name, value in content.items()
        if isinstance(value, Mapping) and (inner := _tensors(value) or _inner(value))
    }
    if entry in sets:
        return sets[entry]
    most = max(map(len, sets.values()), default=0)
    known = [name for name in NESTED if 2 * len(sets.get(name, ())) > most]
    usual = sets[known[0]] if known else found
    if entry:
        start = f"{entry}."
        below = {n.removeprefix(start): t for n, t in usual.items() if n.startswith(start)}
        if not below:
            names = [f"`{name}`" for name in sets or _firsts(found)]
            raise UsageError(
                f"weights `{file}` hold no tensors under `{entry}`",
                hint=f"name one of {some(names, 8)}",
            )
        return below
    if known[1:]:
        others = ", ".join(f"`{name}`" for name in known[1:])
        tell(
            f"weights: `{known[0]}` of `{file}` is taken; it also holds {others}, which is taken"
            f" under the name `{file}:{known[1]}`"
        )
    if not usual:
        raise UsageError(
            f"weights `{file}` hold no tensors by name",
            hint=f"name the entry that they lie in, as `{file}:{next(iter(sets))}`" if sets else "",
        )
    return usual


def _tensors(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}


def _inner(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Return the tensors one level further in, under one of the usual names."""
    inner = [_tensors(content[name]) for name in NESTED if isinstance(content.get(name), Mapping)]
    return next(filter(None, inner), {})


def _firsts(names: Iterable[str]) -> list[str]:
    return sorted({name.partition(".")[0] for name in names})


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


def _read_torch(path: Path) -> dict[Any, Any]:
    """Return what torch saved, with stand-ins for plain data other than tensors."""
    _require_pickle(path)
    allowed: list[Any] = [(stand_in, name) for name, stand_in in _STAND_INS.items()]
    try:
        with (
            warnings.catch_warnings(action="ignore"),  # of what is refused just after
            torch.serialization.safe_globals(allowed),
        ):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported operand" in str(error):
            raise UsageError(
                f"weights `{path}` are refused: they were saved with a newer pickle protocol,"
                " which torch cannot read without running code",
                hint="save them again without `pickle_protocol`, or as .safetensors",
            ) from error
        named = _REFUSED.search(str(error))
        held = f"`{named[1]}`, which is" if named else "objects that are"
        raise UsageError(
            f"weights `{path}` are refused: the file holds {held} neither tensor nor plain data,"
            " and loading that could run code",
            hint="if you trust the file, save its tensors alone in the program that wrote it:"
            " safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')",
        ) from error
    except _BROKEN as error:
        raise UsageError(f"weights `{path}` cannot be read: {str(error)[:200]}") from error
    return content if isinstance(content, dict) else {}


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
