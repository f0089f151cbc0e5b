"""Rules about the project itself: layers, hosts, names."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "fieldguide"

# A module may import from lower rows only; docs/design.md draws the same table.
ROWS = (
    {"errors"},
    {"augment", "backbones", "columns", "controls", "device", "files", "folds", "heads"}
    | {"caches", "launched", "merge", "metrics", "optimize", "parquet", "pretrained", "recipe"}
    | {"seeds"},
    {"remote", "shards"},
    {"analysis", "catalog", "cluster", "mirror", "pixels", "ranks", "side_by_side", "store"}
    | {"tracking"}
    | {"transforms"},
    {"batches", "check", "checkpoint", "copies", "folding", "inputs", "network", "pack"}
    | {"synchrony"},
    {"inference", "job", "predictions", "probe"},
    {"classifier", "step"},
    {"checkpoints", "combine", "train"},
    {"runs"},
    {"activation", "crossval", "labels", "landscape", "outside"},
    {"demo", "display", "find_rate", "preview"},
    {"report"},
    {"compare"},
    {"cli"},
    {"__init__", "__main__"},
)


def module_of(path: Path) -> str:
    """The module, or the folder of modules, that a file belongs to."""
    return path.relative_to(SOURCE).with_suffix("").parts[0]


def imported(path: Path) -> set[str]:
    """Modules of the package that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {
                alias.name.split(".")[1] for alias in node.names if "fieldguide." in alias.name
            }
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fieldguide"):
            below = (node.module or "").partition(".")[2]
            found |= {below.split(".")[0]} if below else {alias.name for alias in node.names}
    return found


def test_every_module_has_a_row() -> None:
    modules = {module_of(path) for path in SOURCE.rglob("*.py")}
    assert set.union(*ROWS) == modules


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=module_of)
def test_imports_point_downwards(path: Path) -> None:
    own = module_of(path)
    row = next(number for number, names in enumerate(ROWS) if own in names)
    within = {own} if path.parent != SOURCE else set()  # modules of one folder know each other
    assert imported(path) <= set().union(*ROWS[:row]) | within


def tracked() -> list[Path]:
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def test_no_tracked_file_names_a_package_host_or_a_path_of_a_machine() -> None:
    hosts = ("pypi" + ".org", "pythonhosted" + ".org", "registry." + "npmjs", "deb." + "debian.org")
    homes = re.compile(rb"(^|[^\w.])/(work|farm|root|home/\w+)/")
    for path in tracked():
        content = path.read_bytes()
        assert not [host for host in hosts if host.encode() in content], path
        assert path.suffix in {".png", ".jpg"} or not homes.search(content), path


def test_constraints_pin_every_dependency_without_an_index() -> None:
    text = (ROOT / "constraints.txt").read_text()
    assert "://" not in text and "--" not in text
    pins = {line.partition("==")[0] for line in text.splitlines()}
    for name in ("torch", "torchvision", "timm", "numpy", "pillow", "pydantic", "cyclopts", "ruff"):
        assert name in pins
