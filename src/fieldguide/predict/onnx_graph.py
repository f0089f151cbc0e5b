"""A classifier as one graph of ONNX: from upright pictures of any size to calibrated probabilities.

The graph cuts, resizes and normalises as the run does, but for the resize's rounding; a picture
whose shorter side is `eval_resize` already is shown to the network unchanged. The members'
networks stand side by side, and what combines them is in the graph. Knows nothing of runs.
"""

import base64
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from fieldguide.errors import ResourceError, UsageError
from fieldguide.network.batch_norm import Absorbed, absorb
from fieldguide.photos.decoding import LONGEST
from fieldguide.predict.card import Architecture, card_bytes, scores_bytes
from fieldguide.predict.classifier import Classifier
from fieldguide.predict.exported import CARD_KEY, SCORES_KEY
from fieldguide.predict.inference import template
from fieldguide.seeds import derive_seed
from fieldguide.words import first_line

OPSET, IR_VERSION = 20, 10
MOST_BYTES = 2**31 - 2**20  # of one file: protobuf ends at 2 GiB, and the card needs a little

# Model, graph and tensor of the package `onnx`, which is an extra.
Proto: TypeAlias = Any

# Sides are whole numbers until the last division; halves go to the even one, as Python rounds.
_PREPARE = """
prepare (uint8[n, height, width, 3] image) => (float[n, 3, SIZE, SIZE] images)
<int64[2] axes = {2, 3}, int64[1] first = {0}, int64[1] third = {2}, int64[1] fifth = {4},
 int64[2] longest = {LONGEST, LONGEST}, float half = {0.5},
 int64[2] resize = {RESIZE, RESIZE}, int64[2] size = {SIZE, SIZE}>
{
  planes = Transpose <perm: ints = [0, 3, 1, 2]> (image)
  shape = Shape (planes)
  batch = Slice (shape, first, third)
  sides = Slice (shape, third, fifth)
  shorter = ReduceMin <keepdims: int = 1> (sides)
  most = Mul (shorter, longest)
  kept = Min (sides, most)
  over = Sub (sides, kept)
  over_float = Cast <to: int = 1> (over)
  over_half = Mul (over_float, half)
  over_round = Round (over_half)
  cut_from = Cast <to: int = 7> (over_round)
  cut_to = Add (cut_from, kept)
  cut = Slice (planes, cut_from, cut_to, axes)
  wide = Mul (kept, resize)
  whole = Div (wide, shorter)
  sizes = Concat <axis: int = 0> (batch, whole)
  resized = Resize <MODE, coordinate_transformation_mode: string = "half_pixel"> (cut, , , sizes)
  beyond = Sub (whole, size)
  beyond_float = Cast <to: int = 1> (beyond)
  beyond_half = Mul (beyond_float, half)
  beyond_round = Round (beyond_half)
  centre_from = Cast <to: int = 7> (beyond_round)
  centre_to = Add (centre_from, size)
  centre = Slice (resized, centre_from, centre_to, axes)
  levels = Cast <to: int = 1> (centre)
  shifted = Sub (levels, mean)
  images = Mul (shifted, factor)
}
"""
# Without `exclude_outside` borders would differ from Pillow's by up to 10 levels.
_SMOOTH = 'antialias: int = 1, exclude_outside: int = 1, mode: string = "{}"'
_MODES = {
    "bilinear": _SMOOTH.format("linear"),
    "bicubic": _SMOOTH.format("cubic") + ", cubic_coeff_a: float = -0.5",
    "nearest": 'mode: string = "nearest", nearest_mode: string = "round_prefer_ceil"',
}
_COMBINE = {
    "ensemble": """
  each = Softmax <axis: int = -1> (scaled)
  probabilities = ReduceMean <keepdims: int = 0> (each, one)""",
    "logits": """
  mean_logits = ReduceMean <keepdims: int = 0> (scaled, one)
  probabilities = Softmax <axis: int = -1> (mean_logits)""",
    "geometric": """
  logs = LogSoftmax <axis: int = -1> (scaled)
  mean_logs = ReduceMean <keepdims: int = 0> (logs, one)
  probabilities = Softmax <axis: int = -1> (mean_logs)""",
}


