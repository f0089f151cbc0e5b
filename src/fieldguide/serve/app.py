"""The server: a page to try a model, and `POST /predict`.

It answers this machine's browsers and programs: other hosts' names and other sites' pages are
refused, no photo is kept, and bodies, waiting photos and time have bounds.
"""

import asyncio
import ipaddress
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from importlib import resources
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fieldguide.errors import FieldguideError, UnreadablePhoto
from fieldguide.predict.tables import Answering
from fieldguide.serve.service import Answer, Busy, Service
from fieldguide.words import installed

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

SLOWEST = 60  # seconds that a body may take to arrive
MOST_PARTS = 100  # of a form
LONGEST_HEAD = 65536  # bytes of a line before a part of a form, which has the file's name
TOP = 5  # classes of an answer, if not asked for more

Explain: TypeAlias = Callable[[bytes, str], dict[str, Any]]

# Scripts and styles of the page itself; pictures that it was given; answers of this server.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:;"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_KINDS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}


def build(
    service: Service,
    about: Mapping[str, Any],
    *,
    most_bytes: int,
    names: frozenset[str] = frozenset(),
    answering: Answering | None = None,
    explain: Explain | None = None,
) -> ASGIApp:
    """Return the application.

    `about` is what `GET /model` says, `most_bytes` the largest body, `names` the names of hosts
    that it answers to, beside `localhost` and addresses in numbers; `answering` gives taxa,
    `explain` what `POST /explain` says of the bytes of a photo and a class.
    """

    explaining = asyncio.Lock()

    async def predict(request: Request) -> Response:
        try:
            top = int(request.query_params.get("top", TOP))
        except ValueError:
            return _refusal(400, "`top` is no number")
        if top < 1:
            return _refusal(400, "`top` is below 1")

        async def answered(data: bytes) -> Response:
            answer = await _awaited(service, data, request)
            return _json(told(answer, top, answering))

        return await _with_photo(request, service, most_bytes, answered)

    async def explained(request: Request) -> Response:
        label = request.query_params.get("class", "")
        if explain is None:
            return _refusal(404, "only a run explains, where its photos are")
        if label not in service.model.classes:
            return _refusal(400, "`class` is none of the model's classes")

        if explaining.locked():  # the first may take minutes, and must not fill the places
            return _refusal(503, "another answer is being explained", {"Retry-After": "5"})

        async def answered(data: bytes) -> Response:
            return _json(await run_in_threadpool(explain, data, label))

        async with explaining:
            return await _with_photo(request, service, most_bytes, answered)

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok", "photos_in_work": service.inside})

    async def model(_: Request) -> Response:
        return _json(dict(about))

    async def metrics(_: Request) -> Response:
        return PlainTextResponse(_metrics(service), media_type="text/plain; version=0.0.4")

    async def openapi(_: Request) -> Response:
        return JSONResponse(description(most_bytes))

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        service.close()

    routes = [
        Route("/predict", predict, methods=["POST"]),
        Route("/explain", explained, methods=["POST"]),
        Route("/health", health),
        Route("/model", model),
        Route("/metrics", metrics),
        Route("/openapi.json", openapi),
        *(Route(f"/{name}", _file(name)) for name in ("page.js", "answers.js", "page.css")),
        Route("/", _file("index.html")),
    ]
    handlers: dict[Any, Any] = {404: _nothing, 405: _nothing}
    return _Guard(Starlette(routes=routes, lifespan=lifespan, exception_handlers=handlers), names)


