import itertools
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
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fieldguide import catalog, checkpoints, inference
from fieldguide.augment import evaluation_transform, normalise
from fieldguide.catalog import Catalog
from fieldguide.checkpoints import (
    Barrier,
    Checkpoint,
    Merged,
    architecture,
    barrier,
    merge,
    on_photos,
    read,
    read_one,
    recalibrated,
    require_free,
    write,
)
from fieldguide.errors import DataError, UsageError
from fieldguide.heads import HEADS
from fieldguide.inference import Machine
from fieldguide.network import build, weights_of

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


# --- laws of merging ------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", checkpoints.RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_same_checkpoint_twice_is_itself_bit_for_bit(
    rule: checkpoints.Rule, dtype: torch.dtype, files: Files, anchor: Checkpoint
) -> None:
    weights = {n: t.to(dtype) if t.is_floating_point() else t for n, t in small(1).items()}
    copies = read(files(weights, weights))
    merged = merge(copies, rule, anchor)
    assert_equal(merged.weights, weights)
    assert merged.cosine == pytest.approx(1)
    assert any("hold the same weights" in note for note in merged.notes)


@pytest.mark.parametrize("rule", checkpoints.RULES)
def test_the_order_of_files_is_irrelevant(
    rule: checkpoints.Rule, relatives: tuple[Checkpoint, ...], anchor: Checkpoint
) -> None:
    expected = merge(relatives, rule, anchor)
    for order in itertools.permutations(relatives):
        merged = merge(order, rule, anchor)
        torch.testing.assert_close(dict(merged.weights), dict(expected.weights), rtol=0, atol=1e-6)
        assert merged.cosine == pytest.approx(expected.cosine)


@pytest.mark.parametrize("rule", checkpoints.RULES)
def test_counters_stay_integers(
    rule: checkpoints.Rule, relatives: tuple[Checkpoint, ...], anchor: Checkpoint
) -> None:
    counter = merge(relatives, rule, anchor).weights["bn1.num_batches_tracked"]
    assert counter.dtype == torch.int64
    assert counter == 3


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
    assert soup.moves == stock.moves
    assert soup.angle == pytest.approx(float(np.mean([move.angle for move in soup.moves.values()])))


def test_statistics_are_averaged_and_not_anchored(
    relatives: tuple[Checkpoint, ...], anchor: Checkpoint
) -> None:
    soup, stock = (merge(relatives, rule, anchor) for rule in checkpoints.RULES)
    for name in ("bn1.running_mean", "bn1.running_var"):
        assert name not in stock.moves
        assert torch.equal(stock.weights[name], soup.weights[name])


def test_without_an_anchor_there_are_no_movements(relatives: tuple[Checkpoint, ...]) -> None:
    merged = merge(relatives, "soup")
    assert merged.moves == {}
    assert math.isnan(merged.angle) and math.isnan(merged.ratio)


def test_stock_needs_an_anchor(relatives: tuple[Checkpoint, ...]) -> None:
    error = refusal(lambda: merge(relatives, "stock"))
    assert "`stock` needs" in error.message
    assert "--anchor" in error.hint


# --- what files must have in common ---------------------------------------------------------------


def test_one_file_is_nothing_to_merge(files: Files) -> None:
    assert "1 checkpoint given" in refusal(lambda: read(files(small(1)))).message


def test_other_shapes_are_refused_with_both_files(files: Files) -> None:
    paths = files(small(1), small(2), small(3) | {"conv1.weight": torch.ones(8, 3, 1, 1)})
    error = refusal(lambda: read(paths))
    assert f"`{paths[0]}` and `{paths[2]}`" in error.message
    assert "`conv1.weight` (8, 3, 3, 3) and (8, 3, 1, 1)" in error.message
    assert "one architecture" in error.hint


def test_heads_for_other_classes_are_refused_as_such(files: Files) -> None:
    other = {"fc.weight": torch.ones(7, 8), "fc.bias": torch.ones(7)}
    error = refusal(lambda: read(files(small(1), small(2) | other)))
    assert "`fc.bias` (5,) and (7,), `fc.weight` (5, 8) and (7, 8)" in error.message
    assert "the same classes" in error.hint


