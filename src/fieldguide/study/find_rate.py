"""The learning rates for head and backbone, from a range test on a collection's own photos.

A range test (Smith, "Cyclical Learning Rates for Training Neural Networks", WACV 2017, section 3.3)
trains some steps with a rate that grows at every step, here by the same factor each time as in
fastai, and looks at where the loss falls and where it explodes. Two of them, each from a fit's
start:

    head:      the backbone is frozen, the head's rate grows
    backbone:  the head learns at its suggested rate, the backbone's rate grows

Swept together in a fixed ratio, the part that explodes first would hide what the other can bear.
Photos are those that fold 0 of a fit would train on, augmented and mixed as the recipe says. Knows
nothing of the command line.
"""

import io
import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import chain, count, islice
from pathlib import Path
from typing import Any, Literal

import altair as alt
import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from fieldguide.errors import TrainingError, UsageError
from fieldguide.fitting.jobs import fold_jobs
from fieldguide.fitting.progress import Plan, Watcher
from fieldguide.fitting.start import create
from fieldguide.machine.controls import Controls
from fieldguide.machine.device import training_threads
from fieldguide.network.network import Network, load_weights, train_mode, weights_of
from fieldguide.photos.batches import Draw
from fieldguide.photos.catalog import Catalog
from fieldguide.recipe import Recipe
from fieldguide.seeds import derive_seed
from fieldguide.storage import files
from fieldguide.train.job import FoldJob
from fieldguide.train.optimize import parameter_groups
from fieldguide.train.replica import Replica
from fieldguide.train.step import train_step

Part = Literal["head", "backbone"]
Ended = Literal["exploded", "not finite", "range"]

FORMAT = 1
STEPS = 100  # of a sweep: 20 for a tenfold rate (fastai's number)
FEWEST_STEPS = 20

# AdamW moves a weight by about its rate in a step. At the lower ends next to nothing happens within
# a sweep; at the upper ones resnet18 on nature100 has long lost what it had learned.
RANGES: dict[Part, tuple[float, float]] = {"head": (1e-5, 1.0), "backbone": (1e-6, 0.1)}

# Share of the mean so far in the smoothed loss: it averages over ten steps. With fastai's 0.98,
# over 50 of the 100, the minimum is found at a rate several times too high.
SMOOTHING = 0.9
SETTLED = 10  # steps from which on it is read: before, it depends on the first losses alone
CLEAR = 1.5  # of 2,000 sweeps of mere noise 0.7 % fell so far in 100 steps, fewer in fewer
EXPLODED = 4.0  # times the least smoothed loss: the sweep ends (fastai's number)
HOPELESS = 10  # steps in a row that are not finite, as in training
BELOW = 10.0  # the suggestion is the rate of the least loss, divided by this (fastai's number)


@dataclass(frozen=True)
class Sweep:
    """A range test of one part: the loss of each step and its running mean, by rate.

    `ended`: the loss `exploded`, became `not finite`, or the whole `range` was tried. If the
    smoothed loss falls, `lowest` is the rate at its minimum and `steepest` that of its fastest fall
    over the logarithm of the rate.
    """

    part: Part
    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    ended: Ended
    lowest: float | None
    steepest: float | None

    @property
    def suggestion(self) -> float | None:
        """The rate a tenth of that at the minimum: there the loss falls well, far from exploding.

        The steepest fall is not suggested: it is a difference of noisy neighbours, and a backbone's
        loss falls at any rate while its head learns.
        """
        return None if self.lowest is None else self.lowest / BELOW


@dataclass(frozen=True)
class Found:
    """The range tests, and the recipe's rates; `backbone` is None where all of it is frozen."""

    head: Sweep
    backbone: Sweep | None
    head_rate: float
    backbone_rate: float

    @property
    def pairs(self) -> list[tuple[Sweep, float]]:
        """The sweeps, each with the recipe's rate of its part."""
        pairs = [(self.head, self.head_rate), (self.backbone, self.backbone_rate)]
        return [(sweep, rate) for sweep, rate in pairs if sweep is not None]