async def _with_photo(
    request: Request,
    service: Service,
    most_bytes: int,
    answered: Callable[[bytes], Awaitable[Response]],
) -> Response:
    """Return the answer for the photo in a request, in one of the places, or the refusal."""
    try:
        service.enter()
    except Busy:
        return _refusal(503, "too many photos at once: try again", {"Retry-After": "1"})
    try:
        try:
            data = await _photo(request, most_bytes)
        except ClientDisconnect:
            service.count(dropped=1)
            raise
        return data if isinstance(data, Response) else await answered(data)
    except (ClientDisconnect, asyncio.CancelledError):  # nobody reads it, or the server ends
        return Response(status_code=499)
    except UnreadablePhoto as error:
        status = 415 if error.message.startswith("not an image") else 400
        status = 413 if error.message.startswith("too large") else status
        return _refusal(status, f"the photo cannot be read: {error.message}", hint=error.hint)
    except FieldguideError as error:
        return _refusal(500, error.message, hint=error.hint)
    finally:
        service.leave()


def told(answer: Answer, top: int, answering: Answering | None) -> dict[str, Any]:
    """Return an answer as JSON's values."""
    found = answer.predictions
    (row,) = found.probabilities
    order = np.argsort(-row, kind="stable")[:top].tolist()
    read: dict[str, Any] = {
        "status": f"too small: {answer.small}" if answer.small else "ok",
        "classes": [
            {"class": found.classes[number], "probability": float(row[number])} for number in order
        ],
    }
    if found.sets is not None:
        members = np.flatnonzero(found.sets[0])
        members = members[np.argsort(-row[members], kind="stable")]
        read["set"] = [found.classes[number] for number in members]
    if found.familiarity is not None and not np.isnan(found.familiarity).any():
        read["familiarity"] = float(found.familiarity[0])
        read["unknown"] = bool(found.unknown[0])
    if answering is not None:
        (taxon,) = answering.of(found.probabilities, found.classes)
        read["taxon"] = taxon and {
            "name": taxon.name,
            "rank": taxon.rank,
            "probability": taxon.confidence,
        }
    return read


def description(most_bytes: int) -> dict[str, Any]:
    """Return the interface in OpenAPI's form."""
    file = {"schema": {"type": "string", "format": "binary"}}
    refused = {"type": "object", "properties": {"error": {"type": "string"}}}
    said = {"application/json": {"schema": refused}}
    named = {"type": "object", "properties": {"class": _TEXT, "probability": _SHARE}}
    answer = {
        "type": "object",
        "required": ["status", "classes"],
        "properties": {
            "status": {"type": "string", "description": "ok, or too small: 9 × 9 pixels"},
            "classes": {"type": "array", "items": named},
            "set": {"type": "array", "items": _TEXT},
            "familiarity": _SHARE,
            "unknown": {"type": "boolean"},
            "taxon": {
                "type": ["object", "null"],
                "properties": {"name": _TEXT, "rank": _TEXT, "probability": _SHARE},
            },
        },
    }
    like = {"path": _TEXT, "class": _TEXT, "similarity": {"type": "number"}, "picture": _TEXT}
    explanation = {
        "type": "object",
        "properties": {
            "class": _TEXT,
            "heat": _TEXT,
            "similar": {"type": "array", "items": {"type": "object", "properties": like}},
        },
    }
    form = {
        "type": "object",
        "required": ["photo"],
        "properties": {"photo": file["schema"]},
    }
    body = {
        "required": True,
        "description": f"the file itself, at most {most_bytes:,} bytes, or a form with it",
        "content": {
            "image/*": file,
            "application/octet-stream": file,
            "multipart/form-data": {"schema": form},
        },
    }
    refusals = {
        code: {"description": reason, "content": said} for code, reason in _REFUSALS.items()
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "fieldguide", "version": installed()[1]},
        "paths": {
            "/predict": {
                "post": {
                    "summary": "The classes of a photo, with calibrated probabilities",
                    "parameters": [
                        {
                            "name": "top",
                            "in": "query",
                            "schema": {"type": "integer", "minimum": 1, "default": TOP},
                        }
                    ],
                    "requestBody": body,
                    "responses": {
                        "200": {
                            "description": "the answer",
                            "content": {"application/json": {"schema": answer}},
                        },
                        **refusals,
                    },
                }
            },
            "/explain": {
                "post": {
                    "summary": "Where the network sees a class in a photo, and photos alike",
                    "parameters": [
                        {"name": "class", "in": "query", "required": True, "schema": _TEXT}
                    ],
                    "requestBody": body,
                    "responses": {
                        "200": {
                            "description": "pictures are data URIs",
                            "content": {"application/json": {"schema": explanation}},
                        },
                        **refusals,
                        "404": {"description": "the model is no run", "content": said},
                    },
                }
            },
            **{
                path: {"get": {"summary": what, "responses": {"200": {"description": what}}}}
                for path, what in (
                    ("/health", "whether it answers"),
                    ("/model", "what the model is"),
                    ("/metrics", "counts in Prometheus' form"),
                )
            },
        },
    }


