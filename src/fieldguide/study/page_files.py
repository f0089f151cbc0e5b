"""A page that answers in the browser, from any file server: the files beside the model.

The runtime is npm's package onnxruntime-web in one version, its integrity checked; it is fetched by
`npm`, or copied from a folder.
"""

import base64
import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from fieldguide.analysis.unknown import ALARM
from fieldguide.errors import ResourceError, UsageError
from fieldguide.photos.catalog import TOO_SMALL
from fieldguide.predict.exported import ONNX
from fieldguide.predict.model import Model
from fieldguide.storage import files
from fieldguide.words import first_line

PACKAGE = "onnxruntime-web"
VERSION = "1.30.0"
INTEGRITY = (
    "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
)
# Its files, under names that every file server sends as what they are.
RUNTIME = {
    "ort.wasm.min.mjs": "ort.js",
    "ort-wasm-simd-threaded.mjs": "glue.js",
    "ort-wasm-simd-threaded.wasm": "ort.wasm",
}
WAIT = 600  # seconds for npm

# The meta element's: scripts of the page, WebAssembly, its thread, its files, pictures given to it.
POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src blob:"
    " data:; connect-src 'self'; worker-src 'self'; base-uri 'none'; form-action 'none'"
)


def runtime(folder: Path | None) -> dict[str, bytes]:
    """Return the runtime's files, from a folder or fetched, by their names in `PACKAGE`.

    Raises `UsageError` and `ResourceError` where there are none.
    """
    return _fetched() if folder is None else _copied(folder)


def write(
    place: Path, model: Model, about: Mapping[str, Any], runtime: Mapping[str, bytes]
) -> list[str]:
    """Write the page's files beside a model's, and return their names.

    `about` is what the page says of the model.
    """
    files.make_folder(place / "runtime")
    contents = {f"runtime/{RUNTIME[name]}": content for name, content in runtime.items()}
    for name in ("page.js", "page.css"):
        contents[name] = _resource("fieldguide.serve", "page", name)
    for name in ("answers.js", "worker.js"):
        contents[name] = _resource("fieldguide.study", "site", name)
    policy = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    index = _resource("fieldguide.serve", "page", "index.html").decode()
    mark = '<meta charset="utf-8">'
    assert mark in index
    contents["index.html"] = index.replace(mark, f"{mark}\n{policy}").encode()
    card = model.card
    own = {"temperature": card.temperature, "too_small": TOO_SMALL, "alarm": ALARM}
    contents["about.json"] = files.json_bytes({**about, **own})
    contents["known.json"] = json.dumps(_known(model), separators=(",", ":")).encode()
    digest = hashlib.sha256((place / ONNX).read_bytes())
    for name in sorted(contents):
        digest.update(contents[name])
    names = sorted(contents)
    offline = _resource("fieldguide.study", "site", "offline.js").decode()
    offline = offline.replace("@VERSION@", digest.hexdigest()[:16])
    contents["offline.js"] = offline.replace("@FILES@", json.dumps(["./", *names, ONNX])).encode()
    for name, content in contents.items():
        files.write_bytes(place / name, content)
    return sorted(contents)


def fetch(folder: Path) -> None:
    """Write the runtime's files, as npm brings them, to a folder for `--runtime`."""
    contents = _fetched()
    files.make_folder(folder)
    for name, content in contents.items():
        files.write_bytes(folder / name, content)


def _known(model: Model) -> dict[str, Any]:
    """Return the scores of known photos by member, ascending, to seven digits."""
    known = model.out_of_fold
    doubts = known.doubts
    members = range(len(model.card.members))
    return {
        "photos": len(known.targets),
        "scores": [_ascending(known.split[known.members == k]) for k in members],
        "doubts": [
            [] if doubts is None else _ascending(doubts[known.members == k]) for k in members
        ],
    }


def _ascending(values: np.ndarray) -> list[float]:
    return [float(f"{value:.7g}") for value in np.sort(values).tolist()]


def _resource(package: str, *names: str) -> bytes:
    return resources.files(package).joinpath(*names).read_bytes()


def _copied(folder: Path) -> dict[str, bytes]:
    """Return the runtime's files from a folder of the unpacked package, or its `dist`."""
    for place in (folder, folder / "dist", folder / "package" / "dist"):
        if all((place / name).is_file() for name in RUNTIME):
            return {name: (place / name).read_bytes() for name in RUNTIME}
    raise UsageError(
        f"--runtime {folder} does not have the files {', '.join(RUNTIME)}",
        hint=f"unpack {PACKAGE} {VERSION}, by `npm pack {PACKAGE}@{VERSION}`",
    )


def _fetched() -> dict[str, bytes]:
    """Return the runtime's files, from the package that npm finds."""
    npm = shutil.which("npm")
    hint = f"name a folder with {PACKAGE} {VERSION} by --runtime"
    if npm is None:
        raise ResourceError(
            "the runtime of the page is fetched by npm, which is missing", hint=hint
        )
    with tempfile.TemporaryDirectory() as folder:
        asked = [npm, "pack", f"{PACKAGE}@{VERSION}", "--pack-destination", folder, "--silent"]
        try:
            done = subprocess.run(
                asked, cwd=folder, capture_output=True, text=True, timeout=WAIT, check=False
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise ResourceError(f"npm cannot be run: {first_line(error)}", hint=hint) from error
        packed = next(Path(folder).glob("*.tgz"), None)
        if done.returncode or packed is None:
            lines = done.stderr.strip().splitlines() or ["it brought nothing"]
            raise ResourceError(f"npm could not fetch {PACKAGE}: {lines[-1]}", hint=hint)
        return unpacked(packed.read_bytes())


def unpacked(package: bytes) -> dict[str, bytes]:
    """Return the runtime's files from the bytes of its package; `ResourceError` for another."""
    found = base64.b64encode(hashlib.sha512(package).digest()).decode()
    if found != INTEGRITY:
        raise ResourceError(
            f"{PACKAGE} {VERSION} is not what it was: its SHA-512 is {found[:12]}…",
            hint="nothing of it is used; look where npm fetches packages from",
        )
    contents = {}
    with tempfile.TemporaryFile() as file:
        file.write(package)
        file.seek(0)
        with tarfile.open(fileobj=file, mode="r:gz") as archive:
            for name in RUNTIME:
                member = archive.extractfile(f"package/dist/{name}")
                assert member is not None
                contents[name] = member.read()
    return contents
