import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fits import SMALL, results, small_fit

import fieldguide as fg
from fieldguide import cli, train
from fieldguide.recipe import RECIPES

pytestmark = pytest.mark.usefixtures("plain_consoles")


def flags(**settings: object) -> list[str]:
    return [f"--{name.replace('_', '-')}={value}" for name, value in (SMALL | settings).items()]


def fit_flags(photos: Path, run: Path, **settings: object) -> list[str]:
    return ["fit", str(photos), "--out", str(run), *flags(**settings)]


@pytest.fixture
def restored_signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        assert signal.getsignal(number) is handler


# --- without torch --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--help"], 0, "Turn a folder of photographs"),
        (["fit", "--help"], 0, "--backbone-rate"),
        (["--version"], 0, "0."),
        (["recipe", "reference"], 0, "resnest200e"),
        (["fitt"], 2, '"fit"'),
        (["fit", "x", "--out", "y", "--batchsize", "3"], 2, "--batch-size"),
        (["fit", "x", "--out", "y", "--epochs", "0"], 2, "`epochs` = 0"),
        (["fit", "x", "--out", "y", "--backbone", "resnet81"], 2, "resnet18"),
        (["fit", "x", "--out", "y", "--recipe", "refrence"], 2, "`reference`"),
        (["fit", "x", "--out", "y", "--weights", "gone.pth"], 2, "gone.pth"),
        (["check", "no-such-folder"], 3, "no-such-folder"),
        (["score", "no-such-run"], 2, "no run folder"),
    ],
)
def test_quick_answers_do_not_import_torch(arguments: list[str], code: int, said: str) -> None:
    script = (
        "import sys\n"
        "from fieldguide.cli import run\n"
        "try:\n    code = run(sys.argv[1:])\n"
        "finally:\n    heavy = {'torch', 'timm', 'torchvision'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "sys.exit(code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


# --- commands -------------------------------------------------------------------------------------


def test_fit_and_score_print_data_to_stdout_and_progress_to_stderr(
    discs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], restored_signals: None
) -> None:
    assert cli.run(fit_flags(discs, tmp_path / "run")) == 0
    said = capsys.readouterr()
    accuracy = fg.Run(tmp_path / "run").scores.accuracy
    assert f"out-of-fold accuracy {accuracy:.1%}" in said.out
    assert "fold 1  epoch  2  merged" in said.err
    assert "to go for the whole plan" in said.err
    assert "\x1b" not in said.out + said.err
    assert cli.run(["score", str(tmp_path / "run")]) == 0
    again = capsys.readouterr()
    assert again.out == said.out
    assert cli.run(fit_flags(discs, tmp_path / "run")) == 0
    assert "complete" in capsys.readouterr().err


def test_score_works_on_the_folds_that_are_done(
    discs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run([*fit_flags(discs, tmp_path / "run"), "--fold", "1"]) == 0
    capsys.readouterr()
    assert cli.run(["score", str(tmp_path / "run")]) == 0
    assert "(1 of 2 folds done)" in capsys.readouterr().out
    assert cli.run([*fit_flags(discs, tmp_path / "run"), "--fold", "2"]) == 2
    assert "`fold` = 2 is none of 0 to 1" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_the_same_command_goes_on(
    number: signal.Signals,
    code: int,
    discs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    restored_signals: None,
) -> None:
    original, calls = train.train_step, itertools.count()

    def step(*args: object) -> object:
        if next(calls) == 5:
            os.kill(os.getpid(), number)
        return original(*args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(train, "train_step", step)
        assert cli.run(fit_flags(discs, tmp_path / "run")) == code
    assert "the same command goes on" in capsys.readouterr().err
    assert list((tmp_path / "run" / "folds" / "0" / "checkpoint").glob("*.safetensors"))
    assert cli.run(fit_flags(discs, tmp_path / "run")) == 0
    undisturbed = small_fit(discs, tmp_path / "undisturbed")
    assert results(fg.Run(tmp_path / "run")) == results(undisturbed)


def test_settings_come_from_recipe_then_environment_then_flags(
    discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "mine.toml"
    place.write_text("patience = 3\nseed = 3\nmix_alpha = 0.3\n")
    monkeypatch.setenv("FIELDGUIDE_SEED", "4")
    monkeypatch.setenv("FIELDGUIDE_MIX_ALPHA", "0.4")
    arguments = fit_flags(discs, tmp_path / "run", mix_alpha=0.5, epochs=1, warmup=0)
    assert cli.run([*arguments, "--recipe", str(place), "--fold", "0"]) == 0
    recipe = fg.Run(tmp_path / "run").recipe
    assert (recipe.patience, recipe.seed, recipe.mix_alpha) == (3, 4, 0.5)


def test_a_foreign_environment_setting_is_named(
    discs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("FIELDGUIDE_EPOCH", "4")
    assert cli.run(fit_flags(discs, tmp_path / "run")) == 2
    assert "`epochs`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--precision=fp16", "`precision` = 'fp16': should be 'float32', 'bfloat16'"),
        ("--size=large", "`size` = 'large': should be a valid integer"),
        ("--mean=300,2,3", "not between 0 and 1"),
        ("--head=foo", "`head` = 'foo': should be 'linear', 'se' or 'attention'"),
        ("--watch-val", "--no-watch-val"),
    ],
)
def test_wrong_values_are_told_in_our_words(
    flag: str, said: str, discs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["fit", str(discs), "--out", str(tmp_path / "run"), flag]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert "pydantic" not in told


def test_several_numbers_can_be_given(discs: Path, tmp_path: Path) -> None:
    arguments = fit_flags(discs, tmp_path / "run", epochs=1, warmup=0)
    assert cli.run([*arguments, "--fold=0", "--mean=0.4 0.5,0.6", "--crop-scale", "0.5", "1"]) == 0
    recipe = fg.Run(tmp_path / "run").recipe
    assert (recipe.mean, recipe.crop_scale) == ((0.4, 0.5, 0.6), (0.5, 1.0))


def test_odd_names_of_the_run_are_shown_as_they_are(
    discs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = tmp_path / "n[red]x[" / "run]"
    assert cli.run([*fit_flags(discs, odd, epochs=1, warmup=0), "--fold=0"]) == 0
    assert str(odd) in capsys.readouterr().out


def test_a_run_among_the_photos_is_refused(discs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(fit_flags(discs, discs / "run")) == 2
    assert "among the photos" in capsys.readouterr().err
    assert not (discs / "run").exists()


def test_check_tells_what_stops_a_fit(
    discs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["check", str(discs)]) == 0
    said = capsys.readouterr()
    assert re.search(r"train +24 +3 +8 +8 +8", said.out)
    assert "nothing was found" in said.out
    photos = shutil.copytree(discs, tmp_path / "photos")
    (photos / "amber" / "bad.jpg").write_bytes(b"")
    assert cli.run(["check", str(photos)]) == 0
    assert "unreadable" in capsys.readouterr().out
    assert cli.run(["check", str(photos), "--strict"]) == 3
    shutil.copy(photos / "amber" / "000.jpg", photos / "blue" / "wrong.jpg")
    capsys.readouterr()
    findings = tmp_path / "findings.csv"
    assert cli.run(["check", str(photos), "--csv", str(findings)]) == 3
    assert "conflicting-labels" in capsys.readouterr().out
    assert "amber/bad.jpg,empty file" in findings.read_text()


def test_every_recipe_is_printed_as_toml_that_reads_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in RECIPES:
        assert cli.run(["recipe", name]) == 0
        place = tmp_path / f"{name}.toml"
        place.write_text(capsys.readouterr().out, encoding="utf-8")
        assert cli.run(["recipe", str(place)]) == 0
        own, back = (
            text.splitlines()[1:] for text in (place.read_text("utf-8"), capsys.readouterr().out)
        )
        assert own == back


def test_a_closed_pipe_is_no_error() -> None:
    command = f"{sys.executable} -m fieldguide recipe | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("# default")
    assert done.stderr == ""


@pytest.mark.parametrize("name", ["TERM=dumb", "PYTHONIOENCODING=cp1252", "LC_ALL=C", "COLUMNS=40"])
def test_odd_terminals_get_plain_text(name: str) -> None:
    key, _, value = name.partition("=")
    done = subprocess.run(
        [sys.executable, "-m", "fieldguide", "recipe", "reference"],
        capture_output=True,
        check=False,
        env={**os.environ, key: value},
    )
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr and b"\x1b" not in done.stdout


def test_demo_draws_once_and_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli.training, "DEMO_PHOTOS_EACH", 4)
    arguments = ["demo", "--out", str(tmp_path / "demo"), *flags(epochs=1, warmup=0)]
    assert cli.run(arguments) == 0
    said = capsys.readouterr()
    assert "out-of-fold accuracy" in said.out
    assert said.out.count("fieldguide ") == 4  # the next commands
    summary = json.loads((tmp_path / "demo" / "run" / "summary.json").read_bytes())
    assert summary["photos"] == 48
    assert cli.run(arguments) == 0
    assert "complete" in capsys.readouterr().err