_TEXT = {"type": "string"}
_SHARE = {"type": "number", "minimum": 0, "maximum": 1}
_REFUSALS = {
    "400": "no photo, or a damaged one",
    "403": "asked by another site's page",
    "408": "the photo took too long to arrive",
    "413": "too large",
    "415": "not an image",
    "421": "another host's name",
    "503": "too many photos at once",
}


# --- bodies ---------------------------------------------------------------------------------------


async def _photo(request: Request, most: int) -> bytes | Response:
    """Return the bytes of the photo in a request, or the refusal."""
    length = request.headers.get("content-length", "0")
    too_large = _refusal(413, f"more than {most:,} bytes")
    if not length.isdecimal() or int(length) > most:
        return too_large
    body = bytearray()
    try:
        async with asyncio.timeout(SLOWEST):
            async for chunk in request.stream():
                body += chunk
                if len(body) > most:
                    return too_large
    except TimeoutError:
        return _refusal(408, f"the photo took more than {SLOWEST} s to arrive")
    if request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        return _of_form(request.headers["content-type"], bytes(body))
    if not body:
        return _refusal(400, "there is no photo in the request", hint="send the file as the body")
    return bytes(body)


def _of_form(kind: str, body: bytes) -> bytes | Response:
    """Return the first file of a form; its name is never looked at, however long it is."""
    _, options = parse_options_header(kind)
    boundary = options.get(b"boundary")
    if not boundary:
        return _refusal(400, "the form names no boundary")
    form = _Form()
    callbacks: MultipartCallbacks = {
        "on_part_begin": form.begin,
        "on_header_field": form.field,
        "on_header_value": form.value,
        "on_header_end": form.header,
        "on_part_data": form.data,
        "on_end": form.end,
    }
    try:
        parser = MultipartParser(boundary, callbacks, max_header_size=LONGEST_HEAD)
        parser.write(body)
        parser.finalize()
    except (FormParserError, ValueError) as error:
        return _refusal(400, f"the form cannot be read: {error}")
    if not form.ended:
        return _refusal(400, "the form ends early")
    for named, found in form.parts:
        if named:
            return bytes(found) or _refusal(400, "the photo cannot be read: empty file")
    return _refusal(400, "the form has no file", hint="name it `photo`")


class _Form:
    """The parts of a form, as a parser finds them: whether each is a file, and its content."""

    def __init__(self) -> None:
        self.parts: list[tuple[bool, bytearray]] = []
        self.ended = False
        self._name, self._told = bytearray(), bytearray()

    def begin(self) -> None:
        """Begin a part; ValueError for too many."""
        if len(self.parts) == MOST_PARTS:
            raise ValueError(f"more than {MOST_PARTS} parts")
        self.parts.append((False, bytearray()))

    def field(self, data: bytes, start: int, end: int) -> None:
        """Add to the name of a header."""
        self._name += data[start:end]

    def value(self, data: bytes, start: int, end: int) -> None:
        """Add to what a header says."""
        self._told += data[start:end]

    def header(self) -> None:
        """End a header."""
        if self._name.lower() == b"content-disposition":
            _, options = parse_options_header(bytes(self._told))
            if b"filename" in options:
                self.parts[-1] = (True, self.parts[-1][1])
        self._name, self._told = bytearray(), bytearray()

    def data(self, data: bytes, start: int, end: int) -> None:
        """Add to the content of a part."""
        self.parts[-1][1].extend(data[start:end])

    def end(self) -> None:
        """End the form."""
        self.ended = True


