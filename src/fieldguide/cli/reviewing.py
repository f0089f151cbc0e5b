"""The command that says which predictions to look at: review."""

from pathlib import Path

from fieldguide.cli import terminal
from fieldguide.cli.app import app
from fieldguide.cli.flags import refuse
from fieldguide.errors import UsageError
from fieldguide.words import count, percent


@app.command
def review(
    predictions: Path,
    *,
    out: Path = Path("review.csv"),
    right: float | None = None,
    label_next: int | None = None,
    overwrite: bool = False,
) -> None:
    """Write the order in which predictions are best looked at: the least sure first.

    Each row tells how many of the photos that are not looked at yet are expected to be wrong, by
    the calibrated confidences of the table.

    Parameters
    ----------
    predictions
        A table that `fieldguide predict` wrote.
    out
        The table to write.
    right
        Stop where this share of all photos is expected to be right, such as 0.98, with those that
        were looked at corrected.
    label_next
        Write this many photos instead that are best labelled and trained on next: the least sure
        of each predicted class in turn.
    overwrite
        Replace an existing table.
    """
    from fieldguide.predict import reviews, tables

    if right is not None and not 0 < right < 1:
        raise UsageError(f"--right = {right} is not between 0 and 1", hint="such as 0.98")
    if label_next is not None:
        refuse(["--right"] if right is not None else (), "for looking, not for --label-next")
        if label_next < 1:
            raise UsageError(f"--label-next is below 1: {label_next}")
    tables.require_free(out, overwrite)
    part = right is not None or label_next is not None
    if part and out.exists() and predictions.exists() and out.samefile(predictions):
        raise UsageError(
            f"`{out}` would lose the predictions that are left out", hint="name another --out"
        )
    found = reviews.read(predictions)
    if label_next is not None:
        chosen = reviews.to_label(found, label_next)
        reviews.write(out, chosen)
        terminal.tell(f"{count(len(chosen.rows), 'photo')} to label next: {out}")
        return
    looked = reviews.needed(found, right)
    reviews.write(out, found, looked)
    photos, left = len(found.wrong), found.left
    terminal.tell(
        f"{count(photos, 'photo')}: {left[0]:.0f} are expected to be wrong"
        f" ({percent(left[0] / max(photos, 1))}); after looking at the first {looked:,},"
        f" {left[looked]:.0f} are left: {out}"
    )