def test_other_tensors_are_refused_with_both_files(files: Files) -> None:
    without = {name: tensor for name, tensor in small(2).items() if name != "fc.bias"}
    paths = files(small(1), without | {f"odd.{n}": torch.ones(n) for n in range(5)})
    error = refusal(lambda: read(paths))
    assert f"`{paths[0]}` and `{paths[1]}` hold different tensors" in error.message
    assert "only the first has `fc.bias` (5,)" in error.message
    assert "only the second has `odd.0` (0,), `odd.1` (1,), `odd.2` (2,) and 2 more" in (
        error.message
    )


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


# --- dtypes ---------------------------------------------------------------------------------------


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


def test_files_of_two_precisions_give_the_first_and_say_so(files: Files) -> None:
    half = {n: t.half() if t.is_floating_point() else t for n, t in near(small(0), 1).items()}
    paths = files(half, near(small(0), 2))
    merged = merge(read(paths), "soup")
    assert merged.weights["fc.weight"].dtype == torch.float16
    assert any(
        f"`{paths[1]}` is stored in float32, `{paths[0]}` in float16" in note
        for note in merged.notes
    )


def test_what_half_precision_cannot_hold_is_refused(files: Files) -> None:
    half = {n: t.half() if t.is_floating_point() else t for n, t in small(1).items()}
    large = small(2) | {"bn1.running_var": torch.full((8,), 1e6)}
    error = refusal(lambda: merge(read(files(half, large)), "soup"))
    assert "`bn1.running_var` does not fit into float16" in error.message


