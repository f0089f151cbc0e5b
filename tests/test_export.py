"""Exported models: equal to the run, refused where they are not, and answering without torch."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from conftest import Answer
from huggingface_hub import ModelCard
from PIL import Image
from shell import table
from timm.data import create_transform, resolve_data_config

import fieldguide as fg
from fieldguide.analysis import conformal, unknown
from fieldguide.errors import ResourceError, UsageError
from fieldguide.photos.decoding import square
from fieldguide.predict import inference, onnx_graph
from fieldguide.predict.card import Architecture, Card, OutOfFold
from fieldguide.predict.classifier import Classifier
from fieldguide.predict.exported import ONNX, Exported
from fieldguide.predict.model import Machine
from fieldguide.study import hub, model_card
from fieldguide.study.export import export

FLOAT = Machine("cpu", workers=0, precision="float32")
ANY = Machine(workers=0)
QUESTIONS = ("--coverage", 0.9, "--unknown", 0.2, "--rank", "label", "--top", 3, "--probabilities")


@pytest.fixture(scope="module")
def ensemble(trained: fg.Run) -> Classifier:
    return trained.classifier("ensemble")


@pytest.fixture(scope="module")
def exported(trained: fg.Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ensemble's export, with features."""
    place = tmp_path_factory.mktemp("exported") / "model"
    export(trained, place, features=True)
    return place


@pytest.fixture
def photos(parts: Path, tmp_path: Path) -> list[Path]:
    """Good photos, and bad files between them."""
    good = sorted((parts / "val").glob("*/*.jpg"))
    (tmp_path / "text.jpg").write_text("no picture")
    Image.new("RGB", (9, 7), "red").save(tmp_path / "tiny.png")
    Image.new("LA", (400, 20), (90, 128)).save(tmp_path / "long.png")
    bad = [tmp_path / name for name in ("text.jpg", "tiny.png", "long.png", "gone.jpg")]
    return [each for pair in zip(good, 3 * bad, strict=False) for each in pair]


def drawn(backbone: str, head: str, classes: int = 3, members: int = 2) -> Classifier:
    """A classifier of drawn weights."""
    architecture = Architecture(
        backbone, head, classes, 32, 37, 0, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), "bicubic",
        "refuse", "bfloat16", "channels_last",
    )  # fmt: skip
    weights = []
    for seed in range(members):
        torch.manual_seed(seed)
        state = inference.template(architecture).state_dict()
        for tensor in state.values():
            if tensor.is_floating_point():
                tensor.mul_(torch.rand_like(tensor) + 0.5).add_(0.02 * torch.rand_like(tensor))
        weights.append({name: tensor.clone() for name, tensor in state.items()})
    rng = np.random.default_rng(0)
    scores, numbers = rng.random(40), rng.integers(0, members, 40)
    card = Card(
        architecture, tuple(map(str, range(classes))), tuple(f"fold {k}" for k in range(members)),
        "ensemble", 1.7, "apache-2.0", {}, {},
    )  # fmt: skip
    known = OutOfFold(scores, scores, rng.integers(0, classes, 40), numbers)
    return Classifier(card, tuple(weights), known)


def saved(classifier: Classifier, folder: Path, **asked: Any) -> Exported:
    graph = onnx_graph.build(classifier, **asked)
    (folder / ONNX).write_bytes(graph.SerializeToString())
    return Exported.load(folder / ONNX)


# --- answers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["ensemble", "logits", "geometric", "soup", "fold-1"])
def test_a_table_by_the_export_is_the_runs(
    trained: fg.Run, photos: list[Path], tmp_path: Path, command: Callable[..., Answer], way: str
) -> None:
    made = command("export", trained.folder, "--combine", way, "--out", tmp_path / "model")
    assert made.code == 0, made.err
    assert "logits differ from the run's by at most" in made.out
    listed = tmp_path / "photos.txt"
    listed.write_text("\n".join(map(str, photos)))
    own, others = tmp_path / "own.csv", tmp_path / "others.csv"
    plain = ("--combine", way, "--precision", "float32", "--device", "cpu")
    assert command("predict", trained.folder, listed, "--out", own, *plain, *QUESTIONS).code == 0
    done = command("predict", tmp_path / "model", listed, "--out", others, *QUESTIONS)
    assert done.code == 0, done.err
    before, after = table(own), table(others)
    assert (
        [row["path"] for row in before] == [row["path"] for row in after] == list(map(str, photos))
    )
    for row, other in zip(before, after, strict=True):
        for name, value in row.items():
            if name.startswith("p:") or "confidence" in name or name == "familiarity":
                assert (value == "") == (other[name] == "")
                assert float(value or 0) == pytest.approx(float(other[name] or 0), abs=2e-5)
            else:
                assert other[name] == value, name