def build(classifier: Classifier, *, features: bool = False, description: str = "") -> Proto:
    """Return the model of a classifier, with its card and scores among the metadata.

    Input `image`: uint8 (n, height, width, 3), upright RGB. Outputs: `probabilities` (n, classes),
    calibrated; `logits` (n, members, classes), before the temperature; and with `features` those of
    each member's last layer (n, members, channels). Raises `ResourceError` without the packages,
    `UsageError` for a network that does not export, or for more than 2 GiB.
    """
    onnx = require_onnx()
    if classifier.nbytes > MOST_BYTES:
        raise UsageError(
            f"{classifier.nbytes / 1e9:.1f} GB of weights are more than one ONNX file can hold",
            hint="export one network: --combine soup",
        )
    architecture = classifier.card.architecture
    absorbed = absorb(template(architecture))
    weights = [absorbed.weights(member) for member in classifier.members]
    networks = _networks(absorbed, weights, architecture, features)
    graphs = [_prepared(onnx, architecture), *networks, _tail(onnx, classifier, features)]
    outputs = ["probabilities", "logits", *(["features"] if features else [])]
    graph = onnx.helper.make_graph(
        [node for each in graphs for node in each.node],
        "fieldguide",
        list(graphs[0].input),
        [value for name in outputs for value in graphs[-1].output if value.name == name],
        [tensor for each in graphs for tensor in each.initializer],
    )
    model = onnx.helper.make_model(
        graph,
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="fieldguide",
        doc_string=description,
    )
    set_card(model, classifier)
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise UsageError(
            f"{architecture.backbone} with head `{architecture.head}` cannot be exported:"
            f" {first_line(error)}"
        ) from error
    return model


def set_card(model: Proto, classifier: Classifier) -> None:
    """Change the model: its metadata and its temperature become those of a classifier."""
    onnx = require_onnx()
    onnx.helper.set_model_props(
        model,
        {
            CARD_KEY: card_bytes(classifier.card).decode(),
            SCORES_KEY: base64.b64encode(scores_bytes(classifier.out_of_fold)).decode(),
            "classes": json.dumps(classifier.classes, ensure_ascii=True),
            "license": classifier.card.license,
        },
    )
    temperature = np.array(classifier.card.temperature, np.float32)
    for tensor in model.graph.initializer:
        if tensor.name == "temperature":
            tensor.CopyFrom(onnx.numpy_helper.from_array(temperature, "temperature"))


def require_onnx() -> Any:
    """Return the package `onnx`; `ResourceError` if it or torch's exporter is missing."""
    try:
        import onnx
        import onnx.parser
        import onnxscript  # noqa: F401 - torch's exporter needs it
    except ImportError as error:
        raise ResourceError(
            f"exporting needs the packages `onnx` and `onnxscript`: {first_line(error)}",
            hint="pip install 'fieldguide[onnx]'",
        ) from error
    # It tells of every operation with several outputs that it does not compute beforehand.
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    return onnx


def _prepared(onnx: Any, architecture: Architecture) -> Proto:
    """Return the graph from pictures to the network's input."""

    text = _PREPARE.replace("LONGEST", str(LONGEST)).replace(
        "MODE", _MODES[architecture.interpolation]
    )
    text = text.replace("RESIZE", str(architecture.eval_resize)).replace(
        "SIZE", str(architecture.size)
    )
    graph = onnx.parser.parse_graph(text)
    mean = [255 * each for each in architecture.mean]
    factor = [1 / (255 * each) for each in architecture.std]
    for name, values in (("mean", mean), ("factor", factor)):
        array = np.array(values, np.float32)[:, None, None]
        graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return graph


