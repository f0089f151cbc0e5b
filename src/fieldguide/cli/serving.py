"""The command that puts a model behind HTTP: serve."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fieldguide.cli import terminal
from fieldguide.cli.app import app
from fieldguide.cli.flags import PhotosRoot
from fieldguide.cli.opening import open_model, refuse_of_runs
from fieldguide.cli.predicting import ModelPlace
from fieldguide.errors import UsageError
from fieldguide.storage import mirror

if TYPE_CHECKING:
    from fieldguide.predict.model import Model
    from fieldguide.runs.run import Run


@app.command
def serve(
    model: ModelPlace,
    *,
    combine: str | None = None,
    photos_root: PhotosRoot = None,
    right: float | None = None,
    host: str = "127.0.0.1",
    port: int | None = None,
    name: tuple[str, ...] = (),
    max_mb: int = 32,
    queue: int = 64,
) -> None:
    """Answer for photos in the browser and over HTTP, until Ctrl-C.

    The page takes photos that are dropped, pasted or taken, and gives a table away. Programs send a
    photo to POST /predict: /openapi.json describes it. No photo is kept or leaves this machine. A
    run also shows where it looked and what training photos are alike, where these are there.

    Parameters
    ----------
    combine
        The combination of a run's folds, as for `predict`.
    right
        Also answer with a taxon, so that answers are right this often, such as 0.95.
    host
        The address to listen at; 0.0.0.0 lets other machines ask, without a password.
    port
        The port; without it the first free one from 8000 on.
    name
        A name of this machine by which others reach it; may be given several times.
    max_mb
        The largest file, in megabytes.
    queue
        The photos in work at a time; more are told to come back.
    """
    for flag, value in (("--max-mb", max_mb), ("--queue", queue)):
        if value < 1:
            raise UsageError(f"{flag} is below 1: {value}")
    if port is not None and not 0 < port < 65536:
        raise UsageError(f"--port is not between 1 and 65535: {port}")
    from fieldguide.serve import server

    server.require_packages()
    with server.listening(host, port) as listener:
        opened, run = _opened(mirror.run_folder(model, terminal.tell), combine, photos_root)
        taken = listener.getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        if opened.card.crop:
            terminal.tell(
                f"`{model}` was trained on crops ({opened.card.crop}): photos are seen whole here,"
                " and may be misjudged"
            )
        server.serve(
            opened,
            listener=listener,
            most_bytes=max_mb * 1_000_000,
            most_photos=queue,
            names=frozenset(each.lower() for each in (*name, host)),
            right=right,
            run=run,
            started=lambda: terminal.stdout.print(f"http://{shown}:{taken}/ (Ctrl-C ends it)"),
        )
    terminal.tell("stopped")
    sys.stdout.flush()
    os._exit(0)  # nothing is left to save, and torch takes up to two seconds to be taken down


def _opened(
    folder: Path, combine: str | None, photos_root: Path | None
) -> "tuple[Model, Run | None]":
    """Return the model in a folder, or of an export's file, and the run that explains it."""
    from fieldguide.predict.model import Model
    from fieldguide.runs.run import Run

    opened = open_model(folder, photos_root)
    if isinstance(opened, Run):
        there = not opened.crop and opened.catalog.root.exists()
        model = opened.classifier(opened.combination(combine or "ensemble"))
        return model, opened if there else None
    refuse_of_runs(folder, combine, photos_root)
    if isinstance(opened, Model):
        return opened, None
    from fieldguide.predict.classifier import Classifier

    return Classifier.load(opened), None