# --- the numbers -----------------------------------------------------------------------------


def smooth(losses: Sequence[float], share: float = SMOOTHING) -> Float[np.ndarray, " steps"]:
    """Return the exponential running mean, without the bias of its start.

    mean_t = share · mean_(t-1) + (1 - share) · loss_t from mean_0 = 0; divided by 1 - share^t. With
    `share` = 0 it is the losses, towards 1 the plain mean. Source: Kingma, Ba, "Adam", ICLR 2015,
    section 3.
    """
    means, mean = [], 0.0
    for step, loss in enumerate(losses, start=1):
        mean = share * mean + (1 - share) * loss
        means.append(mean / (1 - share**step))
    return np.array(means, dtype=np.float64)


def has_exploded(losses: Sequence[float]) -> bool:
    """Return whether the smoothed loss is above `EXPLODED` times its minimum."""
    means = smooth(losses)[SETTLED:]
    return bool(len(means) and means[-1] > EXPLODED * means.min())


def read_sweep(part: Part, rates: Sequence[float], losses: Sequence[float], ended: Ended) -> Sweep:
    """Return the sweep with its smoothed loss and what can be read from it."""
    means = smooth(losses)
    lowest = steepest = None
    best = _minimum(np.array(losses), means)
    if best is not None:
        slopes = np.gradient(means, np.log(rates))[SETTLED : best + 1]
        lowest, steepest = rates[best], rates[SETTLED + int(slopes.argmin())]
    return Sweep(part, tuple(rates), tuple(losses), tuple(means.tolist()), ended, lowest, steepest)


def _minimum(losses: Float[np.ndarray, " steps"], means: Float[np.ndarray, " steps"]) -> int | None:
    """Return the step of the least smoothed loss, or None where noise could have made it.

    It must lie `CLEAR` deviations of single losses below the mean of the first ones. The deviation
    is that of a normal law with the same median difference of neighbours, which no fall affects.
    """
    if len(means) <= SETTLED:
        return None
    best = SETTLED + int(means[SETTLED:].argmin())
    deviation = np.median(np.abs(np.diff(losses[: best + 1]))) / (0.6745 * np.sqrt(2))
    return best if losses[:SETTLED].mean() - means[best] > CLEAR * deviation else None


def advice(found: Found) -> list[str]:
    """Return a line for each part: the rate that is suggested, why, and the recipe's."""
    lines = []
    for sweep, rate in found.pairs:
        said = "nothing to suggest, the loss did not fall"
        if sweep.suggestion is not None:
            still = ", the end of the range" if sweep.lowest == sweep.rates[-1] else ""
            said = (
                f"{sweep.suggestion:.1e} is suggested, a tenth of {sweep.lowest:.1e}, where the"
                f" loss is least{still}"
            )
        lines.append(f"{sweep.part}_rate: {said}; the recipe has {rate:.1e}")
    return lines


# --- the sweeps ------------------------------------------------------------------------------


def find_rate(
    catalog: Catalog, recipe: Recipe, *, steps: int = STEPS, watcher: Watcher | None = None
) -> Found:
    """Return range tests of both rates on the photos that fold 0 of this fit would train on.

    Raises what a fit raises before its training, and whatever `watcher.check_stop` raises.
    `watcher.on_plan` is given the number of steps.
    """
    if steps < FEWEST_STEPS:
        raise UsageError(f"`steps` = {steps}: a range test needs at least {FEWEST_STEPS}")
    watcher = watcher or Watcher()
    with tempfile.TemporaryDirectory(prefix="fieldguide-") as folder:
        run = create(Path(folder), catalog, recipe, (), watcher)
        job = fold_jobs(run, catalog.root, recipe)(0)
        watcher.on_plan(Plan((0,), 2 * steps, run.recipe))
        with training_threads(run.environment["threads"]):
            return find_rates(job, steps=steps, controls=watcher)


