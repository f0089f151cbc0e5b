"""A run's folder at an address: trained in a folder of this machine, and sent as it grows.

Manifests are sent last, so that a folder with a manifest there is whole. Knows nothing of what runs
hold but the names of manifests.
"""

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath

from fieldguide.errors import FieldguideError, ResourceError, UsageError
from fieldguide.machine.torchrun import launch
from fieldguide.storage import cache_folder, files
from fieldguide.storage.addresses import Place, fetch, is_address, opened, token_of

PERIOD = 30.0  # seconds between two looks at what a run has finished (taste)

# Written when what they list is there; the run's own after those of its folds.
_LAST = {"manifest.json": 1, "setup.json": 2}
_PROBE = ".probe"
# These stores need no folders, and their `makedirs` would make a bucket of a misspelt name.
_WITH_BUCKETS = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "adl", "oss"})


@contextmanager
def mirrored(
    out: str | Path, notice: Callable[[str], None] = lambda message: None
) -> Iterator[Path]:
    """Give the block a local folder that stands for a run's folder: itself, or of an address.

    The content of the address is fetched first. What the block writes is sent every `PERIOD`
    seconds, and at its end. If the address does not answer, the block continues.

    Raises ResourceError if the address cannot be reached at the start, or, naming the local folder,
    at the end of a block that went well; UsageError on several ranks, which write into one folder.
    """
    if not is_address(out):
        yield Path(out)
        return
    if launch().world > 1:
        raise UsageError(
            f"ranks need one folder, and `{out}` is kept in one on each machine",
            hint="choose --out on a disk that all ranks share",
        )
    with _pulled(str(out), notice) as mirror:
        if not mirror.synced:
            mirror.require_writable()
        yield from _sending(mirror)


@contextmanager
def _pulled(address: str, notice: Callable[[str], None]) -> Iterator["Mirror"]:
    """Fetch all that an address has, and hold it for this process alone in the block."""
    address = address.rstrip("/")
    parent = cache_folder.folder_of("runs", address)
    files.make_folder(parent)
    cache_folder.use(parent, address)
    with files.lock(parent):
        mirror = Mirror(opened(address, notice), parent)
        mirror.pull()
        yield mirror


def _sending(mirror: "Mirror") -> Iterator[Path]:
    over = threading.Event()

    def keep_sending() -> None:
        while not over.wait(PERIOD):
            mirror.push_or_tell()

    sender = threading.Thread(target=keep_sending, daemon=True)
    sender.start()
    try:
        try:
            yield mirror.folder
        finally:
            over.set()
            sender.join()
    except BaseException:
        mirror.push_or_tell()
        raise
    try:
        mirror.push()
    except FieldguideError as error:
        raise ResourceError(
            f"{error.message}; the run is in {mirror.folder}",
            hint="the same command sends it when the address can be reached",
        ) from error


def run_folder(source: str | Path, notice: Callable[[str], None] = lambda message: None) -> Path:
    """Return a run's folder to read, fetched first if it is at an address. Errors as `opened`."""
    if not is_address(source):
        return Path(source)
    with _pulled(str(source), notice) as mirror:
        return mirror.folder


def unsent(parent: Path) -> list[str]:
    """Return the files of a run's copy, `parent` / run, that have changed since they were sent."""
    mirror = Mirror(Place("", None, ""), parent)  # no address is asked
    return [
        name
        for name in mirror.names()
        if mirror.synced.get(name, ())[:2] != files.size_and_time(mirror.folder / name)
    ]


