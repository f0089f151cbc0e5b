"""A server that runs until it is stopped."""

import socket
from collections.abc import Callable
from contextlib import suppress
from types import ModuleType
from typing import TYPE_CHECKING, Any

from fieldguide.analysis.conformal import Sets
from fieldguide.errors import ResourceError, UsageError
from fieldguide.machine.cores import count_cores
from fieldguide.predict import about
from fieldguide.predict.model import Model
from fieldguide.words import first_line, installed, os_reason

if TYPE_CHECKING:
    from fieldguide.runs.run import Run

PORT = 8000  # the first that is tried
TRIED = 20


def require_packages() -> ModuleType:
    """Return the package `uvicorn`; `ResourceError` without what serving needs."""
    try:
        import python_multipart  # noqa: F401 - starlette reads forms by it
        import starlette  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise ResourceError(
            f"serving needs the packages of an extra: {first_line(error)}",
            hint=f"pip install '{installed()[0]}[serve]'",
        ) from error
    found: ModuleType = uvicorn
    return found


def listening(host: str, port: int | None) -> socket.socket:
    """Return a socket on that port, or on the first free one from `PORT` on.

    Raises `ResourceError` where it is taken or not allowed, `UsageError` for no address of this
    machine.
    """
    try:
        places = socket.getaddrinfo(host, port or PORT, type=socket.SOCK_STREAM)
    except OSError as error:
        raise UsageError(f"--host {host} is no address of this machine") from error
    family, _, _, _, address = places[0]
    reason = ""
    for each in range(PORT, PORT + TRIED) if port is None else [port]:
        found = socket.socket(family, socket.SOCK_STREAM)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind((address[0], each))
            found.listen(128)
            return found
        except OSError as error:
            found.close()
            reason = os_reason(error).lower()
    raise ResourceError(
        f"port {port or PORT} of {host} cannot be used: {reason}",
        hint="choose another with --port",
    )


def serve(
    model: Model,
    *,
    listener: socket.socket,
    most_bytes: int,
    most_photos: int,
    names: frozenset[str],
    right: float | None = None,
    run: "Run | None" = None,
    started: Callable[[], None] = lambda: None,
) -> None:
    """Answer until the process is told to stop; photos in work are given a second then.

    A `run` explains answers.
    """
    uvicorn = require_packages()
    from fieldguide.serve import app
    from fieldguide.serve.service import Service

    answering = None if right is None else model.answers_by(right)
    cores = count_cores()
    service = Service(model, most_photos, readers=max(cores // 2, 1), sets=Sets(about.COVERAGE))
    model.answer([_blank(model)])  # what is built at first use, such as kernels
    application = app.build(
        service,
        about.about(model, explains=run is not None),
        most_bytes=most_bytes,
        names=names,
        answering=answering,
        explain=None if run is None else _explained(model, run),
    )
    config = uvicorn.Config(
        application,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=1,
        timeout_keep_alive=10,
    )

    class Server(uvicorn.Server):  # type: ignore[name-defined,misc]
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            started()

    with suppress(KeyboardInterrupt):
        Server(config).run(sockets=[listener])


def _explained(model: Model, run: "Run") -> Callable[[bytes, str], dict[str, Any]]:
    """Return what explains the class of a photo."""
    from fieldguide.serve.explain import Explainer

    explainer = Explainer(run)

    def explain(data: bytes, label: str) -> dict[str, Any]:
        return explainer.explain(
            model.square(model.card.architecture.decoding.of_bytes(data)), label
        )

    return explain


def _blank(model: Model) -> Any:
    import numpy as np

    side = model.card.architecture.eval_resize
    return np.zeros((side, side, 3), np.uint8)
