"""The errors that a user meets, as one tree. Each class carries the command line's exit code.

FieldguideError
├── UsageError        2  a command, option or recipe that cannot work
├── DataError         3  photographs, folders or tables that cannot be used
│   ├── PhotosAway       no photo lies where they should: perhaps a disk that is not mounted
│   └── UnreadablePhoto  one file that holds no usable picture
├── ResourceError     4  disk, network, device, or a run folder that cannot be used
├── TrainingError     5  training went wrong: it diverged
└── Stopped     130/143  ended by a signal after its work was saved

Knows nothing of the rest of the package.
"""

import pickle
import traceback


class FieldguideError(Exception):
    """A mistake or mishap that its message explains; `hint` says what to do about it."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n\nhint: {self.hint}" if self.hint else self.message


class UsageError(FieldguideError):
    """A command, an option or a recipe that cannot work."""

    exit_code = 2


class DataError(FieldguideError):
    """Photographs, folders or tables that cannot be used as they are."""

    exit_code = 3


class PhotosAway(DataError):
    """A place for photos that is not there, or holds nothing at all."""


class UnreadablePhoto(DataError):
    """A file that holds no usable picture; the message is the reason, without the path."""


class ResourceError(FieldguideError):
    """A disk, network, device or run folder that cannot serve."""

    exit_code = 4


class TrainingError(FieldguideError):
    """A failure of training that no resume can mend."""

    exit_code = 5


class Stopped(FieldguideError):
    """The end of work by a signal; what was done is saved."""

    def __init__(
        self, signal_number: int, message: str = "stopped; the same command resumes from here"
    ):
        super().__init__(message)
        self.exit_code = 128 + signal_number

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.exit_code - 128, self.message)


def portable(error: Exception) -> Exception:
    """Return the error in a form that another process can read, with its traceback."""
    error.add_note("".join(traceback.format_exception(error)))
    error.__cause__ = error.__context__ = None
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever a class's own construction may raise
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
