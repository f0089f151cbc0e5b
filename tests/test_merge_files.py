import json
import math
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from reference_transforms import evaluation_transform
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fieldguide.errors import DataError, UsageError
from fieldguide.network.heads import HEADS
from fieldguide.network.network import build, weights_of
from fieldguide.photos.augment import normalise
from fieldguide.photos.catalog import Catalog
from fieldguide.photos.folders import scan, scan_unlabelled
from fieldguide.predict import inference, merge_files
from fieldguide.predict.merge_files import (
    Barrier,
    Checkpoint,
    Merged,
    architecture,
    merge,
    read,
    read_one,
)
from fieldguide.predict.model import Machine

HERE = Machine(device="cpu", workers=0)

Files = Callable[..., list[Path]]


def saved(path: Path, weights: dict[str, Tensor]) -> Path:
    save_file({name: tensor.clone().contiguous() for name, tensor in weights.items()}, path)
    return path


def small(seed: int) -> dict[str, Tensor]:
    """A network in little: a convolution, a batch norm with a counter, a classifier."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "conv1.weight": torch.randn(8, 3, 3, 3, generator=generator),
        "bn1.weight": torch.rand(8, generator=generator),
        "bn1.running_mean": torch.randn(8, generator=generator),
        "bn1.running_var": torch.rand(8, generator=generator),
        "bn1.num_batches_tracked": torch.tensor(seed),
        "fc.weight": torch.randn(5, 8, generator=generator),
        "fc.bias": torch.randn(5, generator=generator),
    }


def near(start: dict[str, Tensor], seed: int, step: float = 0.1) -> dict[str, Tensor]:
    """What a fine-tuning does: every tensor moves by a share of its length."""
    noise = small(seed)
    return {
        name: tensor + step * noise[name] if tensor.is_floating_point() else tensor + seed
        for name, tensor in start.items()
    }


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """Writes weights as `a.safetensors`, `b.safetensors`, …."""

    def write_all(*several: dict[str, Tensor]) -> list[Path]:
        names = [tmp_path / f"{letter}.safetensors" for letter in "abcdef"]
        return [saved(path, weights) for path, weights in zip(names, several, strict=False)]

    return write_all


@pytest.fixture
def relatives(files: Files) -> tuple[Checkpoint, ...]:
    return read(files(*(near(small(0), seed) for seed in (1, 2, 3))))


@pytest.fixture
def anchor(tmp_path: Path) -> Checkpoint:
    return read_one(saved(tmp_path / "anchor.safetensors", small(0)))


def assert_equal(found: Any, expected: Any) -> None:
    torch.testing.assert_close(dict(found), dict(expected), rtol=0, atol=0)


def refusal(action: Callable[[], object]) -> UsageError:
    with pytest.raises(UsageError) as caught:
        action()
    assert caught.value.exit_code == 2
    return caught.value


@pytest.mark.parametrize("rule", merge_files.RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_same_checkpoint_twice_is_itself_bit_for_bit(
    rule: merge_files.Rule, dtype: torch.dtype, files: Files, anchor: Checkpoint
) -> None:
    weights = {n: t.to(dtype) if t.is_floating_point() else t for n, t in small(1).items()}
    copies = read(files(weights, weights))
    merged = merge(copies, rule, anchor)
    assert_equal(merged.weights, weights)
    assert merged.cosine == pytest.approx(1)
    assert any("hold the same weights" in note for note in merged.notes)


def test_a_soup_is_the_mean_and_stock_lies_between_it_and_the_anchor(
    relatives: tuple[Checkpoint, ...], anchor: Checkpoint
) -> None:
    soup = merge(relatives, "soup", anchor)
    stock = merge(relatives, "stock", anchor)
    for name in ("conv1.weight", "fc.weight", "bn1.weight"):
        mean = torch.stack([copy.weights[name] for copy in relatives]).mean(0)
        torch.testing.assert_close(soup.weights[name], mean)
        t = soup.moves[name].ratio
        assert 0 <= t < 1
        between = t * mean + (1 - t) * anchor.weights[name]
        torch.testing.assert_close(stock.weights[name], between)
    for name in ("bn1.running_mean", "bn1.running_var"):
        assert name not in stock.moves
        assert torch.equal(stock.weights[name], soup.weights[name])
    assert soup.moves == stock.moves
    assert soup.angle == pytest.approx(float(np.mean([move.angle for move in soup.moves.values()])))
    assert soup.cosine > 0.9
    assert not [note for note in soup.notes if "unrelated" in note or "come from" in note]
    alone = merge(relatives, "soup")
    assert alone.moves == {}
    assert math.isnan(alone.angle) and math.isnan(alone.ratio)


def test_stock_needs_an_anchor(relatives: tuple[Checkpoint, ...]) -> None:
    error = refusal(lambda: merge(relatives, "stock"))
    assert "`stock` needs" in error.message
    assert "--anchor" in error.hint


def test_one_file_is_nothing_to_merge(files: Files) -> None:
    assert "1 checkpoint given" in refusal(lambda: read(files(small(1)))).message


@pytest.mark.parametrize(
    ("shapes", "said", "hint"),
    [
        ({"conv1.weight": (8, 3, 1, 1)}, "(8, 3, 3, 3) and (8, 3, 1, 1)", "one architecture"),
        ({"fc.weight": (7, 8)}, "`fc.weight` (5, 8) and (7, 8)", "the same classes"),
    ],
)
def test_other_shapes_are_refused_with_both_files(
    shapes: dict[str, tuple[int, ...]], said: str, hint: str, files: Files
) -> None:
    other = small(3) | {name: torch.ones(shape) for name, shape in shapes.items()}
    paths = files(small(1), small(2), other)
    error = refusal(lambda: read(paths))
    assert f"`{paths[0]}` and `{paths[2]}`" in error.message
    assert said in error.message and hint in error.hint


def test_other_tensors_are_refused_with_both_files(files: Files) -> None:
    without = {name: tensor for name, tensor in small(2).items() if name != "fc.bias"}
    paths = files(small(1), without | {f"odd.{n}": torch.ones(n) for n in range(5)})
    error = refusal(lambda: read(paths))
    assert f"`{paths[0]}` and `{paths[1]}` hold different tensors" in error.message
    assert "only the first has `fc.bias` (5,)" in error.message
    assert "only the second has `odd.0` (0,), `odd.1` (1,), `odd.2` (2,) and 2 more" in (
        error.message
    )


def test_a_prefix_that_alone_sets_names_apart_gives_way_to_the_first_files(files: Files) -> None:
    plain, other = small(0), near(small(0), 1)
    prefixed = {f"model.{name}": tensor for name, tensor in other.items()}
    merged = merge(read(files(plain, prefixed)), "soup")
    assert_equal(merged.weights, merge(read(files(plain, other)), "soup").weights)
    assert "begin with `model.`" in " ".join(merged.notes)
    assert merge(read(files(prefixed, plain)), "soup").weights.keys() == prefixed.keys()
    assert read(files(prefixed, prefixed))[1].weights.keys() == prefixed.keys()


def test_counters_that_a_file_lacks_begin_at_zero(files: Files) -> None:
    without = {n: t for n, t in small(4).items() if not n.endswith("tracked")}
    for order in ((small(3), without), (without, small(3))):
        merged = merge(read(files(*order)), "soup")
        counter = merged.weights["bn1.num_batches_tracked"]
        assert counter.dtype == torch.int64 and counter == 3


def test_values_that_are_not_finite_are_refused(files: Files) -> None:
    broken = small(2)
    broken["fc.weight"][0, 0] = torch.nan
    paths = files(small(1), broken)
    error = refusal(lambda: read(paths))
    assert f"`{paths[1]}`: `fc.weight` holds values that are not finite" in error.message


@pytest.mark.parametrize("kind", ["safetensors", "zip", "pickle"])
def test_half_precision_in_is_half_precision_out(kind: str, tmp_path: Path) -> None:
    paths = []
    for seed in (1, 2):
        weights = {f"module.{n}": t for n, t in near(small(0), seed).items()}
        weights["module.conv1.weight"] = weights["module.conv1.weight"].half()
        path = tmp_path / f"{seed}.{'safetensors' if kind == 'safetensors' else 'pth'}"
        if kind == "safetensors":
            saved(path, weights)
        else:
            content = {"epoch": 1, "state_dict": weights}
            torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
        paths.append(path)
    merged = merge(read(paths), "soup").weights
    assert merged["conv1.weight"].dtype == torch.float16
    assert merged["fc.weight"].dtype == torch.float32
    assert merged["bn1.num_batches_tracked"].dtype == torch.int64


def test_files_of_two_precisions_give_the_first_if_it_can_hold_all_and_say_so(files: Files) -> None:
    half = {n: t.half() if t.is_floating_point() else t for n, t in near(small(0), 1).items()}
    paths = files(half, near(small(0), 2))
    merged = merge(read(paths), "soup")
    assert merged.weights["fc.weight"].dtype == torch.float16
    said = f"`{paths[1]}` is stored in float32, `{paths[0]}` in float16"
    assert any(said in note for note in merged.notes)
    large = small(2) | {"bn1.running_var": torch.full((8,), 1e6)}
    error = refusal(lambda: merge(read(files(half, large)), "soup"))
    assert "`bn1.running_var` does not fit into float16" in error.message


def test_an_anchor_with_another_head_anchors_the_rest(
    relatives: tuple[Checkpoint, ...], tmp_path: Path
) -> None:
    content = small(0) | {"fc.weight": torch.ones(9, 8), "fc.bias": torch.ones(9)}
    other = read_one(saved(tmp_path / "anchor.safetensors", content))
    merged = merge(relatives, "stock", other)
    assert set(merged.moves) == {"conv1.weight", "bn1.weight"}
    assert_equal(
        {"fc.weight": merged.weights["fc.weight"]},
        {"fc.weight": merge(relatives, "soup").weights["fc.weight"]},
    )
    assert "averaged and not anchored: `fc.bias`, `fc.weight`" in merged.notes


@pytest.mark.parametrize("prefixed", ["copies", "anchor", "both"])
def test_fieldguides_prefix_is_seen_through_and_its_head_is_not_anchored(
    prefixed: str, files: Files, tmp_path: Path
) -> None:
    """Our own head began with random weights, which are nothing to be pulled to."""

    def ours(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            f"backbone.{n}" if n[:2] != "fc" else f"head.linear{n[2:]}": t
            for n, t in weights.items()
        }

    written, start = [near(small(0), seed) for seed in (1, 2)], small(0)
    written = [ours(weights) for weights in written] if prefixed != "anchor" else written
    start = ours(start) if prefixed != "copies" else start
    copies = read(files(*written))
    merged = merge(copies, "stock", read_one(saved(tmp_path / "s.safetensors", start)))
    front, head = ("", "fc") if prefixed == "anchor" else ("backbone.", "head.linear")
    assert set(merged.moves) == {f"{front}conv1.weight", f"{front}bn1.weight"}
    soup = merge(copies, "soup").weights
    assert torch.equal(merged.weights[f"{head}.weight"], soup[f"{head}.weight"])


def test_an_anchor_of_another_shape_is_refused(
    relatives: tuple[Checkpoint, ...], tmp_path: Path
) -> None:
    content = small(0) | {"conv1.weight": torch.ones(8, 3, 7, 7)}
    other = read_one(saved(tmp_path / "anchor.safetensors", content))
    error = refusal(lambda: merge(relatives, "stock", other))
    assert f"the anchor `{other.path}`" in error.message
    assert "`conv1.weight` (8, 3, 7, 7) and (8, 3, 3, 3)" in error.message


@pytest.mark.parametrize("start", [{"patch.weight": (3, 3)}, {"fc.weight": (9, 8)}])
def test_an_anchor_that_shares_nothing_to_be_pulled_to_is_refused(
    start: dict[str, tuple[int, int]], relatives: tuple[Checkpoint, ...], tmp_path: Path
) -> None:
    content = {name: torch.ones(shape) for name, shape in start.items()}
    other = read_one(saved(tmp_path / "anchor.safetensors", content))
    error = refusal(lambda: merge(relatives, "stock", other))
    assert "shares no tensor" in error.message and f"`{next(iter(start))}`" in error.message


def test_copies_that_do_not_come_from_the_anchor_are_named(
    relatives: tuple[Checkpoint, ...], tmp_path: Path
) -> None:
    other = read_one(saved(tmp_path / "anchor.safetensors", small(99)))
    notes = [n for n in merge(relatives, "stock", other).notes if "does not seem to come" in n]
    assert len(notes) == len(relatives)
    assert all(str(copy.path) in note for copy, note in zip(relatives, notes, strict=True))


def test_movements_without_a_common_direction_are_noted(files: Files, anchor: Checkpoint) -> None:
    there, back = near(small(0), 1, step=0.1), near(small(0), 1, step=-0.1)
    merged = merge(read(files(there, back)), "stock", anchor)
    assert merged.angle == pytest.approx(180, abs=0.1)
    assert any("mean angle 180°" in note for note in merged.notes)


def test_an_unrelated_network_is_named(files: Files) -> None:
    paths = files(near(small(0), 1), near(small(0), 2), small(50))
    merged = merge(read(paths), "soup")
    assert abs(merged.cosine) < 0.3
    (note,) = [note for note in merged.notes if "look like unrelated runs" in note]
    assert f"`{paths[2]}`" in note
    assert "(2 of 3 pairs are below 0.5)" in note


def test_classes_in_another_order_are_noticed_in_the_head(files: Files) -> None:
    one, other = near(small(0), 1), near(small(0), 2)
    other["fc.weight"] = other["fc.weight"].roll(1, dims=0)
    (note,) = merge(read(files(one, other)), "soup").notes
    assert "the heads of" in note and "another order" in note


def test_what_is_written_comes_back_with_its_record(
    relatives: tuple[Checkpoint, ...], tmp_path: Path
) -> None:
    merged = merge(relatives, "soup")
    record = {"rule": "soup", "files": ["ä.safetensors", 'quoted "b"'], "accuracy": 0.5}
    path = tmp_path / "m.safetensors"
    merge_files.write(path, merged, record)
    assert_equal(load_file(path), merged.weights)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt"
    assert json.loads(metadata["provenance"]) == record
    (length,) = struct.unpack("<Q", path.read_bytes()[:8])
    assert length % 8 == 0
    for number in range(4):  # safetensors' own writer orders entries by chance
        merge_files.write(tmp_path / f"{number}.safetensors", merged, record)
        assert (tmp_path / f"{number}.safetensors").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("old.safetensors", "is there already"),
        ("m.pth", "call it `m.safetensors`"),
        ("gone/m.safetensors", "there is no folder"),
    ],
)
def test_only_new_safetensors_in_a_folder_that_is_there_are_written(
    name: str, said: str, tmp_path: Path
) -> None:
    (tmp_path / "old.safetensors").write_bytes(b"precious")
    merged = Merged({"a": torch.ones(1)}, 1.0, {}, ())
    assert said in str(refusal(lambda: merge_files.write(tmp_path / name, merged, {})))
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"precious"]
    merge_files.require_free(tmp_path / "new.safetensors")


def checkpoint(weights: dict[str, Tensor]) -> Checkpoint:
    return Checkpoint(Path("a.safetensors"), weights, {n: t.dtype for n, t in weights.items()})


# One network for each name of a classifier.
@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "resnetv2_18",
        "legacy_seresnet18",
        "tresnet_m",
        "test_efficientnet",
        "test_convnext",
    ],
)
def test_timms_networks_answer_as_in_timm(name: str) -> None:
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=7).eval()
    copy = checkpoint(network.state_dict())
    found = architecture(copy, name)
    assert (found.head, found.classes) == ("linear", 7)
    ours = build(name, weights="none", head="linear", classes=7, dropout=0.0, seed=0).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        answer = torch.func.functional_call(ours, merge_files._in_network(copy.weights), (images,))
        torch.testing.assert_close(answer, network(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])  # one for each kind of block
def test_torchvisions_checkpoints_fit_as_they_are(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = getattr(torchvision.models, name)(weights=None, num_classes=4).eval()
    torch.save(model.state_dict(), tmp_path / "a.pth")
    torch.save(model.state_dict(), tmp_path / "b.pth")
    copies = read([tmp_path / "a.pth", tmp_path / "b.pth"])
    found = architecture(copies[0], name, size=64)
    assert found.classes == 4
    merged, before = merge(copies, "soup").weights, copies[0].weights
    model.load_state_dict(dict(merged))
    timm.create_model(name, num_classes=4).load_state_dict(dict(merged))
    assert_equal(merged, before)


@pytest.mark.parametrize("head", HEADS)
def test_fieldguides_heads_are_told_from_their_tensors(head: Any) -> None:
    network = build("test_resnet", weights="none", head=head, classes=6, dropout=0.0, seed=0)
    found = architecture(checkpoint(weights_of(network)), "test_resnet")
    assert (found.head, found.classes) == (head, 6)


def test_input_settings_are_the_backbones_unless_given() -> None:
    copy = checkpoint(timm.create_model("test_resnet", num_classes=3).state_dict())
    usual = architecture(copy, "test_resnet")
    assert (usual.size, usual.eval_resize) == (160, 168)
    half = architecture(copy, "test_resnet", size=80, mean=(0.1, 0.2, 0.3))
    assert (half.size, half.eval_resize) == (80, 84)
    assert (half.mean, half.std) == ((0.1, 0.2, 0.3), usual.std)
    error = refusal(lambda: architecture(copy, "test_resnet", size=80, eval_resize=79))
    assert "79 pixels are smaller" in error.message


def test_tensors_that_make_no_network_are_refused_by_name() -> None:
    assert "--backbone" in refusal(lambda: architecture(checkpoint(small(0)), None)).hint
    copy = checkpoint(timm.create_model("test_resnet", num_classes=3).state_dict())
    error = refusal(lambda: architecture(copy, "resnet18"))
    assert "`a.safetensors` does not fit `resnet18`" in error.message
    assert "it lacks `backbone.conv1.weight` (64, 3, 7, 7)" in error.message
    assert "it holds besides `backbone.conv1.0.weight`" in error.message
    assert "differs from it in `backbone.bn1.bias` (32,) and (64,)" in error.message
    headless = checkpoint(timm.create_model("test_resnet", num_classes=0).state_dict())
    error = refusal(lambda: architecture(headless, "test_resnet"))
    assert "has no classifier" in error.message and "`fc.weight`" in error.message


SMALL: dict[str, Any] = {"size": 32, "eval_resize": 36}


@pytest.fixture
def photos(discs: Path) -> Catalog:
    return scan(discs)


def paths_of(photos: Catalog) -> list[Path]:
    return [photos.file(photo) for photo in photos.photos]


def bare(seed: int) -> dict[str, Tensor]:
    """A random network whose outputs are the pooled features themselves."""
    torch.manual_seed(seed)
    network = timm.create_model("test_resnet", num_classes=3)
    weights = weights_of(network)
    width = weights["fc.weight"].shape[1]
    return weights | {"fc.weight": torch.eye(width), "fc.bias": torch.zeros(width)}


def solved(seed: int, photos: Catalog) -> dict[str, Tensor]:
    """A network with random features and the classifier that tells all photos apart by them."""
    weights = bare(seed)
    copy = checkpoint(weights)
    network = architecture(copy, "test_resnet", **SMALL)
    merged = merge_files.recalibrated(Merged(weights, 1.0, {}, ()), network, photos, HERE)
    members = [merge_files._in_network(merged.weights)]
    logits, _ = inference.all_logits(network, members, paths_of(photos), HERE)
    labels = [photos.classes.index(photo.label or "") for photo in photos.photos]
    targets = nn.functional.one_hot(torch.tensor(labels)).double()
    features = torch.from_numpy(logits[0]).double()
    features = torch.cat([features, torch.ones(len(features), 1)], dim=1)
    layer = torch.linalg.lstsq(features, targets, driver="gelsd").solution.T.float()
    return dict(merged.weights) | {"fc.weight": layer[:, :-1], "fc.bias": layer[:, -1]}


def judged(
    several: Sequence[dict[str, Tensor]], photos: Catalog, tmp_path: Path
) -> tuple[Merged, Barrier | None]:
    paths = [saved(tmp_path / f"{n}.safetensors", w) for n, w in enumerate(several)]
    copies = read(paths)
    network = architecture(copies[0], "test_resnet", **SMALL)
    return merge_files.on_photos(copies, merge(copies, "soup"), network, photos, HERE)


def test_recalibration_measures_the_photos_and_changes_nothing_else(photos: Catalog) -> None:
    """The first batch norm sees the first convolution of all photos at once."""
    weights = {n: t.half() if t.is_floating_point() else t for n, t in bare(1).items()}
    network = architecture(checkpoint(weights), "test_resnet", **SMALL)
    after = merge_files.recalibrated(Merged(weights, 1.0, {}, ("first",)), network, photos, HERE)
    found = after.weights
    assert list(found) == list(weights)
    assert all(found[name].dtype == tensor.dtype for name, tensor in weights.items())
    changed = {name for name, tensor in weights.items() if not torch.equal(tensor, found[name])}
    assert changed == {n for n in weights if n.endswith(("running_mean", "running_var"))}
    assert after.notes[0] == "first" and "24 photos only" in after.notes[1]
    model = timm.create_model("test_resnet", num_classes=3)
    seen: list[Tensor] = []
    model.load_state_dict({**weights, "fc.weight": torch.zeros(3, 96), "fc.bias": torch.zeros(3)})
    model.get_submodule("bn1").register_forward_pre_hook(
        lambda _norm, inputs: seen.append(inputs[0])
    )
    transform = evaluation_transform(network.size, network.eval_resize, network.interpolation)
    images = torch.stack([transform(Image.open(path)) for path in paths_of(photos)])
    with torch.no_grad():
        model(normalise(images, network.mean, network.std))
    variance, mean = torch.var_mean(seen[0], dim=(0, 2, 3))
    torch.testing.assert_close(found["bn1.running_mean"].float(), mean, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found["bn1.running_var"].float(), variance, rtol=1e-3, atol=1e-4)


def test_relatives_have_no_barrier_and_unreadable_photos_are_left_out(
    draw_collection: Callable[..., Path], tmp_path: Path
) -> None:
    photos = scan(draw_collection(tmp_path / "photos"))
    one = solved(1, photos)
    for path in paths_of(photos)[::8]:
        path.write_bytes(b"no picture")
    other = {n: 1.0001 * t if t.is_floating_point() else t for n, t in one.items()}
    merged, found = judged([one, other], photos, tmp_path)
    assert found is not None
    assert (found.photos, found.unreadable) == (21, 3)
    assert found.copies == (1.0, 1.0) and found.merged == 1.0
    assert not found.is_there
    assert "3 photos could not be read and were left out" in merged.notes
    assert merged.notes[-1].startswith("21 photos cannot tell a drop of accuracy below 14 points")
    assert not [note for note in merged.notes if "lost accuracy" in note]
    for path in paths_of(photos):
        path.write_bytes(b"no picture")
    with pytest.raises(DataError, match="none of 24 photos can be read"):
        judged([one, other], photos, tmp_path)


def test_unrelated_networks_have_a_barrier_though_each_is_right(
    photos: Catalog, tmp_path: Path
) -> None:
    merged, found = judged([solved(1, photos), solved(2, photos)], photos, tmp_path)
    assert found is not None
    assert found.copies == (1.0, 1.0)
    assert found.merged < 0.8
    assert found.drop == pytest.approx(1 - found.merged)
    p = found.merged
    assert found.error == pytest.approx(math.sqrt(p * (1 - p) / 24))
    assert found.is_there
    notes = "\n".join(merged.notes)
    assert "unrelated runs" in notes
    assert f"merging lost accuracy: {found.merged:.3f} against 1.000" in notes


def test_a_drop_within_the_error_of_few_photos_is_no_barrier() -> None:
    few = Barrier(20, 0, (0.9, 0.9), 0.7, drop=0.2, error=0.11)
    many = Barrier(2000, 0, (0.9, 0.9), 0.7, drop=0.2, error=0.011)
    slight = Barrier(10_000, 0, (0.9, 0.9), 0.885, drop=0.015, error=0.001)
    assert [one.is_there for one in (few, many, slight)] == [False, True, False]
    assert few.doubt == pytest.approx(0.22)
    assert Barrier(30, 0, (1.0, 1.0), 1.0, drop=0.0, error=0.0).doubt == pytest.approx(0.1)


def test_guessing_copies_are_noted(photos: Catalog, tmp_path: Path) -> None:
    wrong = solved(1, photos)
    wrong |= {"fc.weight": wrong["fc.weight"].roll(1, 0), "fc.bias": wrong["fc.bias"].roll(1, 0)}
    merged, found = judged([wrong, wrong], photos, tmp_path)
    assert found is not None and found.copies == (0.0, 0.0)
    assert all("does no better than guessing (accuracy 0.000)" in n for n in merged.notes[-2:])


def test_without_a_label_for_each_output_statistics_alone_are_measured(
    photos: Catalog, discs: Path, tmp_path: Path
) -> None:
    one, other = bare(1), bare(2)
    unlabelled = scan_unlabelled(discs)
    for given, said in (
        (photos, "the network has 96 outputs, and the photos have 3 labels"),
        (unlabelled, "accuracy cannot be told: the photos have no labels"),
    ):
        merged, found = judged([one, other], given, tmp_path)
        assert found is None and said in merged.notes[-1]
        assert not torch.equal(merged.weights["bn1.running_mean"], one["bn1.running_mean"])


def test_accuracy_is_told_on_what_is_no_training_part(
    draw_collection: Callable[..., Path], tmp_path: Path
) -> None:
    draw_collection(tmp_path / "photos" / "train", each=4)
    draw_collection(tmp_path / "photos" / "val", each=2)
    both = scan(tmp_path / "photos")
    weights = solved(1, both.part("train"))
    copies = (checkpoint(weights), checkpoint(weights))
    network = architecture(copies[0], "test_resnet", **SMALL)
    assert merge_files.barrier(copies, merge(copies, "soup"), network, both, HERE).photos == 6


def test_a_network_without_batch_norm_is_left_as_it_is(photos: Catalog) -> None:
    weights = {"conv.weight": torch.ones(3, 3, 1, 1)}
    before = Merged(weights, 1.0, {}, ())
    network = architecture(checkpoint(bare(1)), "test_resnet", **SMALL)
    assert merge_files.recalibrated(before, network, photos, HERE) is before
