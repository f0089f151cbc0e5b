"""The tables that commands print: a collection, its findings, scores, classifiers, doubts.

They are plain and readable without colour. Knows nothing of where the numbers come from.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Column, Table

from fieldguide.cli.terminal import cell
from fieldguide.words import count, duration, quoted, shown_bytes

if TYPE_CHECKING:
    from fieldguide.analysis.paired import Contrast
    from fieldguide.analysis.promises import Promise
    from fieldguide.analysis.unknown import Worth as UnknownWorth
    from fieldguide.network.offers import Offer
    from fieldguide.photos.catalog import Catalog
    from fieldguide.photos.check import Finding
    from fieldguide.photos.inspect import Facts
    from fieldguide.predict.merge_files import Barrier
    from fieldguide.report.comparison import Comparison
    from fieldguide.report.comparison import Row as Trial
    from fieldguide.runs.run import Run
    from fieldguide.runs.scores import ListedScores
    from fieldguide.study.holdout_scores import Worths
    from fieldguide.study.labels import Doubts
    from fieldguide.study.ranking import Ranking
    from fieldguide.study.similar import Similar

SHOWN = 10  # rows of a ranked list; the whole of it goes to a file (taste)


def print_collection(console: Console, catalog: "Catalog", facts: "Sequence[Facts]") -> None:
    """Print photos and classes of each part, and the sizes of photos."""
    table = Table("part", "photos", "classes", "fewest", "median", "most", box=None)
    for split in ("train", "val", "test"):
        part = catalog.part(split)
        if part.photos:
            counts = sorted(Counter(p.label for p in part.photos if p.label is not None).values())
            known = [len(counts), counts[0], counts[len(counts) // 2], counts[-1]] if counts else []
            table.add_row(split, f"{len(part):,}", *(map(str, known) if known else ["–"] * 4))
    console.print(table)
    sides = sorted(min(fact.width, fact.height) for fact in facts if not fact.problem)
    if sides:
        console.print(
            f"shorter side: {sides[0]} to {sides[-1]} pixels, median {sides[len(sides) // 2]}"
        )


def print_findings(console: Console, found: "Sequence[Finding]", csv: Path | None) -> None:
    """Print the findings of a check by kind, with one example and one hint each."""
    if not found:
        console.print("nothing was found that would disturb a fit")
        return
    table = Table("finding", "times", "stops a fit", "example", box=None)
    hints = []
    for kind in dict.fromkeys(finding.kind for finding in found):
        alike = [finding for finding in found if finding.kind == kind]
        first = alike[0]
        example = f"{first.path}: {first.message}" if first.path else first.message
        stops = "yes" if any(finding.fatal for finding in alike) else "no"
        table.add_row(kind, str(len(alike)), stops, cell(example))
        hints += [f"{kind}: {first.hint}"] if first.hint else []
    console.print(table)
    for hint in hints:
        console.print(hint, markup=False)
    if csv is None:
        console.print("--csv FILE lists them all")


def print_scores(console: Console, run: "Run", place: str = "") -> None:
    """Print out-of-fold scores of a run, which is in `place` (if not in its folder)."""
    from fieldguide.photos.check import UNEVEN
    from fieldguide.photos.groups import holds_for

    scores = run.scores
    low, high = scores.interval
    done = len(scores.accuracy_per_fold)
    part = "" if done == run.recipe.folds else f" ({done} of {run.recipe.folds} folds done)"
    console.print(
        f"out-of-fold accuracy {scores.accuracy:.1%}, 95 % interval {low:.1%} to {high:.1%}{part}"
    )
    console.print(f"it holds for {holds_for(run.environment.get('collection', ''))}")
    support = run.per_class.support
    if support.max() > UNEVEN * max(support.min(), 1):
        console.print(
            f"balanced accuracy {scores.balanced_accuracy:.1%}: the largest class has"
            f" {support.max():,} photos, the smallest {support.min():,}"
        )
    table = Table("score", "value", "95 % interval", box=None)
    for fold, accuracy in scores.accuracy_per_fold.items():
        table.add_row(f"accuracy of fold {fold}", f"{accuracy:.1%}")
    if scores.selected_accuracy is not None:
        table.add_row("accuracy at selected epochs (optimistic)", f"{scores.selected_accuracy:.1%}")
    for name, form in (
        ("balanced_accuracy", ".1%"),
        ("macro_f1", ".1%"),
        ("top_5_accuracy", ".1%"),
        ("log_loss", ".3f"),
    ):
        value = getattr(scores, name)
        if value is not None:
            below, above = scores.intervals[name]
            words = name.replace("_", " ").replace("f1", "F1").replace("top 5", "top-5")
            table.add_row(words, f"{value:{form}}", f"{below:{form}} to {above:{form}}")
    table.add_row("calibration error", f"{scores.calibration_error:.3f}")
    table.add_row(
        f"calibration error, scaled by temperature {scores.temperature:.2f}",
        f"{scores.scaled_calibration_error:.3f}",
    )
    table.add_row("photos", f"{scores.photos:,}")
    console.print(table)
    console.print(f"training took {duration(run.seconds)}; everything is in {place or run.folder}")


def print_classes(console: Console, run: "Run") -> None:
    """Print precision, recall and F1 of each class, out of fold."""
    names = ("photos", "precision", "recall", "F1", "right in 95 % from")
    table = Table(Column("class", overflow="fold"), *names, box=None)
    found = run.per_class
    columns = (found.support, found.precision, found.recall, found.f1)
    trusted = [sure_from(promise) for promise in run.trust.classes]
    for label, support, *shares, sure in zip(run.classes, *columns, trusted, strict=True):
        table.add_row(cell(label), f"{support:,}", *(f"{share:.1%}" for share in shares), sure)
    console.print(table)


def sure_from(promise: "Promise") -> str:
    """Return the confidence from which photos called so are right, and the share that reach it."""
    if promise.threshold is None:
        return "never"
    return f"{promise.threshold:.0%} ({promise.answered:.0%} of photos)"


def print_listed(console: Console, found: "ListedScores", name: str) -> None:
    """Print what a list of the classes that can occur changes."""
    low, high = found.interval
    console.print(
        f"with {name}, {count(found.photos, 'photo')} of {count(found.classes, 'class')} that can"
        f" occur: {found.accuracy:.1%} right instead of {found.before:.1%} ({100 * found.gain:+.1f}"
        f" points, 95 % interval {100 * low:+.1f} to {100 * high:+.1f})"
    )


def print_unknown(console: Console, found: "UnknownWorth", what: str) -> None:
    """Print how well unknown photos are told from known ones."""
    below, above = found.auroc_interval
    told = f"known photos too few to mark {found.alarm:.0%} of"
    if found.found is not None and found.found_interval is not None:
        low, high = found.found_interval
        told = (
            f"{found.found:.1%} found (95 % interval {low:.1%} to {high:.1%}) where"
            f" {found.alarm:.0%} of known photos would be taken for unknown"
        )
    console.print(
        f"unknown {what}, {count(found.photos, 'photo')}: {told}; less familiar than a known photo"
        f" in {found.auroc:.1%} of pairs ({below:.1%} to {above:.1%}; by chance half)"
    )


def print_worths(console: Console, found: "Worths", part: str = "outside") -> None:
    """Print classifiers side by side on photos outside all folds, with their cost."""
    which = "of the test part" if part == "test" else "outside all folds"
    console.print(f"\non {found.photos:,} photos {which} (calib.: calibration error, scaled):")
    table = Table(
        Column("classifier", no_wrap=True),
        *("accuracy", "interval", "log loss", "calib."),
        *("weights", "photos/s", "size"),
        box=None,
        padding=(0, 1, 0, 0),  # the usual two blanks would not fit into 80 columns
    )
    for row in found.rows:
        low, high = row.interval
        table.add_row(
            row.name + ("*" if row.note else ""),
            f"{row.accuracy:.1%}",
            f"{100 * low:.1f}–{high:.1%}",
            f"{row.log_loss:.3f}",
            f"{row.calibration_error:.3f}",
            f"{row.parameters / 1e6:.1f} M",
            f"{row.photos_per_second:.0f}",
            f"{row.bytes / 1e6:.0f} MB",
        )
    console.print(table)
    for note in dict.fromkeys(row.note for row in found.rows if row.note):
        console.print(f"* {note}")


def print_barrier(console: Console, copies: Sequence[str], barrier: "Barrier") -> None:
    """Print the accuracies of checkpoints and of the merged weights."""
    table = Table(f"on {barrier.photos:,} photos", "accuracy", box=None)
    for copy, accuracy in zip(copies, barrier.copies, strict=True):
        table.add_row(cell(copy), f"{accuracy:.1%}")
    table.add_row("merged", f"{barrier.merged:.1%}")
    console.print(table)


def print_offers(console: Console, found: "Sequence[Offer]", good_for: Mapping[str, str]) -> None:
    """Print backbones, if any, with the size and the licence of their weights."""
    table = Table(
        Column("backbone", no_wrap=True),
        *("weights", "pixels", "licence"),
        *(["good for"] if good_for else []),
        box=None,
        padding=(0, 1, 0, 0),
    )
    if not found:
        return
    for offer in found:
        more = [good_for[offer.backbone]] if good_for else []
        size = f"{offer.parameters / 1e6:.1f} M"
        table.add_row(cell(offer.backbone), size, str(offer.size), offer.license, *more)
    console.print(table)


def print_ranking(console: Console, found: "Ranking") -> None:
    """Print backbones by their accuracy on photos, and what each costs here."""
    of = f" of {found.collection:,}" if found.photos < found.collection else ""
    classes = f" of {found.of_classes:,}" if found.classes < found.of_classes else ""
    console.print(
        f"on {found.photos:,}{of} photos of {found.classes:,}{classes} classes, out of fold, by a"
        " regression on frozen features:"
    )
    able = [row for row in found.rows if row.accuracy is not None and row.interval is not None]
    first = Table(
        Column("backbone", no_wrap=True),
        *("accuracy", "interval", "less the best's"),
        box=None,
        padding=(0, 1, 0, 0),
    )
    cost = Table(
        Column("backbone", no_wrap=True),
        *("weights", "memory", "train", "predict", "licence"),
        box=None,
        padding=(0, 1, 0, 0),
    )
    for row in able:
        low, high = row.interval or (0.0, 0.0)
        first.add_row(
            cell(row.backbone),
            f"{row.accuracy:.1%}",
            f"{100 * low:.1f}–{high:.1%}",
            _against(row.contrast),
        )
        if row.cost:
            cost.add_row(
                cell(row.backbone),
                f"{row.cost.parameters / 1e6:.1f} M",
                shown_bytes(row.cost.memory),
                f"{row.cost.train:.0f}" if row.cost.train else "–",
                f"{row.cost.predict:.0f}",
                cell(row.cost.license),
            )
    console.print(first)
    for row in found.rows:
        if row.note:
            console.print(f"not tried: {row.backbone}: {row.note}")
    alike = [
        row.backbone
        for row in able
        if row.contrast and row.contrast.verdict == "no difference shown"
    ]
    if alike:
        console.print(f"no difference to the best is shown for {quoted(alike)}")
    console.print(
        f"\nwhat they take, at {found.pixels} (photos a second of one process on"
        f" {count(found.threads, 'thread')} of {found.device};\nmemory of a training step of"
        f" {found.batch_size} photos, about):"
    )
    console.print(cost)


def _against(contrast: "Contrast | None") -> str:
    if contrast is None:
        return ""
    change, least, most = contrast.difference, contrast.low, contrast.high
    return f"{100 * change:+.1f} [{100 * least:+.1f}, {100 * most:+.1f}]"


def print_comparison(console: Console, found: "Comparison") -> None:
    """Print trials side by side, each against the base, and the corrected best accuracy."""
    table = Table(
        Column("trial", overflow="fold"),
        *("accuracy", "interval", "against the base", "verdict", "time"),
        box=None,
        padding=(0, 1, 0, 0),
    )
    for row in found.rows:
        table.add_row(cell(row.name), *_trial_cells(row))
    console.print(table)
    if found.seeds == 1 and any(
        row.contrast and row.contrast.verdict != "no difference shown" for row in found.rows
    ):
        console.print(
            "a difference may be a seed's: --seeds 3 trains each with three and tests that"
        )
    winner = found.winner
    if winner is not None and winner.trials > 1:
        console.print(
            f"best of {winner.trials}: `{winner.name}`; its {winner.accuracy:.1%} is optimistic, as"
            f" it was chosen on the same photos; corrected for that: {winner.corrected:.1%}"
        )
    for note in found.notes:
        console.print(note)


def _trial_cells(row: "Trial") -> list[str]:
    if row.accuracy is None or row.interval is None:
        return ["", "", "", row.status, ""]
    low, high = row.interval
    against = _against(row.contrast)
    verdict = row.contrast.verdict if row.contrast else row.status
    time = duration(row.seconds) if row.seconds else ""
    return [f"{row.accuracy:.1%}", f"{100 * low:.1f}–{high:.1%}", against, verdict, time]


def print_doubts(console: Console, run: "Run", found: "Doubts", csv: Path) -> None:
    """Print the most suspicious labels, confused pairs, and classes that folds disagree on."""
    listed = f"{len(found.ranked):,} of {found.photos:,} labels look wrong"
    console.print(f"{listed}: look at them; the list with reasons is {csv}")
    for doubt in found.ranked[:SHOWN]:
        console.print(f"  {doubt.path}\n    is labelled `{doubt.label}`: {doubt.reason}")
    console.print("\nclasses most often confused with each other:")
    names = run.classes
    rows = [(names[p.one], names[p.other], str(p.photos), f"{p.rate:.1%}") for p in found.confused]
    _print_ranked(console, ("one", "other", "photos", "share of both"), rows)
    if found.unsteady:
        console.print("\nclasses whose recall differs between folds:")
        rows = []
        for each in found.unsteady:
            recalls = ", ".join(f"{recall:.0%}" for recall in each.recalls.values())
            rows.append((names[each.label], str(each.photos), recalls, f"{each.adjusted:.3f}"))
        _print_ranked(console, ("class", "photos", "recall by fold", "adjusted p"), rows)


def print_similar(console: Console, run: "Run", found: "Similar") -> None:
    """Print the training photos most like one."""
    console.print(cell(found.name))
    table = Table("similarity", Column("label", overflow="fold"), Column("path", overflow="fold"))
    table.box = None
    for like in found.likes:
        photo = run.catalog.photos[like.photo]
        table.add_row(f"{like.similarity:.2f}", cell(str(photo.label)), cell(photo.path))
    console.print(table)


def _print_ranked(console: Console, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print the first rows of a ranked list; names are text, never markup."""
    if not rows:
        console.print("none")
        return
    table = Table(*(Column(name, overflow="fold") for name in header), box=None)
    for row in rows[:SHOWN]:
        table.add_row(*map(cell, row))
    console.print(table)
    if len(rows) > SHOWN:
        console.print(f"and {len(rows) - SHOWN:,} more")
