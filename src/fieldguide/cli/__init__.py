"""The command line: it parses, calls the library, prints, and turns errors into exit codes.

Data go to stdout, messages to stderr. Commands that need torch import it after all checks that do
without it, so help, typing mistakes and bad settings are answered at once.
"""

from fieldguide.cli import (  # noqa: F401 - add commands
    cache,
    choosing,
    exporting,
    merging,
    predicting,
    reviewing,
    scoring,
    seeing,
    serving,
    training,
)
from fieldguide.cli.app import app, main, run

__all__ = ["app", "main", "run"]