def find_rates(job: FoldJob, *, steps: int = STEPS, controls: Controls | None = None) -> Found:
    """Return range tests of a fold's head and backbone, from the job's start.

    The network is left as it was. Raises `TrainingError` where no loss is finite.
    """
    controls = controls or Controls()
    recipe, backbone = job.recipe, job.network.backbone
    devices = [job.device] if job.device.type == "cuda" else []
    trained = [tensor for tensor in backbone.parameters() if tensor.requires_grad]
    with _left_as_it_was(job.network), torch.random.fork_rng(devices=devices):
        train_mode(job.network)  # before freezing: features are as in a fit, normalised by batches
        try:
            for tensor in trained:
                tensor.requires_grad_(False)
            head = _sweep(job, "head", [], steps, controls)
        finally:
            for tensor in trained:
                tensor.requires_grad_(True)
        beside = _groups(job, "head", head.suggestion or recipe.head_rate)
        return Found(
            head=head,
            backbone=_sweep(job, "backbone", beside, steps, controls) if trained else None,
            head_rate=recipe.head_rate,
            backbone_rate=recipe.backbone_rate,
        )


def _sweep(
    job: FoldJob, part: Part, beside: list[dict[str, Any]], steps: int, controls: Controls
) -> Sweep:
    """Change the network and return the sweep; groups `beside` learn at rates of their own."""
    load_weights(job.network, job.start)
    swept = _groups(job, part, 1.0)
    replica = Replica.of_groups(job, [*swept, *beside])
    tried: list[tuple[float, float]] = []
    skipped = 0
    ended: Ended = "range"
    rates = np.geomspace(*RANGES[part], steps).tolist()
    batches = job.loader.batches(_plan(job, steps))
    for number, (rate, batch) in enumerate(zip(rates, batches, strict=True)):
        controls.check_stop()
        for group in replica.optimizer.param_groups[: len(swept)]:
            group["lr"] = rate
        seed = derive_seed(job.recipe.seed, "range test", number)
        step = train_step(job, replica, batch, seed)
        controls.on_step()
        if step is None:
            skipped += 1
        else:
            skipped = 0
            tried.append((rate, step.loss))
        if skipped == HOPELESS:
            ended = "not finite"
            break
        if has_exploded([loss for _, loss in tried]):
            ended = "exploded"
            break
    if not tried:
        raise TrainingError(
            f"the loss is not finite at the least {part} rate, {RANGES[part][0]:g}",
            hint="set precision to `float32`",
        )
    tried_rates, losses = zip(*tried, strict=True)
    return read_sweep(part, tried_rates, losses, ended)


def _groups(job: FoldJob, part: Part, rate: float) -> list[dict[str, Any]]:
    """Return the optimiser's parameter groups of one part, as a fit has them."""
    network = job.network
    return parameter_groups(
        network.backbone if part == "backbone" else nn.Identity(),
        network.head if part == "head" else nn.Identity(),
        backbone_rate=rate,
        head_rate=rate,
        weight_decay=job.recipe.weight_decay,
    )


def _plan(job: FoldJob, steps: int) -> list[list[Draw]]:
    """Return the draws of `steps` steps: a fit's first replica, epoch after epoch."""
    epochs = (job.plan(0, epoch) for epoch in count())
    return list(islice(chain.from_iterable(epochs), steps))


@contextmanager
def _left_as_it_was(network: Network) -> Iterator[None]:
    """Restore the network's weights, statistics and modes after the block."""
    weights = weights_of(network)
    modes = {module: module.training for module in network.modules()}
    try:
        yield
    finally:
        load_weights(network, weights)
        for module, training in modes.items():
            module.training = training


# --- the record and the picture --------------------------------------------------------------


