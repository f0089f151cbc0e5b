"""The command line's frame: runs one command and turns errors into exit codes."""

import io
import os
import signal
import sys
from collections.abc import Sequence
from importlib import metadata

from cyclopts import App, CycloptsError, Parameter
from pydantic import ValidationError

from fieldguide import recipe as recipes
from fieldguide.cli import terminal
from fieldguide.errors import FieldguideError, Stopped, UsageError
from fieldguide.launched import launch

app = App(
    name="fieldguide",
    help="Turn a folder of photographs into an image classifier you can trust.",
    version=lambda: metadata.version("fieldguide"),
    help_format="plaintext",
    default_parameter=Parameter(negative_iterable=()),
    suppress_keyboard_interrupt=False,
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command and exits with its code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a console may lack a name's characters
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Runs one command; returns its exit code, with errors told on stderr."""
    try:
        _refuse_ranks(arguments)
        app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        if isinstance(error.__cause__, ValidationError):
            return _tell(recipes.usage_error(error.__cause__))
        return _tell(UsageError(str(error), hint="--help lists what there is"))
    except FieldguideError as error:
        return _tell(error)
    except KeyboardInterrupt:
        return _tell(Stopped(signal.SIGINT, "stopped at once"))
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    return 0


def _refuse_ranks(arguments: Sequence[str]) -> None:
    """Raises `UsageError` where several processes would do the same in the same place."""
    if launch().world > 1 and arguments[:1] not in (["fit"], ["recipe"]):
        raise UsageError("only `fit` works on several ranks", hint="leave torchrun out")


def _tell(error: FieldguideError) -> int:
    terminal.stderr.print(f"error: {error}", soft_wrap=True)
    return error.exit_code
