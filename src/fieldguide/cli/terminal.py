"""The two streams: data go to stdout, messages to stderr. Names are text, never markup."""

import sys

from rich.console import Console

# Columns of a table that goes to a file or another program, where no terminal says how many fit.
PIPED_WIDTH = 160


class Terminal(Console):
    """A console that leaves a closed pipe to `app.run`."""

    def on_broken_pipe(self) -> None:
        """Called by rich while it handles the error; its own way ends with exit code 1."""
        raise BrokenPipeError


stdout = Terminal(
    highlight=False,
    soft_wrap=True,
    markup=False,
    width=None if sys.stdout.isatty() else PIPED_WIDTH,
)
stderr = Terminal(stderr=True, highlight=False, markup=False)
