"""A probe of a frozen backbone: its features of photos, and the linear head that fits them best.

Knows nothing of folds, of run folders and of how features are kept.
"""

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from fieldguide.errors import ResourceError
from fieldguide.machine.cores import count_cores
from fieldguide.machine.device import autocast, is_out_of_memory
from fieldguide.network.batch_norm import absorb
from fieldguide.network.network import Network, last_linear
from fieldguide.photos.augment import Normaliser
from fieldguide.photos.batches import Batch, Draw, Loader
from fieldguide.recipe import Precision

# Photos that the network sees at once: always as many, so that features depend on nothing else.
# A processor is as fast with 16 as with 64, and needs a quarter of the memory in each thread.
BATCH = 16

# Candidates of the penalty's strength, from the strongest. nature100 chose 10 with 36 photos a
# class, 3 with 20 and 0.3 with 7; features of random weights want more.
STRENGTHS: tuple[float, ...] = tuple(10.0 ** (half / 2) for half in range(6, -3, -1))
UNJUDGED = 10.0

# Steps of L-BFGS end at a gradient of so much, in the solver's coordinates. On nature100 the last
# takes 130 evaluations of the loss, a third of it 170; log losses of other photos agree to 0.0005.
BEGUN, ENOUGH_TO_CHOOSE, ENOUGH = 1.0, 0.1, 0.03
MOST_STEPS = 1000

_ROWS = 4096  # whose features are in float64 at once

Features = Float32[Tensor, "n channels"]
Targets = Int[Tensor, " n"]
Wide = Float[Tensor, "..."]  # float64


class Known(NamedTuple):
    """A head of which some rows are known and stay: weight, bias, and whether each row is free."""

    weight: Float[Tensor, "classes channels"]
    bias: Float[Tensor, " classes"]
    free: Bool[Tensor, " classes"]


def features_of(
    network: Network,
    loader: Loader,
    photos: NDArray[np.int64],
    *,
    normaliser: Callable[[], Normaliser],
    device: torch.device,
    precision: Precision,
    progress: Callable[[int], None] = lambda photos: None,
) -> Features:
    """Return what the last linear layer sees of each photo, in main memory.

    Photos go through the network once, by the evaluation transform, with batch norms absorbed. On a
    processor each thread computes batches of its own, so the number of cores changes no bit, nor
    does what else is in a photo's batch. Raises `DataError` for a photo that is lost and
    `ResourceError` where memory does not suffice. `progress` is called with photos done by now.
    """
    body = absorb(network).network
    body.set_submodule(last_linear(body), nn.Identity())
    own = cache(lambda thread: normaliser())  # each reuses the memory of its result

    def compute(batch: Batch) -> Features:
        with torch.inference_mode(), autocast(device, precision):
            images = own(threading.get_ident())(batch.images)
            found: Tensor = body(images)
            return found.float().cpu()

    plan = [_draws(photos[start : start + BATCH]) for start in range(0, len(photos), BATCH)]
    parts: list[Features] = []
    try:
        for part in _computed(compute, loader, plan, device):
            parts.append(part)
            progress(min(BATCH * len(parts), len(photos)))
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise ResourceError(
            f"memory ran out on `{device}` for the features of {BATCH} photos at once",
            hint="lower `size`, or take a smaller `backbone`",
        ) from error
    return torch.cat(parts)[: len(photos)].clone()


def _draws(photos: NDArray[np.int64]) -> list[Draw]:
    """Return a whole batch, in which the last photo stands for those that are missing."""
    return [Draw(photo, None) for photo in np.resize(photos, BATCH).tolist()]


def _computed(
    compute: Callable[[Batch], Features],
    loader: Loader,
    plan: Sequence[Sequence[Draw]],
    device: torch.device,
) -> Iterator[Features]:
    if device.type != "cpu":
        yield from map(compute, loader.batches(plan))
        return
    with _single_threads() as pool:
        try:
            yield from pool.map(lambda draws: compute(loader.pictures[draws]), plan)
        finally:  # also where the caller wants no more
            pool.shutdown(wait=True, cancel_futures=True)


