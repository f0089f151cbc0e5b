"""The backbones that timm offers weights of: size, licence, and whether they can be used.

Offers are kept in a file, as importing timm and building a network takes seconds. Knows nothing of
photos.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import metadata
from pathlib import Path

import pydantic
from pydantic import TypeAdapter

from fieldguide.errors import ResourceError, UsageError
from fieldguide.network.backbones import SELECTION, backbone_names
from fieldguide.storage import files

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Offer:
    """A backbone under the name with the tag of its weights.

    `size` is the side in pixels that the weights were made for, `license` that of the weights.
    `refused` is why fieldguide cannot use it, else empty; `weights` whether timm offers any.
    """

    backbone: str
    parameters: int
    size: int
    license: str
    refused: str
    weights: bool


_KEPT = TypeAdapter(dict[str, Offer])


def matching(pattern: str) -> list[str]:
    """Return names with a tag that contain a text, or fit a pattern such as `*next*in12k*`."""
    if not pattern.strip("."):  # a folder, not the dot before every tag
        return []
    return [
        name
        for name in backbone_names()
        if "." in name and (pattern in name or fnmatchcase(name, pattern))
    ]


def look_up(
    names: Sequence[str],
    cache: Path | None,
    begin: Callable[[], None] = lambda: None,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Offer]:
    """Return the offers of names, from a file in the folder `cache` or from timm.

    `begin` is called if timm has to be asked, `progress` with the names done by now.
    """
    version = metadata.version("timm")
    file = cache and cache / f"backbones-{version}.json"
    known = _read(file)
    before = len(known)
    if not known.keys() >= {*names}:
        begin()
    try:
        for done, name in enumerate(names, start=1):
            if name not in known:
                known[name] = of(name)
            progress(done)
    finally:  # also of a listing that was stopped
        if file and len(known) > before:
            with suppress(ResourceError):
                files.make_folder(file.parent)
                files.write_bytes(file, _KEPT.dump_json(known))
    return [known[name] for name in names]


def of(name: str) -> Offer:
    """Return the offer of a name: the network is built, without values."""
    import timm  # takes seconds, and what is kept needs none of it
    import torch

    from fieldguide.network.feature_map import output_channels
    from fieldguide.network.network import drawn

    config = timm.get_pretrained_cfg(name)
    assert config is not None, "names are read from timm"
    parameters, refused = 0, ""
    try:
        with torch.device("meta"):
            body = drawn(name, "linear")
        parameters = sum(tensor.numel() for tensor in body.parameters())
        if name not in SELECTION:  # which tests hold to this
            output_channels(body)
    except UsageError as error:
        refused = error.message
    license = config.license or UNKNOWN
    offered = bool(config.hf_hub_id)  # the hub is what weights are fetched from
    return Offer(name, parameters, config.input_size[-1], license, refused, offered)


def _read(file: Path | None) -> dict[str, Offer]:
    """Return the offers in a file; none where it is missing or broken."""
    try:
        return dict(_KEPT.validate_json(file.read_bytes())) if file else {}
    except (OSError, pydantic.ValidationError):
        return {}