# --- anchors --------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("prefixed", ["copies", "anchor"])
def test_fieldguides_prefix_is_seen_through(prefixed: str, files: Files, tmp_path: Path) -> None:
    def ours(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        body = {f"backbone.{n}": t for n, t in weights.items() if not n.startswith("fc")}
        return body | {"head.linear.weight": weights["fc.weight"]}

    copies, start = [near(small(0), seed) for seed in (1, 2)], small(0)
    if prefixed == "copies":
        copies = [ours(weights) for weights in copies]
    else:
        start = ours(start)
    merged = merge(
        read(files(*copies)), "stock", read_one(saved(tmp_path / "s.safetensors", start))
    )
    front = "backbone." if prefixed == "copies" else ""
    assert set(merged.moves) == {f"{front}conv1.weight", f"{front}bn1.weight"}


def test_the_random_start_of_our_own_head_is_no_anchor(files: Files, tmp_path: Path) -> None:
    def ours(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            f"backbone.{n}" if n[:2] != "fc" else f"head.linear{n[2:]}": t
            for n, t in weights.items()
        }

    copies = read(files(*(ours(near(small(0), seed)) for seed in (1, 2))))
    start = read_one(saved(tmp_path / "start.safetensors", ours(small(0))))
    merged = merge(copies, "stock", start)
    assert set(merged.moves) == {"backbone.conv1.weight", "backbone.bn1.weight"}
    soup = merge(copies, "soup").weights
    assert torch.equal(merged.weights["head.linear.weight"], soup["head.linear.weight"])


def test_an_anchor_of_another_shape_is_refused(
    relatives: tuple[Checkpoint, ...], tmp_path: Path
) -> None:
    content = small(0) | {"conv1.weight": torch.ones(8, 3, 7, 7)}
    other = read_one(saved(tmp_path / "anchor.safetensors", content))
    error = refusal(lambda: merge(relatives, "stock", other))
    assert f"the anchor `{other.path}`" in error.message
    assert "`conv1.weight` (8, 3, 7, 7) and (8, 3, 3, 3)" in error.message


def test_an_anchor_that_shares_nothing_is_refused(
    relatives: tuple[Checkpoint, ...], tmp_path: Path
) -> None:
    other = read_one(saved(tmp_path / "anchor.safetensors", {"patch.weight": torch.ones(3, 3)}))
    error = refusal(lambda: merge(relatives, "soup", other))
    assert "shares no tensor" in error.message and "`patch.weight`" in error.message


def test_an_anchor_of_another_head_alone_is_refused(
    relatives: tuple[Checkpoint, ...], tmp_path: Path
) -> None:
    other = read_one(saved(tmp_path / "anchor.safetensors", {"fc.weight": torch.ones(9, 8)}))
    assert "shares no tensor" in refusal(lambda: merge(relatives, "stock", other)).message


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


# --- relatives ------------------------------------------------------------------------------------


def test_relatives_get_no_warning(relatives: tuple[Checkpoint, ...], anchor: Checkpoint) -> None:
    merged = merge(relatives, "soup", anchor)
    assert merged.cosine > 0.9
    assert not [note for note in merged.notes if "unrelated" in note or "come from" in note]


def test_an_unrelated_network_is_named(files: Files) -> None:
    paths = files(near(small(0), 1), near(small(0), 2), small(50))
    merged = merge(read(paths), "soup")
    assert abs(merged.cosine) < 0.3
    (note,) = [note for note in merged.notes if "look like unrelated runs" in note]
    assert f"`{paths[2]}`" in note
    assert "(2 of 3 pairs are below 0.5)" in note


def test_random_starts_of_a_real_network_are_unrelated_and_near_ones_are_not(
    tmp_path: Path,
) -> None:
    def drawn(seed: int) -> dict[str, Tensor]:
        network = build(
            "test_resnet", weights="none", head="linear", classes=3, dropout=0.0, seed=seed
        )
        return weights_of(network)

    def notes(second: dict[str, Tensor]) -> str:
        paths = [
            saved(tmp_path / "1.safetensors", drawn(0)),
            saved(tmp_path / "2.safetensors", second),
        ]
        return "\n".join(merge(read(paths), "soup").notes)

    assert "unrelated runs" in notes(drawn(1))
    moved = {n: 1.1 * t if t.is_floating_point() else t for n, t in drawn(0).items()}
    assert "unrelated" not in notes(moved)


def test_classes_in_another_order_are_noticed_in_the_head(files: Files) -> None:
    one, other = near(small(0), 1), near(small(0), 2)
    other["fc.weight"] = other["fc.weight"].roll(1, dims=0)
    (note,) = merge(read(files(one, other)), "soup").notes
    assert "the heads of" in note and "another order" in note


# --- writing --------------------------------------------------------------------------------------


def test_what_is_written_comes_back_with_its_record(
    relatives: tuple[Checkpoint, ...], tmp_path: Path
) -> None:
    merged = merge(relatives, "soup")
    record = {"rule": "soup", "files": ["ä.safetensors", 'quoted "b"'], "accuracy": 0.5}
    path = tmp_path / "m.safetensors"
    write(path, merged, record)
    assert_equal(load_file(path), merged.weights)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt"
    assert json.loads(metadata["provenance"]) == record
    (length,) = struct.unpack("<Q", path.read_bytes()[:8])
    assert length % 8 == 0


def test_the_same_weights_give_the_same_bytes(
    relatives: tuple[Checkpoint, ...], tmp_path: Path
) -> None:
    merged = merge(relatives, "soup")
    contents = set()
    for number in range(5):
        write(tmp_path / f"{number}.safetensors", merged, {"rule": "soup", "by": "a test"})
        contents.add((tmp_path / f"{number}.safetensors").read_bytes())
    assert len(contents) == 1


def test_nothing_is_overwritten(relatives: tuple[Checkpoint, ...], tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"precious")
    assert "is there already" in refusal(lambda: write(path, merge(relatives, "soup"), {})).message
    assert path.read_bytes() == b"precious"


def test_only_safetensors_are_written(relatives: tuple[Checkpoint, ...], tmp_path: Path) -> None:
    error = refusal(lambda: write(tmp_path / "m.pth", merge(relatives, "soup"), {}))
    assert "`m.safetensors`" in error.hint
    assert not (tmp_path / "m.pth").exists()


def test_a_folder_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    error = refusal(lambda: require_free(tmp_path / "gone" / "m.safetensors"))
    assert f"`{tmp_path / 'gone'}`" in error.message
    assert not (tmp_path / "gone").exists()
    require_free(tmp_path / "m.safetensors")


# --- the network of a checkpoint ------------------------------------------------------------------


def checkpoint(weights: dict[str, Tensor]) -> Checkpoint:
    return Checkpoint(Path("a.safetensors"), weights, {n: t.dtype for n, t in weights.items()})


# One network for each name of a classifier.
@pytest.mark.parametrize("name", ["resnet18", "resnetv2_18", "legacy_seresnet18", "tresnet_m"])
def test_timms_networks_answer_as_in_timm(name: str) -> None:
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=7).eval()
    copy = checkpoint(network.state_dict())
    found = architecture(copy, name)
    assert (found.head, found.classes) == ("linear", 7)
    ours = build(name, weights="none", head="linear", classes=7, dropout=0.0, seed=0).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        answer = torch.func.functional_call(ours, checkpoints._in_network(copy.weights), (images,))
        torch.testing.assert_close(answer, network(images), rtol=1e-4, atol=1e-5)