def _single_threads() -> ThreadPoolExecutor:
    """Return a pool with a thread for each core, which computes alone."""
    return ThreadPoolExecutor(count_cores(), initializer=torch.set_num_threads, initargs=(1,))


# --- the regression -------------------------------------------------------------------------------


def fit_head(
    features: Features,
    targets: Targets,
    classes: int,
    strength: float,
    weights: Float[Tensor, " n"] | None = None,
    known: Known | None = None,
) -> tuple[Wide, Wide]:
    """Return weight (classes, channels) and bias (classes,) of multinomial logistic regression.

    They minimise   sum_i k_i · cross_entropy(W x_i + b, y_i) + strength / 2 · s² · |W|²
    with weights k (1 if not given) and s² the mean variance of a channel: as if features had been
    brought to unit variance by one number for all (on nature100 a log loss of 0.684, against 0.701
    with each channel by its own). The bias has no penalty. scikit-learn's `LogisticRegression` has
    the same optimum with C = 1 / strength on x / s. Of a head that is `known`, the free rows alone
    are fitted and have the penalty. Uses one thread and float64.
    """
    problem = _Problem(features, targets, classes, weights, known)
    for enough in (BEGUN, ENOUGH):  # the curvature is measured again in between
        problem.solve(strength, enough)
    return problem.head()


def without_classes(
    features: Features,
    targets: Targets,
    left_out: Sequence[int],
    classes: int,
    strength: float,
    weights: Float[Tensor, " n"] | None = None,
) -> tuple[Wide, Wide]:
    """Return a head as of `fit_head` for the classes that are left, and none of their photos.

    It is solved roughly: of one fold of nature100, the area by which classes left out are told from
    the others is 0.837 as by the exact solution, the share found 0.335 and not 0.321.
    """
    stays = torch.ones(classes, dtype=torch.bool)
    stays[list(left_out)] = False
    number = stays.cumsum(0) - 1
    rows = stays[targets]
    own = None if weights is None else weights[rows]
    problem = _Problem(features[rows], number[targets[rows]], int(stays.sum()), own)
    problem.solve(strength, BEGUN)
    return problem.head()


def choose_strength(
    features: Features,
    targets: Targets,
    classes: int,
    splits: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]],
    weights: Float[Tensor, " n"] | None = None,
    known: Known | None = None,
) -> float:
    """Return the strength of `STRENGTHS` with the least log loss on rows set aside.

    `splits` are rows to fit to and rows set aside; losses are summed over all of them. Candidates
    are tried from the strongest, each from the solution of the last, until the loss rises. Without
    splits it is `UNJUDGED`.
    """
    if not splits:
        return UNJUDGED

    def of_rows(rows: NDArray[np.int64]) -> Tensor | None:
        return None if weights is None else weights[rows]

    problems = [
        _Problem(features[fit], targets[fit], classes, of_rows(fit), known) for fit, _ in splits
    ]
    best, least = STRENGTHS[0], math.inf
    for strength in STRENGTHS:
        loss = 0.0
        for problem, (_, aside) in zip(problems, splits, strict=True):
            problem.solve(strength, ENOUGH_TO_CHOOSE)
            weight, bias = problem.head()
            logits = features[aside].double() @ weight.T + bias
            losses = torch.nn.functional.cross_entropy(logits, targets[aside], reduction="none")
            judged = of_rows(aside)
            loss += float((losses if judged is None else losses * judged).sum())
        if loss > least:
            break
        best, least = strength, loss
    return best


def _pieces(tensor: Tensor) -> Iterator[Tensor]:
    for start in range(0, len(tensor), _ROWS):
        yield tensor[start : start + _ROWS]


