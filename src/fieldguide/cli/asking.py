"""What `predict` is asked beside the most probable classes: sets, unknown photos, taxa, events."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from fieldguide.analysis.taxa import AUTO
from fieldguide.cli import terminal
from fieldguide.cli.flags import Lists, given
from fieldguide.errors import UsageError
from fieldguide.words import percent

if TYPE_CHECKING:
    from fieldguide.analysis.conformal import Method, Sets
    from fieldguide.analysis.promises import Promise
    from fieldguide.predict.inputs import Input
    from fieldguide.predict.model import Model
    from fieldguide.predict.tables import Predictions


@dataclass(frozen=True)
class Questions:
    """The flags for what a table of predictions also says.

    Parameters
    ----------
    coverage
        Add a set of classes that contains the true one this often, such as 0.95, and `unsure`.
    sets
        Use one threshold for all photos (split), or one that adapts to a photo (adaptive); with
        -per-class the coverage is reached in every class, not only on average.
    unknown
        Mark photos that look like nothing known: about this share of known ones is marked too,
        such as 0.05. Adds `unknown` and `familiarity`.
    right
        Add a taxon for each photo that is sure enough, so that answers are right this often, such
        as 0.95: the class, or a taxon above it where the run has a taxonomy (fit --taxonomy).
    rank
        The rank of these taxa: auto (the default: the finest that is sure enough), label, genus, …;
        without --right every photo is answered.
    only
        A list of the classes that can occur (.txt, one a line), or a table of `label` and `weight`,
        how common each is: probabilities are weighed by it and made to sum to 1 again.
    group
        Also write OUT.events.csv, one answer for all photos of an event: event (a column of PHOTOS,
        or times within --event-gap, of folders those of EXIF), a column, folder:N, stem or
        stem:REGEX.
    event_gap
        The most seconds between photos of one event, where events come from times; 60 if not given.
    """

    coverage: float | None = None
    sets: Literal["split", "adaptive", "split-per-class", "adaptive-per-class"] | None = None
    unknown: float | None = None
    right: float | None = None
    rank: str | None = None
    only: Path | None = None
    group: str | None = None
    event_gap: float | None = None

    @property
    def taxa(self) -> bool:
        """Whether taxa are asked for."""
        return self.right is not None or self.rank is not None

    @property
    def calibrated(self) -> bool:
        """Whether something is asked that holds for one view and all classes alone."""
        return any(share is not None for share in (self.coverage, self.unknown, self.right))

    def require_possible(self, calibrated: bool) -> None:
        """Raise `UsageError` for shares outside 0 … 1, and for flags that do not go together."""
        for name, example in (("coverage", 0.95), ("unknown", 0.05), ("right", 0.95)):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise UsageError(
                    f"--{name} = {value} is not between 0 and 1", hint=f"such as {example}"
                )
        for flag, needed in (("--coverage", self.coverage), ("--right", self.right)):
            if needed is not None and not calibrated:
                raise UsageError(
                    f"{flag} needs calibrated probabilities: leave --no-calibrated out"
                )
            if needed is not None and self.only is not None:
                raise UsageError(
                    f"--only changes probabilities, and {flag} was calibrated without it",
                    hint="leave one of them out",
                )
        if self.sets and self.coverage is None:
            raise UsageError("--sets has no effect without --coverage")
        if self.rank == AUTO and self.right is None:
            raise UsageError("--rank auto needs --right", hint="such as --right 0.95")
        if self.event_gap is not None and self.group is None:
            raise UsageError(
                "--event-gap has no effect without --group", hint="such as --group event"
            )

    def columns(self) -> list[str]:
        """Return the flags that are given and answered in columns of a table alone."""
        return [flag for flag in given(self) if flag not in {"--only", "--group", "--event-gap"}]

    def sets_asked(self) -> "Sets | None":
        """Return the sets of classes that are asked for."""
        if self.coverage is None:
            return None
        from fieldguide.analysis.conformal import Sets

        kind = self.sets or "split"
        method: Method = "adaptive" if kind.startswith("adaptive") else "split"
        return Sets(self.coverage, method, kind.endswith("-per-class"))

    def events(
        self, photos: Sequence[str], found: "Sequence[Input]", lists: Lists
    ) -> list[str] | None:
        """Return the event of each photo, if events are asked for."""
        if self.group is None:
            return None
        from fieldguide.predict import events

        if len(photos) > 1:
            raise UsageError("--group is for one source of photos, and several are given")
        return events.named(
            photos[0],
            found,
            self.group,
            gap=self.event_gap,
            path_column=lists.path_column,
            root=lists.root,
            encoding=lists.encoding,
            form=lists.format,
        )

    def answers(self, classifier: "Model") -> "Callable[[Predictions], Predictions]":
        """Return what adds unknown photos, taxa and weights to predictions; tell of promises.

        Raises `UsageError` for a classifier of an older version, and what `answers_by` raises.
        """
        from fieldguide.predict import occurrence

        if self.unknown is not None:
            classifier.require_known_photos()
            _require_alarm(classifier, self.unknown)
        if classifier.merged and (self.unknown or self.right):
            terminal.tell(
                "known photos were judged by the folds, not by their merged model: it may mark more"
                " of the known ones as unknown, and keep a promise less often"
            )
        answering, weights = None, None
        if self.taxa:
            answering = classifier.answers_by(self.right, self.rank or AUTO)
            if answering.promise is not None:
                terminal.tell(promised(answering.promise, self.rank or AUTO))
        if self.only is not None:
            weights = occurrence.read(self.only, classifier.classes, terminal.tell)
        alarm = self.unknown or 0.0

        def add(chunk: "Predictions") -> "Predictions":
            more = replace(chunk, alarm=alarm, answering=answering)
            return more if weights is None else more.weighed(weights)

        return add


QuestionFlags = Annotated[Questions, Parameter(name="*")]


def _require_alarm(classifier: "Model", alarm: float) -> None:
    """Raise `UsageError` where known photos are too few for one to be marked."""
    known = len(classifier.out_of_fold.targets)
    if alarm * (known + 1) < 1:
        raise UsageError(
            f"--unknown {alarm:g} is less than one of {known:,} known photos: none could be marked",
            hint=f"at least {1 / (known + 1):.2g}",
        )


def promised(promise: "Promise", rank: str) -> str:
    """Return what a promise says of the answers to come."""
    from fieldguide.analysis import promises

    what = "answers" if rank == AUTO else f"answers of rank `{rank}`"
    asked = f"{100 * promise.asked:g} %"
    if promise.threshold is None:
        return (
            f"no confidence can be promised to make {what} right in {asked}:"
            f" none is given (known photos out of fold: {promise.photos:,}; at least"
            f" {promises.fewest(promise.asked):,} are needed, all of them right)"
        )
    return (
        f"{what} from a confidence of {promise.threshold:g} are promised to be right in"
        f" {asked}: out of fold {percent(promise.right)} were, of"
        f" {percent(promise.answered)} of {promise.photos:,} photos that had one"
    )