def test_torchvisions_checkpoints_fit_as_they_are(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torchvision.models.resnet18(weights=None, num_classes=4).eval()
    torch.save(model.state_dict(), tmp_path / "a.pth")
    torch.save(model.state_dict(), tmp_path / "b.pth")
    copies = read([tmp_path / "a.pth", tmp_path / "b.pth"])
    found = architecture(copies[0], "resnet18", size=64)
    assert found.classes == 4
    merged = merge(copies, "soup").weights
    again = torchvision.models.resnet18(weights=None, num_classes=4)
    again.load_state_dict(dict(merged))
    theirs = timm.create_model("resnet18", num_classes=4)
    theirs.load_state_dict(dict(merged))
    assert_equal(merged, model.state_dict())


@pytest.mark.parametrize(
    "name", ["resnet34", "resnet50", "resnext50_32x4d", "resnext101_32x8d", "wide_resnet50_2"]
)
def test_torchvision_names_its_tensors_as_timm_does(name: str) -> None:
    def shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}

    with torch.device("meta"):
        theirs = getattr(torchvision.models, name)(weights=None)
        ours = timm.create_model(name)
    assert shapes(theirs) == shapes(ours)


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
    assert (half.size, half.eval_resize, half.mean, half.std) == (
        80,
        84,
        (0.1, 0.2, 0.3),
        usual.std,
    )
    error = refusal(lambda: architecture(copy, "test_resnet", size=80, eval_resize=79))
    assert "79 pixels are smaller" in error.message


def test_photos_without_a_backbone_are_refused() -> None:
    assert "--backbone" in refusal(lambda: architecture(checkpoint(small(0)), None)).hint


def test_another_backbone_is_refused_with_the_odd_tensors() -> None:
    copy = checkpoint(timm.create_model("test_resnet", num_classes=3).state_dict())
    error = refusal(lambda: architecture(copy, "resnet18"))
    assert "`a.safetensors` does not fit `resnet18`" in error.message
    assert "it lacks `backbone.conv1.weight` (64, 3, 7, 7)" in error.message
    assert "it holds besides `backbone.conv1.0.weight`" in error.message
    assert "differs from it in `backbone.bn1.bias` (32,) and (64,)" in error.message


def test_a_backbone_alone_has_no_classifier() -> None:
    copy = checkpoint(timm.create_model("test_resnet", num_classes=0).state_dict())
    error = refusal(lambda: architecture(copy, "test_resnet"))
    assert "has no classifier" in error.message and "`fc.weight`" in error.message


# --- photos ---------------------------------------------------------------------------------------


SMALL: dict[str, Any] = {"size": 32, "eval_resize": 36}


@pytest.fixture
def photos(discs: Path) -> Catalog:
    return catalog.scan(discs)


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
    merged = recalibrated(Merged(weights, 1.0, {}, ()), network, photos, HERE)
    members = [checkpoints._in_network(merged.weights)]
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
    return on_photos(copies, merge(copies, "soup"), network, photos, HERE)


def test_recalibration_changes_statistics_and_nothing_else(photos: Catalog) -> None:
    weights = {n: t.half() if t.is_floating_point() else t for n, t in bare(1).items()}
    network = architecture(checkpoint(weights), "test_resnet", **SMALL)
    before = Merged(weights, 1.0, {}, ("first",))
    after = recalibrated(before, network, photos, HERE)
    changed = {n for n, t in weights.items() if not torch.equal(t, after.weights[n])}
    assert changed == {n for n in weights if n.endswith(("running_mean", "running_var"))}
    assert {n: t.dtype for n, t in after.weights.items()} == {
        n: t.dtype for n, t in weights.items()
    }
    assert list(after.weights) == list(weights)
    assert after.notes[0] == "first" and "24 photos only" in after.notes[1]


