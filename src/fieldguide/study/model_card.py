"""What an exported model says of itself: `model.json` for programs, `README.md` for people.

The latter is a model card in the form of the Hugging Face Hub. Class names, which may be hostile,
stay text in both.
"""

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from fieldguide.analysis import conformal, unknown
from fieldguide.analysis.intervals import share_interval
from fieldguide.analysis.taxa import AUTO
from fieldguide.predict.card import Architecture, Card
from fieldguide.predict.classifier import Classifier
from fieldguide.predict.exported import ONNX
from fieldguide.runs.run import Run
from fieldguide.storage import files
from fieldguide.study import holdout_scores
from fieldguide.words import installed, percent

JSON, README = "model.json", "README.md"
FORMAT = 1

COVERAGES = (0.9, 0.95, 0.99)
PROMISES = (0.9, 0.95, 0.98)

# Licences as the Hub names them; others are called `other`, with their name.
_LICENSES = frozenset(
    {"apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc-by-4.0", "cc-by-nc-4.0", "cc0-1.0"}
    | {"cc-by-sa-4.0", "cc-by-nc-sa-4.0", "openrail", "gpl-3.0", "agpl-3.0", "lgpl-3.0"}
)
_LICENSE_NAME = re.compile(r"[^a-z0-9.-]+")
_MARKUP = re.compile(r"([\\`*_{}\[\]#|~$]|:(?=//)|(?<=www)\.)")

# Tested as it stands: it needs a photo.jpg beside the model.
EXAMPLE = """\
import json, os
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before onnxruntime is imported
import numpy as np, onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession("model.onnx")
classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
picture = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB")  # upright, of any size
(probabilities,) = session.run(["probabilities"], {"image": np.asarray(picture)[None]})
for number in probabilities[0].argsort()[::-1][:5]:
    print(f"{probabilities[0][number]:.3f}  {classes[number]}")
"""


@dataclass(frozen=True)
class Facts:
    """The facts about a classifier that its export tells: scores with intervals, and whose.

    `scores` are rows of name, value and 95 % interval, of `photos` photos each; `classes` one row a
    class, with the shares of its photos out of fold that are found (recall) and of answers that are
    right (precision). A saved classifier knows neither its classes' scores nor what is `unknown`.
    """

    sentence: str
    collection: str
    scores: Sequence[Mapping[str, Any]]
    classes: Sequence[Mapping[str, Any]]
    unknown: Mapping[str, Any] | None


def facts(classifier: Classifier, run: Run | None, combine: str) -> Facts:
    """Return the facts about a classifier, from its run if there is one."""
    provenance = classifier.card.provenance
    low, high = provenance["out_of_fold_interval"]
    accuracy = provenance["out_of_fold_accuracy"]
    photos = int(classifier.card.calibration["photos"])
    sentence = (
        f"{classifier.card.architecture.backbone}, {', '.join(classifier.card.members)}:"
        f" {len(classifier.classes)} classes, {percent(accuracy)} right out of fold"
        f" (95 % interval: {percent(low)} to {percent(high)})"
    )
    whose = "each photo judged by the network of the fold that was not trained on it"
    scores = [_score("accuracy", "out of fold", whose, photos, accuracy, (low, high))]
    if run is None:
        return Facts(sentence, f"{photos:,} photos", scores, [], None)
    found = run.scores
    scores += [
        _score(
            name.replace("_", " "),
            "out of fold",
            whose,
            found.photos,
            getattr(found, name),
            found.intervals[name],
        )
        for name in ("balanced_accuracy", "macro_f1", "log_loss")
        if name in found.intervals
    ]
    outside = holdout_scores.kept(run)
    scores += [
        _score(
            "accuracy",
            "outside the folds",
            f"{row.name}, on photos that no fold has seen" + (f" ({row.note})" if row.note else ""),
            outside.photos,
            row.accuracy,
            row.interval,
        )
        for row in outside.rows
        if row.name in {combine, combine.replace("-", " ", 1)}
    ]
    worth = run.unknown
    collection = str(run.environment.get("collection", ""))
    return Facts(sentence, collection, scores, _classes(run), asdict(worth) if worth else None)


