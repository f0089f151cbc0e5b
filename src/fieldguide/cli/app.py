"""The command line's frame, which runs one command and turns errors into exit codes."""

import errno
import io
import os
import re
import shlex
import signal
import sys
from collections.abc import Container, Mapping, Sequence

from cyclopts import App, CycloptsError, Parameter
from cyclopts.help import DefaultFormatter, HelpPanel, InlineText
from pydantic import ValidationError
from rich.console import Console, ConsoleOptions
from rich.text import Text

from fieldguide import recipe as recipes
from fieldguide.cli import terminal
from fieldguide.errors import FieldguideError, ResourceError, Stopped, UsageError
from fieldguide.machine.torchrun import launch
from fieldguide.words import LITE, installed, os_reason

# Options of `submit` alone; the first is what `predict` called --sample.
SUBMISSION = ("--submission", "--sample", "--columns", "--id", "--zip", "--no-zip")


class Flowing(DefaultFormatter):
    """Help whose paragraphs fill the terminal, whatever the line ends of a docstring."""

    def render_description(
        self, console: Console, options: ConsoleOptions, description: object
    ) -> None:
        """Print what a command does."""
        super().render_description(console, options, _flowing(description))

    def __call__(self, console: Console, options: ConsoleOptions, panel: HelpPanel) -> None:
        """Print a group of options or commands."""
        for entry in panel.entries:
            _flowing(entry.description)
        super().__call__(console, options, panel)


def _flowing(text: object) -> object:
    """Return the text, changed in place, with single line ends as blanks."""
    if isinstance(text, InlineText) and isinstance(text.primary_renderable, Text):
        plain = text.primary_renderable.plain
        text.primary_renderable = Text(re.sub(r"(?<=\S)\n(?=\S)", " ", plain))
    return text


app = App(
    name="fieldguide",
    help="Turn a folder of photographs into an image classifier you can trust.",
    version=lambda: installed()[1],
    help_format="plaintext",
    help_formatter=Flowing(),
    default_parameter=Parameter(negative_iterable=()),
    suppress_keyboard_interrupt=False,
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a console may lack a name's characters
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; errors go to stderr."""
    try:
        # Several processes would do the same in the same folder.
        if launch().world > 1 and arguments[:1] not in (["fit"], ["recipe"]):
            raise UsageError("only `fit` works on several ranks", hint="leave torchrun out")
        _refuse_submissions(arguments)
        app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()  # here a full disk can still be reported
    except CycloptsError as error:
        if isinstance(error.__cause__, ValidationError):
            return _tell(recipes.usage_error(error.__cause__))
        return _tell(UsageError(str(error), hint="--help lists the commands and options"))
    except FieldguideError as error:
        return _tell(error)
    except KeyboardInterrupt:
        return _tell(Stopped(signal.SIGINT, "stopped at once"))
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except ImportError as error:  # of torch and others that are only imported when they are needed
        hint = "install it again, in the version that `pip install fieldguide` chooses"
        if installed()[0] == LITE:
            hint = f"this is {LITE}, which predicts by exported models: the rest needs fieldguide"
        return _tell(ResourceError(f"`{error.name}` cannot be imported: {error}", hint=hint))
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _tell(ResourceError(f"the output cannot be written: {os_reason(error)}"))
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    return 0


def _refuse_submissions(arguments: Sequence[str]) -> None:
    """Raise `UsageError` for `predict` with an option of `submit`, with the command to type."""
    asked = [each for each in arguments if each.partition("=")[0] in SUBMISSION]
    if arguments[:1] == ["predict"] and asked:
        kept = _without_flags(arguments[1:], _flags("predict"), _flags("submit"))
        meant = [re.sub(r"^--submission(?==|$)", "--sample", each) for each in kept]
        raise UsageError(
            f"{asked[0].partition('=')[0]} is for submissions, which have a command of their own",
            hint=f"type: {shlex.join(['fieldguide', 'submit', *meant])}",
        )


def _flags(command: str) -> dict[str, bool]:
    """Return the options of a command, and whether a value follows each."""
    return {
        name: argument.token_count()[0] > 0 and name.startswith("-")
        for argument in app[command].assemble_argument_collection()
        for name in argument.names
    }


def _without_flags(
    arguments: Sequence[str], own: Mapping[str, bool], others: Container[str]
) -> list[str]:
    """Return the arguments without options, and their values, that the other command lacks."""
    kept, value = [], False
    for each in arguments:
        name, equals, _ = each.partition("=")
        alone = name in own and name not in others
        if not alone and not value:
            kept.append(each)
        value = alone and own[name] and not equals
    return kept


def _tell(error: FieldguideError) -> int:
    terminal.tell(f"error: {error}")
    return error.exit_code