def _tail(onnx: Any, classifier: Classifier, features: bool) -> Proto:
    """Return the graph from the members' logits (and features) to the outputs."""
    members = len(classifier.members)
    kinds = ["logits", *(["features"] if features else [])]
    inputs = [f"float[n, {kind}_size] member_{k}_{kind}" for kind in kinds for k in range(members)]
    lines = []
    for kind in kinds:
        for k in range(members):
            lines.append(f"  wide_{k}_{kind} = Unsqueeze (member_{k}_{kind}, one)")
        wide = ", ".join(f"wide_{k}_{kind}" for k in range(members))
        lines.append(f"  {kind} = Concat <axis: int = 1> ({wide})")
    classes = len(classifier.classes)
    outputs = [f"float[n, {classes}] probabilities", f"float[n, {members}, {classes}] logits"]
    if features:
        outputs.append(f"float[n, {members}, channels] features")
    text = (
        f"tail ({', '.join(inputs)}) => ({', '.join(outputs)})\n<int64[1] one = {{1}}>\n{{\n"
        + "\n".join(lines)
        + "\n  scaled = Div (logits, temperature)"
        + _COMBINE[classifier.card.combine]
        + "\n}"
    )
    graph = onnx.parser.parse_graph(text)
    temperature = np.array(classifier.card.temperature, np.float32)
    graph.initializer.append(onnx.numpy_helper.from_array(temperature, "temperature"))
    return graph


# --- the members' networks ------------------------------------------------------------------------


class _Shown(nn.Module):
    """A network that gives its features as well, if asked."""

    def __init__(self, network: nn.Module, features: bool) -> None:
        super().__init__()
        self.network = network
        self.features = features

    def forward(self, images: Float[Tensor, "n 3 size size"]) -> Any:
        """Return the logits, or logits and features."""
        return self.network(images, features=True) if self.features else self.network(images)


def _networks(
    absorbed: Absorbed,
    weights: Sequence[Mapping[str, Tensor]],
    architecture: Architecture,
    features: bool,
) -> list[Proto]:
    """Return each member's graph, from `images` to `member_K_logits`.

    The exporter takes up to two minutes: it runs once, with values no two of which are equal, as it
    joins equal ones, and each member's take their place. Networks whose weights it computes with
    are exported once a member.
    """
    drawn = _drawn(weights[0])
    graph = _exported(absorbed.network, drawn, architecture, features)
    names = {f"network.{name}" for name, tensor in drawn.items() if tensor.is_floating_point()}
    found = []
    for number, own in enumerate(weights):
        if names <= {tensor.name for tensor in graph.initializer}:
            each = _with_weights(graph, own)
        else:
            each = _exported(absorbed.network, own, architecture, features)
        found.append(_renamed(each, f"member_{number}_"))
    return found


def _drawn(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return positive weights, no two of them equal, of the same names and shapes."""
    generator = torch.Generator().manual_seed(derive_seed(0, "weights to export"))
    return {
        name: torch.rand(tensor.shape, generator=generator).add_(0.5)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in weights.items()
    }


def _exported(
    network: nn.Module, weights: Mapping[str, Tensor], architecture: Architecture, features: bool
) -> Proto:
    """Return the graph of a network with these weights, of any number of images."""
    network.load_state_dict(weights)
    side = architecture.size
    names = ["logits", *(["features"] if features else [])]
    try:
        program = torch.onnx.export(
            _Shown(network, features).eval(),
            (torch.zeros(2, 3, side, side),),  # of one image the exporter would make a constant
            dynamo=True,
            opset_version=OPSET,
            input_names=["images"],
            output_names=names,
            dynamic_shapes=({0: torch.export.Dim("n")},),
            external_data=False,
            verbose=False,
        )
    except Exception as error:  # the exporter's errors have no common class
        raise UsageError(
            f"{architecture.backbone} with head `{architecture.head}` cannot be exported:"
            f" {first_line(error)}"
        ) from error
    assert program is not None
    graph = program.model_proto.graph
    for node in graph.node:  # stack traces with paths of this machine
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    return graph


def _with_weights(graph: Proto, weights: Mapping[str, Tensor]) -> Proto:
    """Return a copy of the graph with other weights."""
    onnx = require_onnx()
    found = type(graph)()
    found.CopyFrom(graph)
    for tensor in found.initializer:
        own = weights.get(tensor.name.removeprefix("network."))
        if own is not None and own.is_floating_point():
            array = own.detach().contiguous().numpy()
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    return found


def _renamed(graph: Proto, prefix: str) -> Proto:
    """Return the graph with a prefix before every name but that of its input."""
    onnx = require_onnx()
    found = onnx.compose.add_prefix_graph(graph, prefix)
    shared = f"{prefix}images"
    for node in found.node:
        for number, name in enumerate(node.input):
            if name == shared:
                node.input[number] = "images"
    return found