async def _awaited(service: Service, data: bytes, request: Request) -> Answer:
    """Return the answer for a photo; `ClientDisconnect`, and no more work, if nobody waits."""
    future = service.submit(data)
    answer = asyncio.wrap_future(future)
    gone = asyncio.ensure_future(_gone(request))
    try:
        both: set[asyncio.Future[Any]] = {answer, gone}
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ClientDisconnect
        return answer.result()
    finally:
        gone.cancel()
        if not answer.done():
            answer.cancel()  # and with it the future
        with suppress(asyncio.CancelledError):
            await gone


async def _gone(request: Request) -> None:
    """Return when the caller has gone away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _json(content: object) -> Response:
    """Return a response of JSON, also of class names that UTF-8 cannot hold."""
    return Response(json.dumps(content), media_type="application/json")


def _refusal(
    status: int, reason: str, headers: Mapping[str, str] | None = None, hint: str = ""
) -> JSONResponse:
    content = {"error": reason} | ({"hint": hint} if hint else {})
    return JSONResponse(content, status, dict(headers or {}))


async def _nothing(request: Request, error: Any) -> Response:
    if error.status_code == 405:
        said = f"{request.method} is not for this address"
        return _refusal(405, said, error.headers, hint="/openapi.json says what is")
    return _refusal(404, "there is no such thing here", hint="/openapi.json")


# --- what may ask ---------------------------------------------------------------------------------


class _Guard:
    """Answers to this server's own names and pages alone, with headers on every answer.

    Another name is what a page uses that lets its own name point here (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, names: frozenset[str]) -> None:
        self.app = app
        self.names = names | {"localhost"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                known = {name for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    *(
                        (name.lower().encode(), value.encode())
                        for name, value in HEADERS.items()
                        if name.lower().encode() not in known
                    ),
                ]
            await send(message)

        refusal = self._refusal(Headers(scope=scope))
        await (refusal or self.app)(scope, receive, with_headers)

    def _refusal(self, headers: Headers) -> Response | None:
        host = headers.get("host", "")
        if not self._own(host):
            return _refusal(421, "this server does not go by that name", hint="--name NAME")
        origin = headers.get("origin")
        other = origin is not None and origin.partition("://")[2] != host
        asked = headers.get("sec-fetch-mode") != "navigate"  # a link may lead here
        if other or (asked and headers.get("sec-fetch-site") == "cross-site"):
            return _refusal(403, "only this server's own page may ask from a browser")
        return None

    def _own(self, host: str) -> bool:
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
        if name.lower() in self.names:
            return True
        with suppress(ValueError):
            ipaddress.ip_address(name.strip("[]"))
            return True
        return False


def _file(name: str) -> Callable[[Request], Any]:
    """Return what answers with a file of the page."""
    content = resources.files("fieldguide.serve").joinpath("page", name).read_bytes()
    kind = _KINDS[name[name.index(".") :]]

    async def answer(_: Request) -> Response:
        return Response(content, media_type=kind)

    return answer


def _metrics(service: Service) -> str:
    """Return the counts in Prometheus' text form."""
    counts = asdict(service.counts)
    lines = ["# TYPE fieldguide_photos_total counter"]
    lines += [
        f'fieldguide_photos_total{{outcome="{name}"}} {counts[name]}'
        for name in ("answered", "unreadable", "refused", "dropped")
    ]
    lines += [
        "# TYPE fieldguide_batches_total counter",
        f"fieldguide_batches_total {counts['batches']}",
    ]
    lines += [
        "# TYPE fieldguide_seconds_total counter",
        f"fieldguide_seconds_total {counts['seconds']:.6f}",
    ]
    lines += ["# TYPE fieldguide_in_work gauge", f"fieldguide_in_work {service.inside}", ""]
    return "\n".join(lines)
