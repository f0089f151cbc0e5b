"""Exported models beside torch: how equal, how large, how fast; and a server under load.

Usage: python benchmarks/deploy.py parity [--members 3]
       python benchmarks/deploy.py speed [--rounds 7] [--networks resnet18@128 …]
       python benchmarks/deploy.py serve EXPORT PHOTOS [--clients 50] [--seconds 60]

parity: networks and heads of drawn weights, exported and run on 10 noisy pictures in batches of 1,
2 and 5, beside torch in float32: the largest difference over the largest logit, seconds of export,
megabytes. speed: one thread, batches of 16, in turn: eager float32, folded bfloat16 (as `predict`
has it where the processor has it) and ONNX Runtime in float32; medians of ratios within a round.
serve: `fieldguide serve EXPORT` on loopback, so many clients who send photos of a folder one after
the other; answers, refusals, photos a second, memory; and `predict`'s photos a second before it.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import torch

from fieldguide.photos.decoding import centre
from fieldguide.predict import inference, onnx_graph
from fieldguide.predict.card import Architecture, Card, OutOfFold
from fieldguide.predict.classifier import Classifier
from fieldguide.predict.exported import ONNX, Exported

CLASSES, BATCH = 100, 16
PARITY = (
    *((name, size, "linear") for name, size in (("resnet18", 128), ("resnet50", 224))),
    *((name, 224, "linear") for name in ("seresnet50", "resnext50_32x4d", "resnest14d")),
    *(("resnet18", 128, head) for head in ("se", "attention")),
)


def drawn(backbone: str, size: int, head: str, members: int, precision: str) -> Classifier:
    """Return a classifier of drawn weights."""
    own = Architecture(
        backbone, head, CLASSES, size, round(size / 0.95), 0, (0.485, 0.456, 0.406),
        (0.229, 0.224, 0.225), "bicubic", "refuse", precision, "channels_last",
    )  # fmt: skip
    weights = []
    for seed in range(members):
        torch.manual_seed(seed)
        state = inference.template(own).state_dict()
        for tensor in state.values():
            if tensor.is_floating_point():
                tensor.mul_(torch.rand_like(tensor) + 0.5).add_(
                    0.01 * torch.randn_like(tensor).abs()
                )
        weights.append({name: tensor.clone() for name, tensor in state.items()})
    rows = np.arange(members)
    card = Card(
        own, tuple(f"class {n}" for n in range(CLASSES)), tuple(map(str, rows)), "ensemble", 1.0,
        "", {}, {},
    )  # fmt: skip
    return Classifier(card, tuple(weights), OutOfFold(rows / 10, rows / 10, rows, rows))


def saved(classifier: Classifier, folder: Path, threads: int = 1) -> tuple[Exported, float]:
    """Return its export and the seconds that took."""
    began = time.perf_counter()
    (folder / ONNX).write_bytes(onnx_graph.build(classifier).SerializeToString())
    return Exported.load(folder / ONNX, threads=threads), time.perf_counter() - began


def squares(classifier: Classifier, count: int) -> list[np.ndarray]:
    """Return noisy squares."""
    side = classifier.card.architecture.eval_resize
    rng = np.random.default_rng(0)
    return list(rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8))


def parity(asked: argparse.Namespace) -> None:
    """Print a line a network."""
    for name, size, head in PARITY:
        for members in (1, asked.members) if (name, head) == ("resnet18", "linear") else (1,):
            classifier = drawn(name, size, head, members, "float32")
            model, seconds = saved(classifier, asked.folder)
            pictures = squares(classifier, 10)
            shown = [centre(each, size, size) for each in pictures]
            expected = inference.logits_of(classifier.card.architecture, classifier.members, shown)
            worst = 0.0
            for batch in (1, 2, 5):
                parts = [model.look(pictures[n : n + batch]) for n in range(0, 10, batch)]
                worst = max(worst, float(np.abs(np.concatenate(parts, 1) - expected).max()))
            largest = float(np.abs(expected).max())
            megabytes = (asked.folder / ONNX).stat().st_size / 1e6
            print(
                f"{name}@{size} {head:9} members {members}: {worst:.1e} of {largest:.3g}"
                f" = {worst / largest:.1e}, {megabytes:.0f} MB, exported in {seconds:.0f} s",
                flush=True,
            )


def speed(asked: argparse.Namespace) -> None:
    """Print medians of ratios within a round."""
    torch.set_num_threads(1)
    for each in asked.networks:
        name, _, size = each.partition("@")
        ways = ways_of(name, int(size), asked.folder)
        times: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(asked.rounds + 1):  # the first is not counted
            for way, run in ways.items():
                began = time.process_time()
                run()
                if number:
                    times[way].append((time.process_time() - began) / BATCH)
        for way, spent in times.items():
            ratios = [a / b for a, b in zip(times["eager float32"], spent, strict=True)]
            print(
                f"{each} {way:16} {1000 * statistics.median(spent):6.1f} processor-ms a photo,"
                f" {statistics.median(ratios):.2f} × eager float32"
                f" ({min(ratios):.2f} … {max(ratios):.2f})",
                flush=True,
            )


def ways_of(name: str, size: int, folder: Path) -> dict[str, Callable[[], object]]:
    """Return ways to the logits of a batch of pictures."""
    wide, narrow = (drawn(name, size, "linear", 1, each) for each in ("float32", "bfloat16"))
    model, _ = saved(wide, folder)
    pictures = squares(wide, BATCH)
    shown = np.stack([centre(each, size, size) for each in pictures])
    images = torch.from_numpy(shown).permute(0, 3, 1, 2)
    cpu = torch.device("cpu")
    eager = inference.template(wide.card.architecture).eval()
    eager.load_state_dict(dict(wide.members[0]))
    eager.to(memory_format=torch.channels_last)
    folded, rounded = (
        inference.Networks(each.card.architecture, each.members, cpu, precision)
        for each, precision in ((wide, "float32"), (narrow, "bfloat16"))
    )

    @torch.inference_mode()
    def plain() -> object:
        return eager(folded.normalise(images))

    return {
        "eager float32": plain,
        "folded float32": lambda: folded.logits(images),
        "folded bfloat16": lambda: rounded.logits(images),
        "onnxruntime": lambda: model.look(pictures),
    }


# --- a server under load --------------------------------------------------------------------------


def memory(process: int) -> float:
    """Return the resident memory of a process in megabytes."""
    text = Path(f"/proc/{process}/status").read_text()
    return int(text.split("VmRSS:")[1].split()[0]) / 1000


def processor(process: int) -> float:
    """Return the processor-seconds of a process, in all its threads."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def serve(asked: argparse.Namespace) -> None:
    """Ask a server for a while and print what came."""
    photos = [path for path in sorted(asked.photos.rglob("*")) if path.is_file()][:500]
    model = Exported.load(asked.export)
    rates, costs = [], []
    for _ in range(3):
        began, spent = time.perf_counter(), time.process_time()
        model.predict([str(path) for path in photos])
        rates.append(len(photos) / (time.perf_counter() - began))
        costs.append((time.process_time() - spent) / len(photos))
    alone, cost = statistics.median(rates), statistics.median(costs)
    del model
    command = [sys.executable, "-m", "fieldguide", "serve", str(asked.export)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    address = server.stdout.readline().split()[0]
    bodies = [path.read_bytes() for path in photos]
    counts: Counter[object] = Counter()
    until = time.monotonic() + asked.seconds
    lock = threading.Lock()

    def client(first: int) -> None:
        number = first
        connection = HTTPConnection(urlsplit(address).netloc, timeout=30)
        while time.monotonic() < until:
            try:
                connection.request("POST", "/predict", bodies[number % len(bodies)])
                answer = connection.getresponse()
                content = answer.read()
                found: object = answer.status
                if found == 200:
                    found = "answered" if json.loads(content)["classes"] else "empty"
            except (OSError, HTTPException) as error:
                connection.close()
                found = type(error).__name__
            with lock:
                counts[found] += 1
            if found == 503:
                time.sleep(0.2)
            else:
                number += asked.clients

    threads = [threading.Thread(target=client, args=(n,)) for n in range(asked.clients)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    memories = []
    while time.monotonic() < until:
        time.sleep(asked.seconds / 6)
        memories.append(round(memory(server.pid)))
    for thread in threads:
        thread.join()
    rate = counts["answered"] / (time.monotonic() - began)
    own = processor(server.pid) / max(counts["answered"], 1)
    server.terminate()
    server.wait()
    print(
        f"{asked.clients} clients, {asked.seconds} s: {dict(counts)}; {rate:.0f} photos/s,"
        f" predict alone {alone:.0f} ({rate / alone:.2f}); processor-ms a photo {1000 * own:.1f},"
        f" predict {1000 * cost:.1f} ({cost / own:.2f}); memory {memories} MB"
    )


def main() -> None:
    """Run the part that is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/deploy"))
    parts = parser.add_subparsers(required=True)
    part = parts.add_parser("parity")
    part.add_argument("--members", type=int, default=3)
    part.set_defaults(run=parity)
    part = parts.add_parser("speed")
    part.add_argument("--rounds", type=int, default=7)
    part.add_argument("--networks", nargs="+", default=["resnet18@128", "resnet50@224"])
    part.set_defaults(run=speed)
    part = parts.add_parser("serve")
    part.add_argument("export", type=Path)
    part.add_argument("photos", type=Path)
    part.add_argument("--clients", type=int, default=50)
    part.add_argument("--seconds", type=int, default=60)
    part.set_defaults(run=serve)
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    print(f"torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} cores")
    asked.run(asked)


if __name__ == "__main__":
    main()