@dataclass
class Mirror:
    """A folder of this machine and one at an address, kept alike.

    `synced` is the state of each file when it was last sent or fetched: local size and modification
    time (nanoseconds), size and mark there. It lies beside the folder.
    """

    place: Place
    parent: Path
    synced: dict[str, tuple[int, int, int, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        with suppress(OSError, ValueError):
            stored = json.loads((self.parent / "synced.json").read_bytes())
            self.synced = {name: tuple(state) for name, state in stored.items()}

    @property
    def folder(self) -> Path:
        """The folder of this machine."""
        return self.parent / "run"

    def pull(self) -> None:
        """Fetch what has changed at the address since the last time; remove what is gone there.

        The address wins if both sides changed: another machine has continued the run.
        """
        there = self.place.tokens() if self.place.info() else {}
        if "setup.json" in self.synced and "setup.json" not in there:  # the run was removed
            shutil.rmtree(self.folder, ignore_errors=True)
            self.synced = {}
        files.make_folder(self.folder)
        for name in [name for name in self.synced if name not in there]:
            (self.folder / name).unlink(missing_ok=True)
            del self.synced[name]
        for name, token in there.items():
            path = self.folder / name
            state = self.synced.get(name)
            if state is None or state[2:] != token or not path.is_file():
                fetch(self.place, name, path, token[0])
                self.synced[name] = (*files.size_and_time(path), *token)
        self._save()

    def push(self) -> None:
        """Send what was written since, manifests last; remove what is gone here."""
        # Manifests are listed first: all that they name is there before them.
        ready = {name for name in self.names() if PurePosixPath(name).name in _LAST}
        others = {name for name in self.names() if PurePosixPath(name).name not in _LAST}

        def turn(name: str) -> tuple[int, int, str]:  # those of folds before those of the run
            return -name.count("/"), -_LAST[PurePosixPath(name).name], name

        for name in sorted(others) + sorted(ready, key=turn):
            self._send(name)
        for name in sorted(self.synced.keys() - others - ready):
            if not (self.folder / name).exists():
                self.place.patiently(partial(self._remove, name))
                del self.synced[name]
        self._save()

    def push_or_tell(self) -> None:
        """Push; only report what goes wrong: the next time may be better."""
        try:
            self.push()
        except FieldguideError as error:
            self.place.notice(f"{error.message}; what was trained is kept in {self.folder}")

    def names(self) -> list[str]:
        """Return the whole files of the folder of this machine."""
        return [
            (Path(folder) / name).relative_to(self.folder).as_posix()
            for folder, _, names in os.walk(self.folder)  # pathlib's stumbles where one vanishes
            for name in names
            if name != files.LOCK and not files.is_temporary(name)
        ]

    def _send(self, name: str) -> None:
        path, copy = self.folder / name, self.parent / "sending"
        try:
            state = files.size_and_time(path)
            if self.synced.get(name, ())[:2] == state:
                return
            shutil.copyfile(path, copy)  # the run may write on, or remove it, meanwhile
        except FileNotFoundError:
            return
        except OSError as error:
            raise ResourceError(f"cannot write {copy}: {error.strerror}") from error
        try:
            token = self.place.patiently(partial(self._put, copy, self.place.below(name)))
        finally:
            copy.unlink()
        self.synced[name] = (*state, *token)
        self._save()  # a killed command must not fetch what it sent: it has gone on since

    def require_writable(self) -> None:
        """Raise ResourceError if nothing can be written: better now than after training."""
        probe = self.parent / "sending"
        files.write_bytes(probe, b"to see whether a run can be written here")
        self.place.patiently(partial(self._put, probe, self.place.below(_PROBE)))
        self.place.patiently(partial(self._remove, _PROBE))
        probe.unlink()

    def _put(self, copy: Path, there: str) -> tuple[int, str]:
        if self.place.address.partition("://")[0] not in _WITH_BUCKETS:
            self.place.system.makedirs(there.rpartition("/")[0], exist_ok=True)
        self.place.system.put_file(str(copy), there)
        self.place.system.invalidate_cache()
        token = token_of(self.place.system.info(there))
        if token[0] != copy.stat().st_size:
            raise EOFError(f"{there}: {token[0]:,} of {copy.stat().st_size:,} bytes were sent")
        return token

    def _remove(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self.place.system.rm_file(self.place.below(name))

    def _save(self) -> None:
        files.write_json(self.parent / "synced.json", self.synced)
