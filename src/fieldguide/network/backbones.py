"""The names of the backbones: the networks of the installed timm, read from its source text.

Importing timm with torch takes ten CPU-seconds. Knows nothing of networks: whether one ends in a
feature map is found when it is built (`feature_map`).
"""

import difflib
import importlib.util
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from fieldguide.errors import ResourceError, UsageError

# timm's modules of the ResNet family, which recipe `reference` is about.
RESNETS = ("res2net", "resnest", "resnet", "resnetv2", "senet", "sknet", "tresnet")

# What to try first, from the quickest on, with what each is good for: families that fine-tune well
# on few photos, and weights that anyone may use, by the licences that timm names.
SELECTION: Mapping[str, str] = {
    "resnet18.a1_in1k": "a processor; recipe `quick`",
    "mobilenetv3_large_100.ra_in1k": "phones, small boards",
    "efficientnet_b0.ra_in1k": "a small file",
    "convnext_pico.d1_in1k": "a processor; newer",
    "regnety_016.tv2_in1k": "a processor, accuracy first",
    "resnet50.a1_in1k": "comparing with papers",
    "convnext_nano.in12k_ft_in1k": "many kinds of things",
    "resnetaa50d.sw_in12k_ft_in1k": "a GPU; recipe `default`",
    "convnext_tiny.in12k_ft_in1k": "a GPU, accuracy first",
    "tf_efficientnetv2_s.in21k_ft_in1k": "larger pictures",
    "convnext_small.in12k_ft_in1k": "a large GPU",
    "convnext_base.fb_in22k_ft_in1k": "a large GPU, accuracy first",
}


@cache
def backbone_names(modules: tuple[str, ...] = ("*",)) -> tuple[str, ...]:
    """Return names with and without their weights' tag, sorted: `resnet18`, `resnet18.a1_in1k`.

    `modules` are those of timm that define the networks.
    """
    specification = importlib.util.find_spec("timm")
    if specification is None or not specification.submodule_search_locations:
        raise ResourceError(
            "timm is not installed", hint="install fieldguide with its dependencies"
        )
    folder = Path(specification.submodule_search_locations[0]) / "models"
    files = sorted(file for module in modules for file in folder.glob(f"{module}.py"))
    text = "\n".join(file.read_text("utf-8") for file in files)
    plain = set(re.findall(r"@register_model\s+def (\w+)\(", text))
    tagged = re.findall(r"^\s*['\"](\w+\.\w+)['\"]\s*:", text, re.MULTILINE)
    return tuple(sorted(plain | {name for name in tagged if name.partition(".")[0] in plain}))


def require_backbone(name: str) -> None:
    """Raise `UsageError` with the nearest names if timm has no such network."""
    if name in backbone_names():
        return
    nearest = difflib.get_close_matches(name, backbone_names(), n=4, cutoff=0.4)
    raise UsageError(
        f"`backbone` = {name!r} is no network of the installed timm",
        hint=f"the nearest names are {', '.join(nearest)}"
        if nearest
        else "`fieldguide backbones` lists some",
    )