def test_recalibrated_statistics_are_those_of_the_photos(photos: Catalog) -> None:
    """The first batch norm sees the first convolution of all photos at once."""
    weights = bare(1)
    network = architecture(checkpoint(weights), "test_resnet", **SMALL)
    found = recalibrated(Merged(weights, 1.0, {}, ()), network, photos, HERE).weights
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
    torch.testing.assert_close(found["bn1.running_mean"], mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["bn1.running_var"], variance, rtol=1e-4, atol=1e-5)


def test_relatives_have_no_barrier(photos: Catalog, tmp_path: Path) -> None:
    one = solved(1, photos)
    other = {n: 1.0001 * t if t.is_floating_point() else t for n, t in one.items()}
    merged, found = judged([one, other], photos, tmp_path)
    assert found is not None
    assert (found.photos, found.unreadable) == (24, 0)
    assert found.copies == (1.0, 1.0) and found.merged == 1.0
    assert not found.is_there
    assert (
        merged.notes[-1] == "24 photos cannot tell a drop of accuracy below 12 points from chance"
    )
    assert not [note for note in merged.notes if "lost accuracy" in note]


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


def test_other_numbers_of_classes_are_not_judged(photos: Catalog, tmp_path: Path) -> None:
    one, other = bare(1), bare(2)
    merged, found = judged([one, other], photos, tmp_path)
    assert found is None
    assert "the network has 96 outputs, and the photos have 3 labels" in merged.notes[-1]
    assert not torch.equal(merged.weights["bn1.running_mean"], one["bn1.running_mean"])


def test_photos_without_labels_measure_statistics_only(discs: Path, tmp_path: Path) -> None:
    unlabelled = catalog.scan_unlabelled(discs)
    merged, found = judged([bare(1), bare(2)], unlabelled, tmp_path)
    assert found is None
    assert merged.notes[-1] == "accuracy cannot be told: the photos have no labels"


def test_accuracy_is_told_on_what_is_no_training_part(
    draw_collection: Callable[..., Path], tmp_path: Path
) -> None:
    draw_collection(tmp_path / "photos" / "train", each=4)
    draw_collection(tmp_path / "photos" / "val", each=2)
    both = catalog.scan(tmp_path / "photos")
    weights = solved(1, both.part("train"))
    copies = (checkpoint(weights), checkpoint(weights))
    network = architecture(copies[0], "test_resnet", **SMALL)
    assert barrier(copies, merge(copies, "soup"), network, both, HERE).photos == 6


def test_unreadable_photos_are_left_out_and_counted(
    draw_collection: Callable[..., Path], tmp_path: Path
) -> None:
    folder = draw_collection(tmp_path / "photos", each=4)
    good = catalog.scan(folder)
    weights = solved(1, good)
    for path in paths_of(good)[::4]:
        path.write_bytes(b"no picture")
    merged, found = judged([weights, weights], good, tmp_path)
    assert found is not None
    assert (found.photos, found.unreadable) == (9, 3)
    assert "3 photos could not be read and were left out" in merged.notes


def test_photos_of_which_none_can_be_read_are_refused(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        (tmp_path / "photos" / name / "1.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match="none of 3 photos can be read"):
        judged([bare(1), bare(2)], catalog.scan(tmp_path / "photos"), tmp_path)


def test_a_network_without_batch_norm_is_left_as_it_is(photos: Catalog) -> None:
    weights = {"conv.weight": torch.ones(3, 3, 1, 1)}
    before = Merged(weights, 1.0, {}, ())
    network = architecture(checkpoint(bare(1)), "test_resnet", **SMALL)
    assert recalibrated(before, network, photos, HERE) is before


def test_recalibrating_twice_is_recalibrating_once(photos: Catalog) -> None:
    weights = bare(1)
    network = architecture(checkpoint(weights), "test_resnet", **SMALL)
    once = recalibrated(Merged(weights, 1.0, {}, ()), network, photos, HERE)
    assert_equal(recalibrated(once, network, photos, HERE).weights, once.weights)
