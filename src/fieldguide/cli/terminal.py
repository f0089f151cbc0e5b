"""The two streams: stdout for data, stderr for messages. Names are text, never markup."""

import sys
from typing import Any

from rich.console import Console
from rich.text import Text

# Columns of a table that goes to a file or another program.
PIPED_WIDTH = 160


class Terminal(Console):
    """A console that shows control characters of names, and leaves a closed pipe to `app.run`."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print; plain text is made harmless first."""
        super().print(
            *(shown(each) if isinstance(each, str) else each for each in objects), **options
        )

    def on_broken_pipe(self) -> None:
        """Raise the error again, in place of rich's own exit with code 1."""
        raise BrokenPipeError


def shown(text: str) -> str:
    """Return the text with control characters, but line ends and tabs, written out as `\\x1b`.

    Bytes of names that are not UTF-8 are written the same way. Blanks that do not break, as pages
    have them before `%`, become blanks.
    """
    plain = text.replace("\xa0", " ")
    written = (e if e in "\n\t" or e.isprintable() else repr(e)[1:-1] for e in plain)
    return "".join(each.replace("\\udc", "\\x") if len(each) > 1 else each for each in written)


def cell(text: str) -> Text:
    """Return a name as a table's cell: one line, no markup, no control characters."""
    return Text(shown(text).replace("\n", "\\n").replace("\t", "\\t"))


stdout = Terminal(
    highlight=False,
    soft_wrap=True,
    markup=False,
    width=None if sys.stdout is not None and sys.stdout.isatty() else PIPED_WIDTH,
)
stderr = Terminal(stderr=True, highlight=False, markup=False)
silent = Terminal(stderr=True, quiet=True)  # of ranks but the first


def tell(text: str) -> None:
    """Print a message to stderr, as long a line as it is."""
    stderr.print(text, soft_wrap=True)