def _classes(run: Run) -> list[dict[str, Any]]:
    """Return a row a class: its photos out of fold, and how many are found and right."""
    pooled, each = run.pooled, run.per_class
    targets, groups = run.targets[pooled.photos], run.groups[pooled.photos]
    right = pooled.logits.argmax(axis=1) == targets
    rows = []
    for number, name in enumerate(run.classes):
        own = targets == number
        interval = share_interval(right[own], groups[own]) if own.any() else (0.0, 1.0)
        rows.append(
            {
                "class": name,
                "photos": int(each.support[number]),
                "recall": float(each.recall[number]),
                "recall_interval": [float(interval[0]), float(interval[1])],
                "precision": float(each.precision[number]),
                "f1": float(each.f1[number]),
            }
        )
    return rows


def _score(
    name: str, where: str, whose: str, photos: int, value: float, interval: Sequence[float]
) -> dict[str, Any]:
    return {
        "name": name,
        "where": where,
        "whose": whose,
        "photos": photos,
        "value": float(value),
        "interval": [float(interval[0]), float(interval[1])],
    }


def write(
    folder: Path,
    classifier: Classifier,
    told: Facts,
    proof: Mapping[str, Any],
    judged: Mapping[str, Any] | None,
    compared: Mapping[str, Any] | None,
    *,
    int8: bool,
) -> None:
    """Write `model.json` and `README.md` beside the model in a folder."""
    card = classifier.card
    content = {
        "format": FORMAT,
        "about": told.sentence,
        "made_by": f"fieldguide {installed()[1]}",
        "file": {"name": ONNX, "sha256": files.sha256(folder / ONNX)},
        "classes": list(card.classes),
        "taxonomy": asdict(card.taxonomy) if card.taxonomy else None,
        "input": {
            "name": "image",
            "type": "uint8",
            "shape": ["n", "height", "width", 3],
            "is": "upright RGB pictures of one size, of any size; colour profiles are not applied",
        },
        "outputs": {
            "probabilities": "float32 (n, classes), calibrated",
            "logits": f"float32 (n, {len(card.members)}, classes), of each network, not calibrated",
        },
        "preprocessing": {
            "before_the_graph": _before(card),
            **preprocessing(card.architecture),
        },
        "network": asdict(card.architecture),
        "members": list(card.members),
        "combine": card.combine,
        "temperature": card.temperature,
        "crop": card.crop,
        "thresholds": thresholds(classifier),
        "license": {"weights": card.license},
        "origin": dict(card.provenance),
        "scores": list(told.scores),
        "per_class": list(told.classes),
        "unknown": told.unknown,
        "proof": dict(proof),
        "out_of_fold": judged,
        "int8": {"compared": compared} if int8 else None,
    }
    files.write_json(folder / JSON, content)
    files.write_bytes(
        folder / README,
        _readme(classifier, told, proof, judged, _in_8_bits(compared) if int8 else "").encode(),
    )


def preprocessing(architecture: Architecture) -> dict[str, Any]:
    """Return in words and numbers what the graph does with a picture before the network."""
    own = architecture
    return {
        "in_the_graph": [
            "a picture more than 16 times as long as wide is cut to its centre",
            f"the shorter side is resized to {own.eval_resize} pixels ({own.interpolation},"
            " antialiased, as Pillow does), the longer one in proportion, rounded down",
            f"the centre of {own.size} × {own.size} pixels is taken, its corner at half of the"
            " rest, rounded to the even number",
            "levels are divided by 255, less the mean, over the standard deviation",
        ],
        "resize": own.eval_resize,
        "size": own.size,
        "interpolation": own.interpolation,
        "mean": list(own.mean),
        "std": list(own.std),
    }