def test_a_file_without_its_folder_answers_too(
    exported: Path, photos: list[Path], tmp_path: Path
) -> None:
    alone = tmp_path / "alone.onnx"
    alone.write_bytes((exported / ONNX).read_bytes())
    found = Exported.load(alone).predict(photos, machine=ANY)
    kept = Exported.load(exported).predict(photos, machine=Machine(workers=2, batch_size=3))
    np.testing.assert_allclose(found.probabilities, kept.probabilities, atol=1e-6)
    assert found.status == kept.status


def test_pictures_of_any_size_are_prepared_in_the_graph(
    ensemble: Classifier, exported: Path
) -> None:
    model = Exported.load(exported)
    for number, sides in enumerate([(60, 45), (45, 60), (37, 37), (20, 400), (333, 21), (64, 64)]):
        noise = np.random.default_rng(number).integers(0, 256, (4, 5, 3), dtype=np.uint8)
        picture = Image.fromarray(noise).resize(sides, Image.Resampling.BICUBIC)
        (found, *_), logits = model.run([np.asarray(picture)])
        own = ensemble.predict(picture, machine=FLOAT).probabilities[0]
        np.testing.assert_allclose(found, own, atol=0.01)  # a level in a few pixels
        np.testing.assert_allclose(model.probabilities(logits)[0], found, atol=1e-6)


def test_features_are_what_the_last_layer_sees(exported: Path, ensemble: Classifier) -> None:
    session = Exported.load(exported)._session
    assert [each.name for each in session.get_outputs()] == ["probabilities", "logits", "features"]
    picture = np.random.default_rng(0).integers(0, 256, (2, 50, 40, 3), dtype=np.uint8)
    logits, features = session.run(["logits", "features"], {"image": picture})
    for member, weights in enumerate(ensemble.members):
        by_hand = features[:, member] @ weights["head.linear.weight"].numpy().T
        by_hand += weights["head.linear.bias"].numpy()
        np.testing.assert_allclose(logits[:, member], by_hand, atol=1e-4)


@pytest.mark.parametrize(
    ("backbone", "head"),
    [
        ("test_resnet", "se"),
        ("test_resnet", "attention"),
        ("test_convnext", "linear"),
        ("test_efficientnet", "linear"),
        ("test_nfnet", "linear"),  # it computes with its weights, so each member is exported
    ],
)
def test_networks_and_heads_export_equal(backbone: str, head: str, tmp_path: Path) -> None:
    classifier = drawn(backbone, head)
    model = saved(classifier, tmp_path)
    own = classifier.card.architecture
    rng = np.random.default_rng(1)
    pictures = [rng.integers(0, 256, (50, 61, 3), dtype=np.uint8) for _ in range(5)]
    squares = [square(each, own.size, own.eval_resize, own.interpolation) for each in pictures]
    shown = [each[2:34, 2:34] for each in squares]  # 37 to 32 pixels: half of 5 is 2
    expected = inference.logits_of(own, classifier.members, shown)
    for size in (1, 2, 5):
        probabilities, logits = model.run(squares[:size])
        largest = np.abs(expected).max()
        np.testing.assert_allclose(logits, expected[:, :size], atol=1e-5 * (largest + 1))
        together = classifier.probabilities(expected)[:size]
        np.testing.assert_allclose(probabilities, together, atol=1e-5)
    assert np.abs(expected[0] - expected[1]).max() > 1e-3  # the members differ


