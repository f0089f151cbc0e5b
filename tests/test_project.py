"""Rules about the project itself: layers, hosts, names."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "fieldguide"

# From top to bottom: packages, and files beside them, import only from lower rows and themselves.
LAYERS = (
    "__main__ __init__",
    "cli",
    "serve",
    "demo",
    "compare",
    "report",
    "study",
    "fitting",
    "runs",
    "train",
    "predict",
    "network",
    "photos",
    "storage",
    "machine",
    "analysis",
    "recipe merge seeds words",
    "errors",
)


def layer_of(path: Path) -> int:
    """The row of the package, or of the file beside them, that a file belongs to."""
    own = path.relative_to(SOURCE).with_suffix("").parts[0]
    return next(row for row, names in enumerate(LAYERS) if own in names.split())


def imported(path: Path) -> set[str]:
    """Modules of the package that a file imports, wherever in it, as paths of files."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.replace(".", "/") for name in found if name.startswith("fieldguide.")}


def file_of(name: str) -> Path:
    """The file of an imported module, or of the module that an imported name is in."""
    place = SOURCE.parent / name
    while not place.with_suffix(".py").is_file():
        if (place / "__init__.py").is_file():
            return place / "__init__.py"
        place = place.parent
    return place.with_suffix(".py")


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda p: p.stem)
def test_imports_point_downwards(path: Path) -> None:
    for name in imported(path):
        target = file_of(name)
        inside = path.parent != SOURCE and layer_of(target) == layer_of(path)
        assert inside or layer_of(target) > layer_of(path) or layer_of(path) == 0, name


def test_no_module_imports_itself_by_a_detour() -> None:
    left = {
        path: {file_of(name) for name in imported(path)} - {path} for path in SOURCE.rglob("*.py")
    }
    while ready := [path for path, targets in left.items() if not targets & left.keys()]:
        for path in ready:
            del left[path]
    assert not left


FINITE_VERB = re.compile(
    "(Add|Ask|Begin|Call|Change|Choose|Compare|Compute|Count|Create|Decode|Drop|Evaluate|Fetch|Find"
    "|Give|Hold|Keep|Load|Make|Merge|Move|Open|Pass|Print|Put|Raise|Read|Refuse|Remove|Require|Return"
    "|Run|Save|Say|Send|Start|Stop|Take|Tell|Train|Wait|Write|Yield)e?s"
)
# A first line is a verb phrase for what acts, or a noun phrase with its noun.
NO_FIRST_WORDS = {"As", "Of", "By", "That", "Those", "Where", "In", "So", "With"}


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda p: p.stem)
def test_docstrings_begin_with_what_acts_or_is(path: Path) -> None:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [
        node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, kinds)
    ]
    first = [(ast.get_docstring(node) or "-").split()[0].rstrip(",:.") for node in nodes]
    assert not NO_FIRST_WORDS & set(first)
    finite = [word for word in first if FINITE_VERB.fullmatch(word)]
    assert not finite, "verbs are imperatives: `Return`, not `Returns`"


def test_the_readme_is_a_page() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 160


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