def thresholds(classifier: Classifier) -> dict[str, Any]:
    """Return the thresholds that another program can use without the known photos.

    Sets of classes and unknown photos have one only where a single network answers: those of an
    ensemble count known photos by each member (`conformal.prediction_sets`).
    """
    known = classifier.out_of_fold
    single = len(classifier.card.members) == 1
    found: dict[str, Any] = {"sets": None, "unknown": None, "right": None}
    if single:
        limits = {each: conformal.threshold(known.split, each) for each in COVERAGES}
        found["sets"] = {
            "meaning": "the set of a photo holds each class of at least this probability; it holds"
            " the true class in this share of photos like those of training",
            "at_least": {
                f"{each:g}": 0.0 if limit is None else max(1 - limit, 0.0)
                for each, limit in limits.items()
            },
        }
    if single and known.doubts is not None:
        found["unknown"] = {
            "meaning": "a photo looks like nothing known if the entropy of its probabilities (in"
            " nats) is above this; so do this share of known photos",
            "share": unknown.ALARM,
            "entropy_above": unknown.threshold(known.doubts),
        }
    if classifier.card.taxonomy is not None and known.confidences is not None:
        promises = [classifier.answers_by(asked, AUTO).promise for asked in PROMISES]
        found["right"] = {
            "meaning": "the finest taxon whose summed probability reaches this is right in this"
            " share of answers; null: none can be promised",
            "at_least": {f"{each.asked:g}": each.threshold for each in promises if each},
        }
    return found


# --- the card for people --------------------------------------------------------------------------


def _readme(
    classifier: Classifier,
    told: Facts,
    proof: Mapping[str, Any],
    judged: Mapping[str, Any] | None,
    int8: str,
) -> str:
    card = classifier.card
    lines = [
        "---",
        _front(classifier, told).to_yaml().strip(),
        "---",
        "",
        "# Image classifier",
        "",
        f"{_text(told.sentence)}.",
        f"Trained by fieldguide {installed()[1]} from weights of"
        f" {_text(card.architecture.backbone)} (licence: {_text(card.license) or 'unknown'}) on"
        f" {card.provenance['training_photos']:,} photos. {_text(told.collection)}".rstrip(),
        "",
        "## Use",
        "",
        "```python",
        EXAMPLE.rstrip(),
        "```",
        "",
        *(f"{_text(each)}\n" for each in _before(card)),
        "`fieldguide predict` on this folder, or `model.onnx` alone, writes tables with sets of"
        " classes, unknown photos and taxa, and needs no torch. `model.json` has classes,"
        " preprocessing and thresholds for other programs.",
        "",
        "## How good it is",
        "",
        "| score | value | 95 % interval | photos | whose |",
        "|---|---|---|---|---|",
        *(
            f"| {row['name']}, {row['where']} | {row['value']:.3f} |"
            f" {row['interval'][0]:.3f} to {row['interval'][1]:.3f} | {row['photos']:,} |"
            f" {_text(row['whose'])} |"
            for row in told.scores
        ),
        "",
        "Scores out of fold are those of the folds' own networks, also where this file holds"
        " another classifier made of them: one that was merged, or answers by all, has seen every"
        " photo of the folds.",
        "Numbers hold for photos like these: the same places, cameras and seasons. Other ones were"
        " not tried, nor things that are none of the classes"
        + (
            f", but for classes left out in turn: {percent(told.unknown['found'])} of their photos"
            f" were marked as unknown where {percent(told.unknown['alarm'], 0)} of known ones are."
            if told.unknown and told.unknown["found"] is not None
            else "."
        ),
        "",
        "## That it is the run's",
        "",
        _proved(proof),
    ]
    if judged:
        lines.append(
            f"On {judged['photos']} of these photos that an exported network was not trained on,"
            f" its probabilities are within {judged['probability']:.2g} of the run's record (in"
            f" {judged['precision']}); log loss {judged['exported_log_loss']:.3f}, recorded"
            f" {judged['recorded_log_loss']:.3f}."
        )
    if int8:
        lines.append(int8)
    if told.classes:
        lines += [
            "",
            "## Classes",
            "",
            "| class | photos | recall | 95 % interval | precision | F1 |",
            "|---|---|---|---|---|---|",
            *map(_class_line, told.classes),
        ]
    return "\n".join([*lines, ""])