class _Problem:
    """A regression in coordinates in which its curvature is about the same in all directions.

    Features z lie along the axes of their covariance, and each axis is divided by the root of the
    curvature there: strength + c · z², where c is the mean of p (1 - p) over photos and classes.
    L-BFGS then needs a few dozen steps where it needs hundreds in the features themselves.
    """

    def __init__(
        self,
        features: Features,
        targets: Targets,
        classes: int,
        weights: Float[Tensor, " n"] | None,
        known: Known | None = None,
    ) -> None:
        count, channels = features.shape
        self.targets = targets
        self.weights = torch.ones(count) if weights is None else weights
        self.mean = torch.zeros(channels, dtype=torch.float64)
        for part in _pieces(features):
            self.mean += part.double().sum(0) / count
        square = torch.zeros(channels, channels, dtype=torch.float64)
        for part in _pieces(features):
            centred = part.double() - self.mean
            square += centred.T @ centred
        scale = (square.trace() / channels / count).sqrt().clamp_min(1e-12)
        spectrum, axes = torch.linalg.eigh(square / scale**2)
        self.spectrum, self.axes = spectrum.clamp_min(0), axes / scale
        rotated = [((p.double() - self.mean) @ self.axes).float() for p in _pieces(features)]
        self.rotated = torch.cat(rotated)
        self.weight = torch.zeros(channels, classes, dtype=torch.float64)
        found = torch.bincount(targets, self.weights.double(), minlength=classes) + 1
        self.bias = (found / found.sum()).log()
        self.variance = (1 - 1 / classes) / classes  # c, of equal probabilities
        self.known, self.free = known, torch.ones(classes, dtype=torch.bool)
        if known:  # its rows in the coordinates of this problem
            weight, self.free = known.weight.double() * ~known.free[:, None], known.free
            self.weight = scale**2 * self.axes.T @ weight.T
            offset = known.bias.double() + weight @ self.mean
            self.bias = torch.where(self.free, self.bias, offset)

    def solve(self, strength: float, enough: float) -> None:
        """Change the solution, from the present one, to that of a strength."""
        step = (self.variance * self.spectrum + strength).rsqrt()[:, None]
        weight, bias = self.weight / step, self.bias.clone()
        optimizer = torch.optim.LBFGS(
            [weight.requires_grad_(), bias.requires_grad_()],
            max_iter=MOST_STEPS,
            history_size=20,
            tolerance_grad=enough,
            tolerance_change=0,
            line_search_fn="strong_wolfe",
        )

        @torch.no_grad()
        def loss() -> Tensor:
            value, slope, bias.grad = self._loss(step * weight, bias)
            free = weight * self.free
            weight.grad = step * slope * self.free + strength * step**2 * free
            bias.grad *= self.free
            penalty: Tensor = strength / 2 * (step * free).square().sum()
            return value + penalty

        optimizer.step(loss)  # type: ignore[no-untyped-call]
        self.weight, self.bias = step * weight.detach(), bias.detach()

    def _loss(self, weight: Wide, bias: Wide) -> tuple[Tensor, Wide, Wide]:
        """Return the loss without the penalty, and its gradients."""
        loss, spread = torch.zeros((), dtype=torch.float64), 0.0
        slope, offset = torch.zeros_like(weight), torch.zeros_like(bias)
        parts = zip(
            *(_pieces(each) for each in (self.rotated, self.targets, self.weights)), strict=True
        )
        for rotated, targets, weights in parts:
            features = rotated.double()
            logs = torch.log_softmax(features @ weight + bias, dim=1)
            own = targets[:, None]
            loss -= (weights * logs.gather(1, own)[:, 0]).sum()
            errors = logs.exp_()
            spread += float((weights * (1 - errors.square().sum(1))).sum())
            errors.scatter_add_(1, own, torch.full_like(own, -1, dtype=torch.float64))
            errors *= weights[:, None]
            slope += features.T @ errors
            offset += errors.sum(0)
        self.variance = spread / len(self.targets) / len(bias)
        return loss, slope, offset

    def head(self) -> tuple[Wide, Wide]:
        """Return weight and bias for the features as they were given."""
        weight = (self.axes @ self.weight).T
        bias = self.bias - weight @ self.mean
        if self.known:  # to the bit
            weight = torch.where(self.free[:, None], weight, self.known.weight.double())
            bias = torch.where(self.free, bias, self.known.bias.double())
        return weight, bias
