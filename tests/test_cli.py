import io
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fits import flags, results, small_fit
from rich.console import Console

import fieldguide as fg
from fieldguide import cli
from fieldguide.cli import fitting, tables, terminal
from fieldguide.errors import Stopped
from fieldguide.recipe import RECIPES
from fieldguide.study.holdout_scores import Worth, Worths
from fieldguide.train import loop
from fieldguide.train import step as steps

pytestmark = pytest.mark.usefixtures("plain_consoles")


def fit_flags(photos: Path, run: Path, **settings: object) -> list[str]:
    return ["fit", str(photos), "--out", str(run), *flags(**settings)]


def typed(*arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """The command in a process of its own."""
    command = [sys.executable, "-m", "fieldguide", *arguments]
    return subprocess.run(
        command, capture_output=True, check=False, env={**os.environ, **environment}
    )


@pytest.fixture
def restored_signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        assert signal.getsignal(number) is handler


def test_the_last_fold_writes_the_report(
    discs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert cli.run([*fit_flags(discs, run), "--fold", "0"]) == 0
    assert not (run / "report.html").exists()
    (run / "report.html").write_text("of a part of the run")
    assert cli.run([*fit_flags(discs, run), "--fold", "1"]) == 0
    page = (run / "report.html").read_bytes()
    assert b"of a part of the run" not in page
    before = (run / "report.html").stat().st_mtime_ns
    assert cli.run(fit_flags(discs, run)) == 0
    assert (run / "report.html").stat().st_mtime_ns == before
    told = capsys.readouterr().err
    assert "labels: folders (3 classes: " in told
    collection = json.loads((run / "summary.json").read_bytes())["collection"]
    assert collection in told
    assert collection.encode() in page


def test_balanced_accuracy_stands_beside_accuracy_of_uneven_classes(trained: fg.Run) -> None:
    for counts, told in (((100, 10), False), ((101, 10), True)):
        out = io.StringIO()
        per_class = SimpleNamespace(support=np.array(counts))
        run = SimpleNamespace(
            environment={},
            **{name: getattr(trained, name) for name in ("scores", "recipe", "seconds", "folder")},
            per_class=per_class,
        )
        tables.print_scores(Console(file=out, width=100), run)  # type: ignore[arg-type]
        said = "the largest class has 101 photos, the smallest 10" in " ".join(
            out.getvalue().split()
        )
        assert said == told


def test_a_finished_run_is_shown_while_its_photos_are_away(
    discs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, run = shutil.copytree(discs, tmp_path / "photos"), tmp_path / "run"
    assert cli.run([*fit_flags(photos, run), "--fold", "0"]) == 0
    photos.rename(tmp_path / "unmounted")
    assert cli.run(fit_flags(photos, run)) == 3  # there is still something to train
    assert cli.run(fit_flags(tmp_path / "unmounted", run)) == 0
    capsys.readouterr()
    for _ in range(2):
        assert cli.run(fit_flags(photos, run)) == 0
        out, told = capsys.readouterr()
        assert "is complete" in told
        assert "are away: no" in told
        assert "out-of-fold accuracy" in out
        photos.mkdir(exist_ok=True)  # the place to mount it to
    assert cli.run([*fit_flags(photos, run), "--epochs", "7"]) == 2


def test_commands_say_which_folds_answer(
    trained: fg.Run, discs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(trained.folder, tmp_path / "run")
    shutil.rmtree(run / "folds" / "1")
    for command in (["score", str(run)], ["labels", str(run)], ["report", str(run)]):
        assert cli.run(command) == 0
        assert (
            "2 of 3 folds are used: fold 1 is not trained, or was lost" in capsys.readouterr().err
        )
    assert cli.run(["predict", str(run), str(discs), "--out", str(tmp_path / "p.csv")]) == 0
    assert "2 of 3 folds are used" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_for_the_output_is_an_error_in_words() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "fieldguide", "recipe"], stdout=full, stderr=-1, check=False
        )
    assert done.returncode == 4
    assert done.stderr.startswith(b"error: the output cannot be written: No space left")
    assert b"Traceback" not in done.stderr and b"Exception ignored" not in done.stderr


def test_a_broken_torch_is_named(discs: Path, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('libtorch.so is gone', name='torch')")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = typed("fit", str(discs), "--out", str(tmp_path / "run"), PYTHONPATH=path)
    assert done.returncode == 4
    assert b"error: `torch` cannot be imported: libtorch.so is gone" in done.stderr
    assert b"Traceback" not in done.stderr


QUICK = [
    ("--help", 0, "Turn a folder of photographs"),
    ("fit --help", 0, "--backbone-rate"),
    ("predict --help", 0, "--coverage"),
    ("submit --help", 0, "(stem). auto: the first of them that fits the sample;"),
    ("soup --help", 0, "--batch-norm"),
    ("merge --help", 0, "statistics are re-estimated on them and accuracies printed."),
    ("save --help", 0, "--combine"),
    ("score --help", 0, "--per-class"),
    ("labels --help", 0, "--photos-root"),
    ("--version", 0, "0."),
    ("recipe reference", 0, "resnest200e"),
    ("fitt", 2, '"fit"'),
    ("submit RUN VAL --submission s.csv", 2, "--sample FILE"),
    ("submit RUN VAL --sample s.csv --columns a,b", 2, "not both"),
    ("merge RUN VAL --out m.safetensors", 2, "fieldguide soup RUN"),
    ("fit x --out y --batchsize 3", 2, "--batch-size"),
    ("fit x --out y --epochs 0", 2, "`epochs` = 0"),
    ("fit x --out y --backbone resnet81", 2, "resnet18"),
    ("fit x --out y --recipe refrence", 2, "`reference`"),
    ("fit x --out y --weights gone.pth", 2, "gone.pth"),
    ("fit x --out y --precision=fp16", 2, "`precision` = 'fp16': should be 'float32', 'bfloat16'"),
    ("fit x --out y --size=large", 2, "`size` = 'large': should be a valid integer"),
    ("fit x --out y --mean=0,0", 2, "--mean = '0,0': has too few values"),
    ("fit x --out y --size=200000", 2, "should be less than or equal to 4096"),
    ("fit x --out y --mean=300,2,3", 2, "not between 0 and 1"),
    ("fit x --out y --head=foo", 2, "`head` = 'foo': should be 'linear', 'se' or 'attention'"),
    ("fit x --out y --watch-val", 2, "--no-watch-val"),
    ("check no-such-folder", 3, "no-such-folder"),
    ("predict RUN VAL --sets adaptive", 2, "--sets has no effect"),
    ("predict RUN VAL --sets split-per-class", 2, "--sets has no effect"),
    ("predict RUN VAL --unknown 0", 2, "--unknown = 0.0 is not between 0 and 1"),
    ("predict RUN VAL --right 95", 2, "--right = 95.0 is not between 0 and 1"),
    ("predict RUN VAL --rank auto", 2, "--rank auto needs --right"),
    ("predict RUN VAL --right 0.9 --no-calibrated", 2, "--right needs calibrated"),
    ("predict RUN VAL --coverage 0", 2, "not between 0 and 1"),
    ("predict RUN VAL --coverage 1", 2, "not between 0 and 1"),
    ("predict RUN VAL --coverage nan", 2, "not between 0 and 1"),
    ("predict RUN VAL --coverage 0.9 --no-calibrated", 2, "--no-calibrated"),
    ("predict RUN VAL --top 0", 2, "--top is below 1"),
    ("predict RUN VAL --views flips,tilts", 2, "`tilts`"),
    ("predict RUN VAL --batch-size 0", 2, "--batch-size is below 1"),
    ("predict RUN VAL --workers -2", 2, "`workers`"),
    ("predict RUN VAL --precision fp16", 2, "--precision"),
    ("predict RUN VAL --out TABLE", 2, "this file exists"),
    ("predict RUN VAL --out TABLE --coverage 0.9", 2, "this file exists"),
    ("predict RUN VAL --out VAL", 2, "this is a folder"),
    ("predict RUN VAL --out GONE/p.csv", 4, "no such folder"),
    ("predict RUN GONE", 3, "no such file or folder"),
    ("predict RUN VAL --root VAL", 2, "`root` is for tables and lists"),
    ("predict RUN VAL/blue/020.jpg --no-recursive", 2, "`recursive` is for folders"),
    ("predict SAVED VAL --combine soup", 2, "--combine is for runs"),
    ("predict SAVED VAL --photos-root VAL", 2, "--photos-root is for runs"),
    ("predict VAL VAL", 2, "neither a run's folder, nor a classifier's"),
    ("predict RUN VAL --combine stok", 2, "did you mean `stock`?"),
    ("predict RUN VAL --toop 3", 2, "unknown option: --toop (did you mean --top?)"),
    ("predict RUN --overwrit VAL", 2, "(did you mean --overwrite?)"),
    ("predict RUN VAL --batch-sise=8", 2, "--batch-sise=8 (did you mean --batch-size?)"),
    ("predict RUN VAL --path-colum file", 2, "(did you mean --path-column?)"),
    ("predict RUN VAL --zzzzzz", 2, "unknown option: --zzzzzz\n\nhint:"),
    ("predict RUN VAL --zzzzzz", 2, "./NAME"),
    ("predict RUN VAL --submission IDS", 2, "type: fieldguide submit RUN VAL --sample IDS\n"),
    ("predict RUN --submission=IDS VAL", 2, "type: fieldguide submit RUN --sample=IDS VAL\n"),
    ("predict RUN VAL --columns a,b", 2, "type: fieldguide submit RUN VAL --columns a,b"),
    ("predict RUN VAL --id stem", 2, "type: fieldguide submit RUN VAL --id stem"),
    ("predict RUN VAL --zip", 2, "type: fieldguide submit RUN VAL --zip"),
    ("submit RUN VAL", 2, "needs either --sample or --columns"),
    ("submit RUN VAL --id stem", 2, "needs either --sample or --columns"),
    ("submit RUN VAL --sample s.csv --top 3", 2, "--top has no place"),
    ("submit RUN VAL --columns a,b --probabilities", 2, "--probabilities has no"),
    ("submit RUN VAL --columns a,b --coverage 0.9", 2, "--coverage has no"),
    ("submit RUN VAL --columns a,b --spreadsheet", 2, "--spreadsheet has no"),
    ("submit RUN VAL --columns id", 2, "not two names"),
    ("submit RUN VAL --columns a,b,c", 2, "not two names"),
    ("submit RUN VAL --columns a,b --sample s.csv", 2, "needs either --sample or --columns"),
    ("submit RUN VAL --columns a,b --zipp", 2, "(did you mean --zip?)"),
    ("submit RUN VAL --columns a,b --out TABLE", 2, "this file exists"),
    ("submit RUN VAL --columns a,b --out s.csv --zip", 2, "this file exists: s.csv.zip"),
    ("submit RUN VAL --sample IDS", 3, "1 without a photo: `gone`"),
    ("soup GONE", 2, "no run folder"),
    ("soup RUN --rule porridge", 2, "porridge"),
    ("soup RUN --anchor TABLE", 2, "--anchor"),
    ("soup UNFINISHED", 2, "2 of 3 folds are done"),
    ("merge GONE", 2, "`GONE`"),
    ("merge RUN UNFINISHED", 2, "`RUN` is a folder, and checkpoints are files"),
    ("merge RUN --out m.safetensors", 2, "--out is for checkpoints"),
    ("merge RUN --anchor TABLE", 2, "and type: fieldguide soup RUN --rule soup"),
    ("merge UNFINISHED", 2, "2 of 3 folds are done"),
    ("merge TABLE IDS --batch-norm average", 2, "`fieldguide soup RUN`"),
    ("merge TABLE IDS --out m.safetensors --rule greedy", 2, "--rule greedy is for runs"),
    ("merge TABLE IDS --out m.safetensors --size 64", 2, "--size is of no use without --photos"),
    ("merge TABLE IDS --out m.safetensors --workers 0", 2, "--workers is of no use"),
    ("merge TABLE IDS", 2, "--out merged.safetensors"),
    ("save RUN --out NEW --combine soop", 2, "did you mean `soup`?"),
    ("save RUN --out VAL", 2, "is there already"),
    ("save GONE --out NEW", 2, "no run folder"),
    ("labels GONE", 2, "no run folder"),
    ("labels RUN --out TABLE", 2, "this file exists"),
    ("score GONE", 2, "no run folder"),
    ("score RUN --label-column species", 2, "--label-column is for tables"),
    ("score RUN --batch-size 0", 2, "--batch-size is below 1"),
    ("score RUN GONE", 3, "GONE"),
]


@pytest.fixture(scope="module")
def quick(
    trained: fg.Run, parts: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[tuple[int, str]]:
    """What each of `QUICK` answers, in one other process, which never imports torch."""
    folder = tmp_path_factory.mktemp("quick")
    for name in ("TABLE", "s.csv.zip"):
        (folder / name).write_text("mine")
    (folder / "IDS").write_text("id,label\ngone,blue\n")
    shutil.copytree(trained.folder, folder / "UNFINISHED")
    for place in ("manifest.json", "folds/2/manifest.json"):
        (folder / "UNFINISHED" / place).unlink()
    (folder / "RUN").symlink_to(trained.folder)
    trained.classifier(0).save(folder / "SAVED")
    (folder / "VAL").symlink_to(parts / "val")
    before = sorted(folder.iterdir())
    script = (
        "import contextlib, io, json, sys\n"
        "from fieldguide.cli import run, terminal\n"
        "for command in json.load(sys.stdin):\n"
        "    terminal.stderr.file = terminal.stdout.file = said = io.StringIO()\n"
        "    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):\n"
        "        code = run(command.split())\n"
        "    assert not {'torch', 'timm', 'torchvision'} & set(sys.modules), command\n"
        "    print(json.dumps([code, said.getvalue()]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=json.dumps([command for command, _, _ in QUICK]),
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**os.environ, "COLUMNS": "200"},
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "TABLE").read_text() == "mine"
    assert sorted(folder.iterdir()) == before
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("number", range(len(QUICK)), ids=lambda number: QUICK[number][0])
def test_what_needs_no_torch_is_answered_without_it(
    number: int, quick: list[tuple[int, str]]
) -> None:
    _, code, said = QUICK[number]
    assert said in quick[number][1]
    assert "pydantic" not in quick[number][1]
    assert quick[number][0] == code


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
    scores, _, commands = said.out.partition("\nnext:\n")
    assert f"  fieldguide predict {tmp_path / 'run'} NEW-PHOTOS --out predictions.csv" in commands
    assert again.out.removeprefix(scores).startswith("unknown by classes left out, ")
    assert "--holdout" in again.err.replace("\n", " ")  # for photos that judge more than folds
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
    original, calls = steps.train_step, itertools.count()

    def step(*args: Any, **more: Any) -> object:
        if next(calls) == 5:
            os.kill(os.getpid(), number)
        return original(*args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", step)
        assert cli.run(fit_flags(discs, tmp_path / "run")) == code
    assert "the same command resumes" in capsys.readouterr().err
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


ODD = "bl\x1b[2Ju\ne\t"  # clears a screen where it is printed as it is


@pytest.fixture
def odd(discs: Path, tmp_path: Path) -> Path:
    """The discs, with a class and a file whose names hold control characters."""
    photos = shutil.copytree(discs, tmp_path / "photos")
    (photos / "blue").rename(photos / ODD)
    (photos / ODD / "b\x07d\n.jpg").write_bytes(b"")
    return photos


def test_control_characters_of_names_are_written_out(
    odd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["check", str(odd)]) == 0
    found = capsys.readouterr()
    run = tmp_path / "run"
    assert cli.run([*fit_flags(odd, run, epochs=1, warmup=0, replicas=1), "--fold=0"]) == 0
    capsys.readouterr()
    assert cli.run(["score", str(run), "--per-class"]) == 0
    scores = capsys.readouterr()
    assert "bl\\x1b[2Ju\\ne\\t/b\\x07d\\n.jpg: empty file" in found.out
    assert re.search(r"^ *bl\\x1b\[2Ju\\ne\\t +4 ", scores.out, re.MULTILINE)
    for text in (*found, *scores):
        assert all(each == "\n" or each.isprintable() for each in text)


def test_errors_write_control_characters_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["check", str(tmp_path / "no\x1b]0;title\x07")]) == 3
    said = capsys.readouterr().err
    assert "no\\x1b]0;title\\x07" in said
    assert "\x1b" not in said and "\x07" not in said


@pytest.mark.parametrize("text", ["plain", "é 猫 – × ‘x’", "[red]bold[/red]", "", "a b"])
def test_other_text_is_shown_as_it_is(text: str) -> None:
    assert terminal.shown(text) == text
    assert terminal.cell(text).plain == text


def test_a_cell_is_one_line_and_other_text_may_be_several() -> None:
    assert terminal.cell("a\nb\tc").plain == "a\\nb\\tc"
    assert terminal.shown("a\nb\tc\rd\x9be") == "a\nb\tc\\rd\\x9be"
    assert terminal.shown("94.4\N{NO-BREAK SPACE}%") == "94.4 %"


def test_tables_that_go_to_a_file_are_not_cut_to_a_screen(odd: Path, tmp_path: Path) -> None:
    long = "-".join(["name"] * 20)
    (odd / ODD).rename(odd / long)
    done = typed("check", str(odd), COLUMNS="60")
    assert done.returncode == 0, done.stderr
    assert f"{long}/b\\x07d\\n.jpg" in done.stdout.decode()


def test_the_table_of_classifiers_fits_into_80_columns() -> None:
    names = ["fold 0", "mean of folds", "ensemble", "greedy-recal", "soup-recal"]
    figures: dict[str, Any] = {
        "accuracy": 0.994,
        "interval": (0.981, 1.0),
        "log_loss": 0.023,
        "calibration_error": 0.011,
        "unscaled_error": 0.2,
        "parameters": 682_000_000,  # ten folds of resnest200e
        "bytes": 2_728_000_000,
        "photos_per_second": 1234.5,
    }
    rows = [Worth(name, **figures) for name in names]
    rows[3] = replace(rows[3], note="because")
    said = io.StringIO()
    tables.print_worths(
        terminal.Terminal(file=said, width=80, markup=False), Worths(tuple(rows), 5000)
    )
    lines = said.getvalue().splitlines()[2:]
    assert len(lines) == 1 + len(rows) + 1
    names[3] += "*"
    for line, name in zip(lines[1:], names, strict=False):
        cells = ["99.4%", "98.1–100.0%", "0.023", "0.011", "682.0", "M", "1234", "2728", "MB"]
        assert line.split() == [*name.split(), *cells]
    assert lines[-1] == "* because"


@pytest.mark.parametrize("command", ["check", "recipe"])
def test_a_closed_pipe_ends_a_command_without_words(command: str, discs: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    arguments = [command, str(discs)] if command == "check" else [command]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "fieldguide", *arguments],
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        os.close(writer)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr and "rror" not in done.stderr


def test_names_that_a_stream_cannot_hold_are_written_out(discs: Path, tmp_path: Path) -> None:
    photos = shutil.copytree(discs, tmp_path / "photos")
    (photos / "blue").rename(photos / "Bläuling")
    (photos / "Bläuling" / "猫.jpg").write_bytes(b"")
    done = typed("check", str(photos), PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert b"Bl\\xe4uling/\\u732b.jpg: empty file" in done.stdout


@pytest.mark.parametrize("name", ["TERM=dumb", "PYTHONIOENCODING=cp1252", "LC_ALL=C", "COLUMNS=40"])
def test_odd_terminals_get_plain_text(name: str) -> None:
    key, _, value = name.partition("=")
    done = typed("recipe", "reference", **{key: value})
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


def test_signals_at_once_are_one_and_a_later_one_ends_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended: list[int] = []
    monkeypatch.setattr("os._exit", ended.append)
    with fitting.watching() as watcher:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert not ended
        with pytest.raises(Stopped) as error:
            watcher().check_stop()
        assert error.value.exit_code == 128 + signal.SIGTERM
        monkeypatch.setattr(fitting, "SAME_SIGNAL", 0.0)
        signal.raise_signal(signal.SIGINT)
        assert ended == [128 + signal.SIGINT]