def _front(classifier: Classifier, told: Facts) -> ModelCardData:
    """Return the head of the card. Of a metric the Hub keeps `args`, not its own field."""
    license = classifier.card.license.lower()
    known = license in _LICENSES
    return ModelCardData(
        license=license if known else "other",
        license_name=None if known else _LICENSE_NAME.sub("-", license).strip("-") or "unknown",
        library_name="onnx",
        pipeline_tag="image-classification",
        tags=["fieldguide", "image-classification"],
        model_name=f"{classifier.card.architecture.backbone}, {len(classifier.classes)} classes",
        eval_results=[
            EvalResult(
                task_type="image-classification",
                dataset_type="images",
                dataset_name=f"{row['photos']} photos {row['where']}",
                metric_type=row["name"].replace(" ", "_"),
                metric_name=f"{row['name']}, {row['where']}",
                metric_value=row["value"],
                metric_args={
                    "confidence": 0.95,
                    "low": row["interval"][0],
                    "high": row["interval"][1],
                },
            )
            for row in told.scores
        ],
    )


def _proved(proof: Mapping[str, Any]) -> str:
    """Return the proof in words."""
    ties = f" {proof['ties']} of them are ties, in which either class may come first."
    text = (
        f"The file was run by ONNX Runtime on {proof['photos']} photos in batches of"
        f" {', '.join(map(str, proof['batches']))}: on equal pixels logits differ from the run's by"
        f" at most {proof['difference']:.1g} (allowed: {proof['tolerance']:.1g})."
        f"{ties if proof['ties'] else ''}"
    )
    if proof["probability"] is None:
        return text
    return (
        f"{text}\nA program that reads a photo as above decodes it in full, where the run decodes"
        " large JPEGs smaller: the best class is the same for"
        f" {percent(proof['same_class'])} of the photos, its probability differs by"
        f" {proof['mean_probability']:.3f} on average and by {proof['probability']:.3f} at most."
    )


def _in_8_bits(compared: Mapping[str, Any] | None) -> str:
    """Return what a file in 8 bits says of itself."""
    first = (
        "The proof and the scores above are those of the model in float. This file has its"
        " convolutions in 8 bits"
    )
    if compared is None:
        return (
            f"{first}; what that costs is unknown, as there were no photos to judge it on that the"
            " model never saw. Temperature and thresholds are those of the float model."
        )
    points, low, high = (100 * each for each in compared["difference"])
    return (
        f"{first}: of {compared['photos']:,} photos {compared['where']} it classifies"
        f" {percent(compared['accuracy'])} correctly, in float"
        f" {percent(compared['float_accuracy'])} (difference, paired: {points:+.1f} points, 95 %"
        f" interval {low:+.1f} to {high:+.1f}); log loss {compared['log_loss']:.3f} and"
        f" {compared['float_log_loss']:.3f}. Temperature and thresholds are"
        f" {'its own' if compared['recalibrated'] else 'those of the float model'}."
    )


def _before(card: Card) -> list[str]:
    """Return what has to be done to a photo before the graph, if anything."""
    told = []
    if card.crop:
        told.append(
            f"The network was trained on crops of photos ({card.crop}): give it such crops; whole"
            " photos may be misjudged, and the scores do not hold for them."
        )
    if card.architecture.tone != "full":
        told.append(
            "Photos of more than 8 bits a channel are mapped to 8 before"
            f" (`tone` = {card.architecture.tone}): `fieldguide predict` does, a plain program and"
            " a browser do not."
        )
    return told


def _class_line(row: Mapping[str, Any]) -> str:
    low, high = row["recall_interval"]
    return (
        f"| {_text(row['class'])} | {row['photos']:,} | {row['recall']:.3f} | {low:.3f} to"
        f" {high:.3f} | {row['precision']:.3f} | {row['f1']:.3f} |"
    )


def _text(text: str) -> str:
    """Return text that Markdown shows as it is, on one line."""
    plain = "".join(letter if letter.isprintable() else " " for letter in text)
    return _MARKUP.sub(r"\\\1", html.escape(plain, quote=False))