def test_predicting_imports_no_torch(exported: Path, parts: Path, tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "for name in ('torch', 'torchvision', 'timm'):\n"
        "    sys.modules[name] = None\n"
        "from fieldguide import cli\n"
        f"code = cli.run(['predict', {str(exported)!r}, {str(parts / 'val')!r}, '--out',"
        f" {str(tmp_path / 'new.csv')!r}, '--coverage', '0.9'])\n"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(table(tmp_path / "new.csv")) == len(list((parts / "val").glob("*/*.jpg")))


def test_what_an_export_cannot_do_is_refused(
    exported: Path, photos: list[Path], tmp_path: Path, command: Callable[..., Answer]
) -> None:
    for flags, said in (
        (("--device", "cuda"), "runs on the CPU"),
        (("--precision", "bfloat16"), "computes in float32"),
        (("--views", "flips"), "one view"),
        (("--combine", "soup"), "--combine"),
    ):
        done = command("predict", exported, photos[0], "--out", tmp_path / "new.csv", *flags)
        assert done.code == 2
        assert said in done.err
        assert not (tmp_path / "new.csv").exists()


# --- what it says of itself -----------------------------------------------------------------------


def test_the_example_on_the_card_runs_as_it_stands(
    exported: Path,
    photos: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    ensemble: Classifier,
) -> None:
    example = (exported / "README.md").read_text().split("```python\n")[1].split("```")[0]
    (tmp_path / ONNX).write_bytes((exported / ONNX).read_bytes())
    (tmp_path / "photo.jpg").write_bytes(photos[0].read_bytes())
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "example", "exec"), {})
    best, *_ = capsys.readouterr().out.splitlines()
    found = ensemble.predict(photos[0], machine=FLOAT)
    assert best.split("  ")[1] == found.labels[0]
    assert float(best.split("  ")[0]) == pytest.approx(found.confidences[0], abs=0.02)


def test_the_card_is_read_back_with_its_intervals(exported: Path, trained: fg.Run) -> None:
    card = ModelCard((exported / "README.md").read_text())
    first = card.data.eval_results[0]
    assert first.metric_type == "accuracy"
    assert first.metric_value == pytest.approx(trained.scores.accuracy)
    low, high = trained.scores.interval
    assert first.metric_args == pytest.approx({"confidence": 0.95, "low": low, "high": high})


def test_model_json_says_what_another_program_needs(exported: Path, trained: fg.Run) -> None:
    told = json.loads((exported / "model.json").read_text())
    assert told["classes"] == list(trained.classes)
    assert told["scores"][0]["value"] == pytest.approx(trained.scores.accuracy)
    assert [row["class"] for row in told["per_class"]] == list(trained.classes)
    assert told["thresholds"]["sets"] is None  # an ensemble has no single one
    assert told["proof"]["difference"] <= told["proof"]["tolerance"]
    assert told["out_of_fold"]["precision"] == "float32"
    assert told["out_of_fold"]["probability"] < 1e-4
    assert not {"cache", "cluster"} & told["origin"]["recipe"].keys()


def test_an_export_holds_no_path_of_this_machine_and_is_the_same_each_time(
    trained: fg.Run, tmp_path: Path
) -> None:
    contents = []
    for name in ("first", "second"):
        export(trained, tmp_path / name, combine="soup")
        contents.append({each.name: each.read_bytes() for each in (tmp_path / name).iterdir()})
    assert contents[0] == contents[1]
    for content in contents[0].values():
        assert str(Path.cwd()).encode() not in content
        assert b"site-packages" not in content
        assert str(trained.folder.parent).encode() not in content


def test_hostile_names_stay_text(trained: fg.Run, parts: Path, tmp_path: Path) -> None:
    hostile = ("<img src=x onerror=alert(1)>", "a|b\n# c", "[x](javascript:1) `y` ; rm -rf /")
    classifier = trained.classifier("fold-0")
    named = replace(classifier, card=replace(classifier.card, classes=hostile))
    export(named, tmp_path / "model", photos=parts / "val")
    text = (tmp_path / "model" / "README.md").read_text()
    assert "<img" not in text
    assert "\n# c" not in text
    model = Exported.load(tmp_path / "model")
    assert model.classes == hostile
    assert json.loads((tmp_path / "model" / "model.json").read_text())["classes"] == list(hostile)
    kept = model._session.get_modelmeta().custom_metadata_map["classes"]
    assert json.loads(kept) == list(hostile)
    assert model_card._text("<b>a|b\n[c](d)") == "&lt;b&gt;a\\|b \\[c\\](d)"


