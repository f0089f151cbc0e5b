"""fieldguide-lite: the same sources without torch. `make test-all` installs it from its wheel."""

import os
import subprocess
import tomllib
from pathlib import Path

import pytest
from shell import table

import fieldguide as fg
from fieldguide.predict.exported import Exported
from fieldguide.study.export import export

ROOT = Path(__file__).parents[1]
LITE = ROOT / ".venv-lite" / "bin"


def project(folder: Path) -> dict[str, object]:
    found: dict[str, object] = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    return found


def test_its_version_and_bounds_are_those_of_fieldguide() -> None:
    own, lite = project(ROOT), project(ROOT / "lite")
    for name in ("version", "requires-python", "license", "scripts"):
        assert lite[name] == own[name]
    bounds = {*own["dependencies"], *own["optional-dependencies"]["onnx"]}  # type: ignore[misc,index,call-overload]
    assert bounds >= {*lite["dependencies"]}  # type: ignore[misc]


@pytest.mark.skipif(not LITE.is_dir(), reason="make test-all installs fieldguide-lite")
def test_the_installed_wheel_predicts_and_says_what_it_cannot(
    trained: fg.Run, parts: Path, tmp_path: Path
) -> None:
    export(trained, tmp_path / "model")

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [LITE / "fieldguide", *map(str, arguments)],
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )

    done = run("predict", "model", parts / "val", "--out", "new.csv", "--probabilities")
    assert done.returncode == 0, done.stderr
    rows, own = (
        table(tmp_path / "new.csv"),
        Exported.load(tmp_path / "model").predict(parts / "val"),
    )
    assert [row["label"] for row in rows] == list(own.labels)
    assert [float(row["confidence"]) for row in rows] == pytest.approx(own.confidences, abs=1e-5)
    done = run("predict", trained.folder, parts / "val", "--out", "other.csv")
    assert done.returncode == 4
    assert "this is fieldguide-lite" in done.stderr
    assert run("--version").stdout.strip() == project(ROOT / "lite")["version"]
    listed = subprocess.run(
        [LITE / "python", "-c", "import torch"], capture_output=True, check=False
    )
    assert listed.returncode
