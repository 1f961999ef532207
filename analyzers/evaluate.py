"""Measure an explained model on labelled pictures: accuracy, accuracy of its class features alone, exactness, parts.

Every figure is an object with `value`, `n` and, for shares, `standard_error`; `docs/report.md` is the schema.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx

from analyzers.attach_graph import attached_graph
from analyzers.class_features import Histogram, membership
from analyzers.errors import ModelError
from analyzers.graph_evaluate import evaluate_graph
from analyzers.manifest import ClassFeatures, Manifest, Rule
from analyzers.metrics import own_category
from analyzers.off_centre import move_marks, move_pixels, random_steps
from analyzers.part_report import class_figures, interpretability_figure, location_figures
from analyzers.part_watch import Eye, watch
from analyzers.pictures import Pictures
from analyzers.pixels import UInt8Array, to_model_input
from analyzers.plain import Layer, Plain, explained_plain, probe
from analyzers.progress import track
from analyzers.quality import board

REPORT_SCHEMA = 1
CURVE = (1, 3, 5, 10, 20)

Figure = dict[str, Any]
FloatArray = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class _Answers:
    """What the model said about all pictures.

    Attributes:
        logits: (pictures, classes).
        rest: (pictures, classes).
        pooled: (pictures, features).
        strength: (pictures, filters) activation at the peaks; no filters without the `parts` row.
        gap: largest difference between a reported ledger and its logit.
    """

    logits: FloatArray
    rest: FloatArray
    pooled: FloatArray
    strength: FloatArray
    gap: float


def evaluate(
    model: bytes, pictures: Pictures, *, split: str = "test", batch_size: int = 32, quality: int = 0
) -> dict[str, Any]:
    """Return the report of a model on one split; `docs/report.md` describes it.

    Args:
        model: an explained ONNX file.
        pictures: labelled pictures with the model's classes.
        split: "train", "test" or "all".
        batch_size: pictures per run.
        quality: on how many of the pictures the quality of evidence by cell is measured; 0 leaves that out.

    Raises:
        ModelError: the file cannot be used, or has no class features.
        DataError: the pictures do not fit the model.
    """
    try:
        graph = onnx.load_model_from_string(model)
    except Exception as error:  # protobuf raises its own classes
        raise ModelError(f"the file is not a valid ONNX model: {str(error)[:200] or 'empty'}") from None
    described = Manifest.from_metadata({entry.key: entry.value for entry in graph.metadata_props})
    explained = explained_plain(graph)
    section = cast(ClassFeatures, described.class_features)
    pictures = pictures.relabelled(described.classes)
    tested = pictures.of_split(split)
    answers = _answer(explained, section, tested, batch_size, f"{split} pictures")
    majority = np.bincount(tested.label).max() / len(tested)
    report: dict[str, Any] = {
        "schema": REPORT_SCHEMA,
        "data": {"split": split, "pictures": len(tested), "fingerprint": tested.fingerprint()},
        "model": {"classes": len(described.classes), "rows": list(described.rows)},
        "accuracy": _share(answers.logits.argmax(1) == tested.label) | {"controls": {"majority_class": majority}},
        "accuracy_class_features": _share((answers.logits - answers.rest).argmax(1) == tested.label)
        | {"k": section.k2, "k1": section.k1, "rule": section.rule},
        "agreement_class_features": _share((answers.logits - answers.rest).argmax(1) == answers.logits.argmax(1)),
        "completeness_gap": {"value": answers.gap, "n": len(tested)},
    }
    decomposed = not answers.rest.any()
    if section.rule != "given" and not decomposed and split != "train" and (pictures.split == 0).any():
        report["accuracy_by_k"] = _curve(explained, section, pictures.of_split("train"), tested, answers, batch_size)
    report |= _parts(explained, tested, answers, batch_size)
    if quality:
        report["quality"] = board(explained, tested, most=quality)
    if (attached := attached_graph(graph)) is not None:
        report["explanatory_graph"] = evaluate_graph(graph, attached, described.input, tested, batch_size)
    return report


def _share(hits: npt.NDArray[np.bool_]) -> Figure:
    value = float(hits.mean())
    return {"value": value, "n": len(hits), "standard_error": float(np.sqrt(value * (1 - value) / len(hits)))}


def _answer(explained: Plain, section: ClassFeatures, pictures: Pictures, batch_size: int, title: str) -> _Answers:
    """Run all pictures; the gap compares every reported ledger with its logit."""
    session, _ = probe(explained)
    size, parts = explained.manifest.input, explained.manifest.parts
    logits, rest, pooled, strength, gap = [], [], [], [], 0.0
    batches = pictures.batches(size.height, size.width, batch_size)
    for pixels in track(batches, title, -(-len(pictures) // batch_size)):
        answer = session.run_images(explained.manifest, to_model_input(pixels))
        logits.append(answer[explained.manifest.scores.tensor])
        rest.append(answer[section.rest])
        pooled.append(answer[explained.found.pooled])
        strength.append(np.zeros((len(pixels), 0), np.float32) if parts is None else answer[parts.score])
        top = answer[section.classes]
        ledger = answer[section.contributions].sum(-1) + answer[section.bias]
        if section.omitted is not None:
            ledger += answer[section.omitted]
        ledger += np.take_along_axis(rest[-1], top, 1)
        gap = max(gap, float(abs(ledger - np.take_along_axis(logits[-1], top, 1)).max()))
    return _Answers(np.concatenate(logits), np.concatenate(rest), np.concatenate(pooled), np.concatenate(strength), gap)


def _parts(explained: Plain, tested: Pictures, answers: _Answers, batch_size: int) -> dict[str, dict[str, Figure]]:
    """Return the figures about filters, and on marked pictures also those about parts, as they are and off centre."""
    section, picture = explained.manifest.parts, explained.manifest.input
    if section is None:
        return {}
    classes, size = len(explained.manifest.classes), (picture.height, picture.width)
    strength, pooled = answers.strength.astype(np.float32), answers.pooled.astype(np.float32)
    report = {"parts": class_figures(strength, pooled, tested.label, tested.group, classes)}
    if tested.parts is None or not np.isfinite(tested.parts.xy).any():
        return report
    marked = tested.take(np.flatnonzero(np.isfinite(tested.parts.xy[..., 0]).sum(1)))
    learned_for = section.learned_for or tuple(own_category(strength, tested.label, classes))
    features = explained.manifest.class_features
    pooled_map = features is not None and features.features_are_filters and explained.found.map
    shown_map = pooled_map or section.layer  # what the head pools has gone through the part templates
    session, _ = probe(explained, Layer(tensor=shown_map))
    eye = Eye(partial(session.run_images, explained.manifest), section, explained.found.pooled, shown_map)
    steps = random_steps(len(marked), size)
    for name, step in (("parts", np.zeros_like(steps)), ("parts_off_centre", steps)):
        moved = replace(marked, parts=None if marked.parts is None else move_marks(marked.parts, step, size))
        batches = _moved_batches(moved, step, size, batch_size, name.replace("_", " "))
        watched = watch(eye, batches, moved, np.array(learned_for, np.int64))
        if name not in report:
            report[name] = class_figures(watched.strength, watched.pooled, marked.label, marked.group, classes)
        report[name] |= location_figures(watched.seen)
        if watched.maps and np.isfinite(watched.seen.box).any():  # points have no extent
            report[name]["part_interpretability"] = interpretability_figure(watched.seen, watched.maps)
    return report


def _moved_batches(
    pictures: Pictures, step: npt.NDArray[np.int64], size: tuple[int, int], batch_size: int, title: str
) -> Iterator[UInt8Array]:
    start = 0
    for pixels in track(pictures.batches(*size, batch_size), title, -(-len(pictures) // batch_size)):
        yield move_pixels(pixels, step[start : start + len(pixels)])
        start += len(pixels)


def _curve(
    explained: Plain,
    section: ClassFeatures,
    train: Pictures,
    tested: Pictures,
    answers: _Answers,
    batch_size: int,
) -> list[Figure]:
    """Return the accuracy with k1 = k2 = k class features, sets found on `train`, for the usual values of k."""
    fitted = _answer(explained, section, train, batch_size, "train pictures")
    head = explained.found.head
    rows = []
    for k in (k for k in CURVE if k <= head.weight.shape[1]):
        histogram = Histogram(head, k, cast(Rule, section.rule))
        histogram.add(fitted.pooled.astype(np.float32), train.label)
        own = membership(head, histogram.index_sets(k))
        scores = answers.pooled @ np.where(own, head.weight, 0).T + head.bias
        rows.append({"k": k} | _share(scores.argmax(1) == tested.label))
    return rows