@pytest.mark.parametrize("n", [1, 7, 19, 40, 399])
def test_thresholds_draw_the_same_sets_and_mark_the_same_photos(n: int) -> None:
    rng = np.random.default_rng(n)
    known, members = rng.random(n), np.zeros(n, int)
    scores = np.concatenate([known, rng.random(50)])[None, :, None]
    for coverage in (0.5, 0.9, 0.95):
        limit = conformal.threshold(known, coverage)
        sets = conformal.prediction_sets(scores, known, members, members, coverage=coverage)
        np.testing.assert_array_equal(
            sets[:, 0], scores[0, :, 0] <= (np.inf if limit is None else limit)
        )
    for alarm in (0.02, 0.05, 0.5):
        limit = unknown.threshold(known, alarm)
        marked = unknown.familiarity(scores[:, :, 0], known, members) <= alarm
        np.testing.assert_array_equal(
            marked, scores[0, :, 0] > (np.inf if limit is None else limit)
        )


# --- timm -----------------------------------------------------------------------------------------


def test_timm_reads_one_network_with_our_sizes_and_names(
    trained: fg.Run, photos: list[Path], tmp_path: Path, command: Callable[..., Answer]
) -> None:
    place = tmp_path / "model"
    done = command("export", trained.folder, "--to", "hub", "--combine", "soup", "--out", place)
    assert done.code == 0, done.err
    model = timm.create_model(f"local-dir:{place}", pretrained=True).eval()
    config = resolve_data_config({}, model=model)
    own = trained.classifier("soup")
    assert list(config["input_size"]) == [3, 32, 32]
    assert list(model.pretrained_cfg["label_names"]) == list(own.classes)
    shown = create_transform(**config)
    with Image.open(photos[0]) as file, torch.inference_mode():
        logits = model(shown(file.convert("RGB"))[None])
    found = logits.softmax(1).numpy()[0]
    np.testing.assert_allclose(
        found, own.predict(photos[0], machine=FLOAT).probabilities[0], atol=0.01
    )


def test_timms_form_is_refused_for_several_networks_and_other_heads(
    trained: fg.Run, tmp_path: Path, command: Callable[..., Answer]
) -> None:
    done = command("export", trained.folder, "--to", "hub", "--out", tmp_path / "model")
    assert done.code == 2
    assert "--combine soup" in done.err
    with pytest.raises(UsageError, match="linear heads"):
        hub.require_one(drawn("test_resnet", "se", members=1))
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("backbone", ["test_convnext", "test_efficientnet", "test_nfnet"])
def test_other_networks_are_timms_too(backbone: str, tmp_path: Path) -> None:
    classifier = drawn(backbone, "linear", members=1)
    hub.write(tmp_path, classifier)
    noise = np.random.default_rng(0).integers(0, 256, (3, 37, 37, 3), dtype=np.uint8)
    hub.prove(tmp_path, classifier, list(noise))
    (weights,) = classifier.members
    changed = replace(
        classifier, members=({**weights, "head.linear.bias": weights["head.linear.bias"] + 1},)
    )
    with pytest.raises(ResourceError, match="differs from the run's"):
        hub.prove(tmp_path, changed, list(noise))


