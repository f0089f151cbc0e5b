"""A store of the tests' own for addresses `far://…`: in memory, and it can fail, hang or lie."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from fieldguide.storage import addresses, files


class Far(MemoryFileSystem):  # type: ignore[misc]
    """fsspec's store in memory. `fault` is called before everything that is asked of it."""

    protocol = "far"
    cachable = False
    asked: list[tuple[str, str]] = []  # noqa: RUF012 - of the tests: what was asked, in order
    fault: Callable[[str, str], None] = staticmethod(lambda what, path: None)

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace("far://", "memory://"))  # type: ignore[no-any-return]

    def _ask(self, what: str, path: str) -> None:
        Far.asked.append((what, path))
        Far.fault(what, path)

    def info(self, path: str, **options: Any) -> Any:
        self._ask("info", path)
        return super().info(path, **options)

    def find(self, path: str, **options: Any) -> Any:
        self._ask("find", path)
        return super().find(path, **options)

    def get_file(self, rpath: str, lpath: str, **options: Any) -> Any:
        self._ask("get", rpath)
        return super().get_file(rpath, lpath, **options)

    def put_file(self, lpath: str, rpath: str, **options: Any) -> Any:
        self._ask("put", rpath)
        return super().put_file(lpath, rpath, **options)

    def rm_file(self, path: str) -> Any:
        self._ask("remove", path)
        return super().rm_file(path)

    @classmethod
    def files(cls, folder: str) -> dict[str, bytes]:
        """What is below a folder, by relative path."""
        start = f"{folder.rstrip('/')}/"
        return {
            name.removeprefix(start): each.getvalue()
            for name, each in list(cls.store.items())
            if name.startswith(start)
        }


fsspec.register_implementation("far", Far, clobber=True)


@contextmanager
def empty_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Far]]:
    """The store without a file and without a fault, asked again without waiting."""
    monkeypatch.setattr(addresses, "WAITS", (0.0,) * 5)
    monkeypatch.setattr(Far, "fault", staticmethod(lambda what, path: None))
    Far.store.clear()
    Far.asked.clear()
    yield Far
    Far.store.clear()


def contents(folder: Path) -> dict[str, bytes]:
    """What is in a folder here, by relative path, but for its lock."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != files.LOCK
    }