def write(found: Found, folder: Path) -> None:
    """Write `rates.json`, `rates.png` and `rates.html`, which needs no network to be looked at."""
    files.make_folder(folder)
    files.write_json(folder / "rates.json", as_json(found))
    drawn = chart(found)
    picture, text = io.BytesIO(), io.StringIO()
    drawn.save(picture, format="png", scale_factor=2)
    drawn.save(text, format="html", inline=True, embed_options={"actions": False})
    files.write_bytes(folder / "rates.png", picture.getvalue())
    files.write_text(folder / "rates.html", text.getvalue())


def as_json(found: Found) -> dict[str, Any]:
    """Return the record: every step of each sweep, what was read from it, the recipe's rate."""
    record: dict[str, Any] = {"format": FORMAT, "head": None, "backbone": None}
    for sweep, rate in found.pairs:
        record[sweep.part] = {**asdict(sweep), "suggestion": sweep.suggestion, "recipe": rate}
    return record


BLUE, VERMILLION, GREY = "#0072B2", "#D55E00", "#6b6b6b"  # of Okabe and Ito; named in words too


def chart(found: Found) -> alt.VConcatChart:
    """Return loss over rate, a panel a part: steps, smoothed loss, and where the rates lie."""
    title = alt.Title(
        "Training loss while the learning rate grows",
        subtitle="points: single steps; line: running mean;"
        " suggested: a tenth of the rate where the line is lowest",
        anchor="start",
        offset=16,
    )
    panels = [_panel(sweep, rate) for sweep, rate in found.pairs]
    drawn: alt.VConcatChart = alt.vconcat(*panels, background="white", spacing=36, title=title)
    return drawn


def _panel(sweep: Sweep, recipe_rate: float) -> alt.LayerChart | alt.FacetChart:
    values = [
        {"rate": rate, "loss": loss, "smoothed": mean}
        for rate, loss, mean in zip(sweep.rates, sweep.losses, sweep.smoothed, strict=True)
    ]
    # What rises far above the first losses has exploded, and would flatten all the rest.
    low, high = min(sweep.losses), 1.25 * max(sweep.smoothed[:SETTLED])
    x = alt.X(
        "rate:Q",
        title=f"{sweep.part} rate",
        scale=alt.Scale(type="log", domain=[sweep.rates[0], sweep.rates[-1]], nice=False),
        axis=alt.Axis(format="~e", tickCount=6, gridOpacity=0.3),
    )
    scale = alt.Scale(domain=[low, high])
    shown = {"rate": ".1e", "loss": ".3f", "smoothed": ".3f"}
    tooltip = [alt.Tooltip(f"{name}:Q", format=digits) for name, digits in shown.items()]
    base = alt.Chart(alt.InlineData(values=values)).encode(x=x, tooltip=tooltip)
    points = base.mark_circle(color=BLUE, opacity=0.35, size=18, clip=True).encode(
        y=alt.Y("loss:Q", title="training loss", scale=scale)
    )
    line = base.mark_line(color=BLUE, strokeWidth=2, clip=True).encode(
        y=alt.Y("smoothed:Q", scale=scale)
    )
    suggested = _mark(sweep, sweep.suggestion, "suggested", VERMILLION, [], -22)
    own = _mark(sweep, recipe_rate, "recipe", GREY, [5, 4], -8)
    return alt.layer(points, line, *suggested, *own).properties(width=560, height=220)


def _mark(
    sweep: Sweep, rate: float | None, word: str, color: str, dash: list[int], height: int
) -> list[alt.Chart]:
    """Return a vertical line at a rate and its name above, or nothing if it was not tried."""
    first, last = sweep.rates[0], sweep.rates[-1]
    if rate is None or not first <= rate <= last:
        return []
    left = math.log(rate / first) > 0.6 * math.log(last / first)  # on which side there is room
    values = [{"rate": rate, "name": f"{word} {rate:.1e}"}]
    base = alt.Chart(alt.InlineData(values=values)).encode(x="rate:Q")
    return [
        base.mark_rule(color=color, strokeWidth=2, strokeDash=dash),
        base.mark_text(color=color, align="right" if left else "left", fontWeight="bold").encode(
            text="name:N", y=alt.value(height)
        ),
    ]