# --- 8 bits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["ensemble", "soup"])
def test_in_8_bits_it_is_smaller_calibrated_anew_and_compared(
    trained: fg.Run, parts: Path, tmp_path: Path, command: Callable[..., Answer], way: str
) -> None:
    done = command(
        "export", trained.folder, "--int8", "--combine", way, "--out", tmp_path / "narrow"
    )
    assert done.code == 0, done.err
    assert "in 8 bits" in done.out
    assert command("export", trained.folder, "--combine", way, "--out", tmp_path / "wide").code == 0
    narrow, wide = (Exported.load(tmp_path / name) for name in ("narrow", "wide"))
    sizes = [(tmp_path / name / ONNX).stat().st_size for name in ("narrow", "wide")]
    assert sizes[0] < 0.6 * sizes[1]  # a network so small is half metadata
    found, own = (each.predict(parts / "val", machine=ANY) for each in (narrow, wide))
    assert np.abs(found.probabilities - own.probabilities).max() < 0.3
    assert np.abs(found.probabilities - own.probabilities).max() > 0
    assert np.mean([a == b for a, b in zip(found.labels, own.labels, strict=True)]) >= 0.75
    told = json.loads((tmp_path / "narrow" / "model.json").read_text())["int8"]["compared"]
    assert told["where"] == "outside all folds"
    assert told["recalibrated"] == (way == "ensemble")
    assert (narrow.card.temperature != wide.card.temperature) == (way == "ensemble")
    targets = [path.parent.name for path in sorted((parts / "val").glob("*/*.jpg"))]
    right = np.mean([a == b for a, b in zip(found.labels, targets, strict=True)])
    assert told["accuracy"] == pytest.approx(right)
    session = narrow._session  # the graph's own probabilities are those that the card says
    squares = [
        narrow.square(narrow.card.architecture.decoding(path))
        for path in sorted((parts / "val").glob("*/*"))
    ]
    (graph,) = session.run(["probabilities"], {"image": np.stack(squares)})
    np.testing.assert_allclose(graph, found.probabilities, atol=1e-5)


def test_8_bits_of_a_saved_classifier_cannot_be_judged(
    ensemble: Classifier, parts: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="8 bits"):
        export(ensemble, tmp_path / "model", photos=parts / "val", int8=True)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("way", ["ensemble", "soup", "fold-1"])
def test_without_photos_outside_8_bits_are_judged_out_of_fold_or_not_at_all(
    own: Path, parts: Path, tmp_path: Path, command: Callable[..., Answer], way: str
) -> None:
    moved = tmp_path / "parts"  # without `val`
    shutil.copytree(parts / "train", moved / "train")
    place = tmp_path / "model"
    asked = ("export", own, "--photos-root", moved, "--int8", "--combine", way, "--out", place)
    done = command(*asked)
    assert done.code == 0, done.err
    told = json.loads((place / "model.json").read_text())["int8"]["compared"]
    text = (place / "README.md").read_text()
    assert "convolutions in 8 bits" in text
    if way == "soup":
        assert told is None
        assert "what 8 bits cost is unknown" in done.err
        assert "what that costs is unknown" in text
        return
    assert told["where"] == "out of fold"
    assert told["photos"] == sum(
        len(fold.test) for fold in fg.Run(own).folds if way in {"ensemble", f"fold-{fold.index}"}
    )
    assert abs(told["accuracy"] - told["float_accuracy"]) == pytest.approx(
        abs(told["difference"][0])
    )


def test_8_bits_and_timms_form_do_not_go_together(
    trained: fg.Run, tmp_path: Path, command: Callable[..., Answer]
) -> None:
    flags = ("--to", "hub", "--combine", "soup", "--int8", "--out", tmp_path / "model")
    assert command("export", trained.folder, *flags).code == 2
    with pytest.raises(UsageError, match="float"):
        export(trained, tmp_path / "model", combine="soup", hub=True, int8=True)


def test_crops_and_tones_are_told(trained: fg.Run, parts: Path, tmp_path: Path) -> None:
    classifier = trained.classifier("fold-0")
    own = replace(classifier.card.architecture, tone="percentile 10,900")
    changed = replace(classifier, card=replace(classifier.card, architecture=own))
    export(changed, tmp_path / "model", photos=parts / "val")
    told = json.loads((tmp_path / "model" / "model.json").read_text())["preprocessing"]
    assert "percentile 10,900" in told["before_the_graph"][0]
    assert "percentile 10,900" in (tmp_path / "model" / "README.md").read_text()
    card = replace(classifier.card, crop="square")
    assert "crops of photos (square)" in model_card._before(card)[0]
    assert model_card._before(classifier.card) == []


