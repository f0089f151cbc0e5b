"""The names of the backbones: the ResNet family in the installed timm, read from its source text.

Importing timm with torch takes ten CPU-seconds. Knows nothing of networks.
"""

import difflib
import importlib.util
import re
from functools import cache
from pathlib import Path

from fieldguide.errors import ResourceError, UsageError

# timm's modules that define residual networks ending in a feature map of one scale.
FAMILIES = ("res2net", "resnest", "resnet", "resnetv2", "senet", "sknet", "tresnet")


@cache
def backbone_names() -> tuple[str, ...]:
    """Return names with and without their weights' tag, sorted: `resnet18`, `resnet18.a1_in1k`."""
    specification = importlib.util.find_spec("timm")
    if specification is None or not specification.submodule_search_locations:
        raise ResourceError(
            "timm is not installed", hint="install fieldguide with its dependencies"
        )
    models = Path(specification.submodule_search_locations[0]) / "models"
    text = "\n".join((models / f"{family}.py").read_text("utf-8") for family in FAMILIES)
    plain = set(re.findall(r"@register_model\s+def (\w+)\(", text))
    tagged = re.findall(r"^\s*['\"](\w+\.\w+)['\"]\s*:", text, re.MULTILINE)
    return tuple(sorted(plain | {name for name in tagged if name.partition(".")[0] in plain}))


def require_backbone(name: str) -> None:
    """Raise `UsageError` with the nearest names if timm has no such ResNet-family network."""
    if name in backbone_names():
        return
    nearest = difflib.get_close_matches(name, backbone_names(), n=4, cutoff=0.4)
    raise UsageError(
        f"`backbone` = {name!r} is no ResNet-family network of the installed timm",
        hint=f"the nearest names are {', '.join(nearest)}" if nearest else "try resnet50",
    )