# --- what goes wrong ------------------------------------------------------------------------------


@pytest.fixture
def wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exporter that changes a weight."""
    own = onnx_graph._with_weights

    def spoilt(graph: Any, weights: Any) -> Any:
        changed = dict(weights)
        changed["head.linear.bias"] = changed["head.linear.bias"] + 0.01
        return own(graph, changed)

    monkeypatch.setattr(onnx_graph, "_with_weights", spoilt)


def test_a_file_that_differs_is_refused_and_nothing_is_left(
    trained: fg.Run, wrong: None, tmp_path: Path, command: Callable[..., Answer]
) -> None:
    done = command("export", trained.folder, "--out", tmp_path / "model")
    assert done.code == ResourceError.exit_code
    assert "the exported file differs from the run: logits by up to 0.01" in done.err
    assert not list(tmp_path.iterdir())


def test_an_unfinished_run_and_a_taken_place_are_refused(
    unfinished: Path, trained: fg.Run, tmp_path: Path, command: Callable[..., Answer]
) -> None:
    done = command("export", unfinished, "--out", tmp_path / "new")
    assert done.code == 2
    assert "not complete" in done.err
    (tmp_path / "taken").write_text("mine")
    assert command("export", trained.folder, "--out", tmp_path / "taken").code == 2
    assert command("export", tmp_path, "--out", tmp_path / "new").code == 2
    assert command("export", trained.folder, "--combine", "sup", "--out", tmp_path / "n").code == 2
    assert (tmp_path / "taken").read_text() == "mine"


def test_a_saved_classifier_is_proved_on_photos_that_are_named(
    ensemble: Classifier, parts: Path, tmp_path: Path, command: Callable[..., Answer]
) -> None:
    ensemble.save(tmp_path / "kept")
    asked = ("export", tmp_path / "kept", "--out", tmp_path / "model")
    assert "--photos" in command(*asked).err
    assert "for runs" in command(*asked, "--combine", "soup").err
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.jpg").write_text("no picture")
    none = command(*asked, "--photos", tmp_path / "empty")
    assert none.code == 3
    assert "none of 1 photos can be read" in none.err
    assert not (tmp_path / "model").exists()
    assert command(*asked, "--photos", parts / "val").code == 0


def test_missing_packages_are_named(
    trained: fg.Run,
    exported: Path,
    photos: list[Path],
    tmp_path: Path,
    command: Callable[..., Answer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    done = command("export", trained.folder, "--out", tmp_path / "model")
    assert done.code == ResourceError.exit_code
    assert "fieldguide[onnx]" in done.err
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    done = command("predict", exported, photos[0], "--out", tmp_path / "new.csv")
    assert done.code == ResourceError.exit_code
    assert "onnxruntime" in done.err


def test_a_damaged_or_foreign_file_is_refused(exported: Path, tmp_path: Path) -> None:
    content = bytearray((exported / ONNX).read_bytes())
    content[len(content) // 2] ^= 1
    for each in exported.iterdir():
        (tmp_path / each.name).write_bytes(each.read_bytes())
    (tmp_path / ONNX).write_bytes(content)
    with pytest.raises(ResourceError, match="SHA-256 differs"):
        Exported.load(tmp_path)
    (tmp_path / "half.onnx").write_bytes(content[:1000])
    with pytest.raises(ResourceError, match="damaged"):
        Exported.load(tmp_path / "half.onnx")
    (tmp_path / "kept").mkdir()
    with pytest.raises(UsageError, match="no exported model"):
        Exported.load(tmp_path / "kept")


def test_another_programs_file_is_refused(tmp_path: Path) -> None:
    onnx = onnx_graph.require_onnx()
    text = (
        '<ir_version: 10, opset_import: ["" : 20]>\ng (float[n] x) => (float[n] y) { y = Abs (x) }'
    )
    onnx.save(onnx.parser.parse_model(text), tmp_path / "abs.onnx")
    with pytest.raises(UsageError, match="not exported by fieldguide"):
        Exported.load(tmp_path / "abs.onnx")
