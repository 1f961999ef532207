"""Whether a smaller copy of an explained model gives the same explanations: the explanation-parity certificate."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto

from analyzers.errors import ModelError
from analyzers.manifest import ClassFeatures, Manifest
from analyzers.pictures import Pictures
from analyzers.pixels import to_model_input
from analyzers.plain import explained_plain, manifest_of
from analyzers.probe import record
from analyzers.progress import track
from analyzers.runtime import RUNTIME, open_session
from analyzers.smaller import Form, Run, named, openvino_runner, runner, to_eight_bits, to_half

CERTIFICATE_SCHEMA = 1
CALIBRATION_PICTURES = 256
TOP = 5
# What a copy has to keep to pass, and the other way round for the two gaps.
AT_LEAST = {"same_class": 0.97, "map_correlation": 0.95, "top_features_kept": 0.9}
AT_MOST = {"completeness_gap": 1e-2}

Answer = Mapping[str, npt.NDArray[Any]]


def certify(
    model: ModelProto, pictures: Pictures, form: Form, *, split: str = "test", batch_size: int = 32
) -> tuple[dict[str, Any], ModelProto | None]:
    """Compare a smaller copy with the model picture by picture.

    Args:
        model: explained.
        pictures: labelled; the copy of eight bits is calibrated on their train split, compared on `split`.
        form: which copy.
        split: which pictures to compare on.
        batch_size: pictures per run.

    Returns:
        The certificate, `docs/report.md` says what is in it, and the copy, None where the same file is run elsewhere.

    Raises:
        ModelError: the model has no class features, or the copy cannot be made.
    """
    known = manifest_of(model)
    section = known.class_features
    if section is None:
        raise ModelError("the model has no class features; attach them with `pellucid-analyze attach`")
    pictures = pictures.relabelled(known.classes)
    copy, run, runtime = _copy(model, known, pictures, form)
    tested, size = pictures.of_split(split), known.input
    whole = runner(model)
    watched = _Comparison(known, section, explained_plain(model).found.head.weight)
    steps = -(-len(tested) // batch_size)
    batches = tested.batches(size.height, size.width, batch_size)
    for number, pixels in enumerate(track(batches, f"{form} against float32", steps)):
        images = to_model_input(pixels)
        label = tested.label[number * batch_size : number * batch_size + len(pixels)]
        watched.add(whole(images), run(images), label)
    figures = watched.figures()
    certificate = {
        "schema": CERTIFICATE_SCHEMA,
        "form": form,
        "model_sha256": sha256(model.SerializeToString(deterministic=True)).hexdigest(),
        "copy_sha256": None if copy is None else sha256(copy.SerializeToString(deterministic=True)).hexdigest(),
        "runtime": runtime,
        "data": {"split": split, "pictures": len(tested), "fingerprint": tested.fingerprint()},
        "figures": figures,
        "required": {"at_least": AT_LEAST, "at_most": AT_MOST},
        "passed": _passes(figures),
    }
    return certificate, copy


def _copy(model: ModelProto, known: Manifest, pictures: Pictures, form: Form) -> tuple[ModelProto | None, Run, str]:
    if form == "openvino":
        run, version = openvino_runner(model)
        return None, run, version
    if form == "fp16":
        copy = to_half(named(model))
    else:
        fitted = pictures.of_split("train" if (pictures.split == 0).any() else "all")
        rows = np.random.default_rng(0).permutation(len(fitted))[:CALIBRATION_PICTURES]
        shown = fitted.take(np.sort(rows)).decoded(known.input.height, known.input.width)
        copy = to_eight_bits(named(model), to_model_input(shown))
    record(copy, open_session(copy.SerializeToString()), known)
    return copy, runner(copy), RUNTIME


class _Comparison:
    """Collects how far two answers to the same pictures are apart."""

    def __init__(self, known: Manifest, section: ClassFeatures, weight: npt.NDArray[np.float32]) -> None:
        self.known, self.section, self.weight = known, section, weight
        self.lists: dict[str, list[npt.NDArray[Any]]] = {}

    def add(self, whole: Answer, copy: Answer, label: npt.NDArray[np.int64]) -> None:
        section, scores = self.section, self.known.scores.tensor
        self._put("accuracy", whole[scores].argmax(1) == label)
        self._put("accuracy_of_copy", copy[scores].argmax(1) == label)
        same = whole[scores].argmax(1) == copy[scores].argmax(1)
        self._put("same_class", same)
        self._put("logit_difference", abs(whole[scores] - copy[scores]).max(1))
        self._put("completeness_gap", _gap(section, scores, copy))
        best = whole[scores].argmax(1)
        self._put("top_features_kept", _top_kept(section, self.weight, whole, copy, best)[same])
        if section.evidence is not None:
            maps = [answer[section.evidence][:, 0].reshape(len(label), -1) for answer in (whole, copy)]
            self._put("map_correlation", _correlation(maps[0], maps[1])[same])
        if (parts := self.known.parts) is not None:
            fired = whole[parts.score] > 0
            self._put("peaks_moved", (whole[parts.cell] != copy[parts.cell])[fired])

    def _put(self, name: str, values: npt.NDArray[Any]) -> None:
        self.lists.setdefault(name, []).append(np.asarray(values, np.float64))

    def figures(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, several in self.lists.items():
            values = np.concatenate(several)
            if name in ("logit_difference", "completeness_gap"):
                found[name] = {"value": float(values.max(initial=0)), "n": len(values)}
            elif name == "map_correlation":
                low = float(np.percentile(values, 1)) if len(values) else None
                middle = float(np.median(values)) if len(values) else None
                found[name] = {"value": middle, "first_percentile": low, "n": len(values)}
            else:
                mean = float(values.mean()) if len(values) else None
                found[name] = {"value": mean, "n": len(values)}
        return found


def _gap(section: ClassFeatures, scores: str, answer: Answer) -> npt.NDArray[np.float64]:
    """Return how far a copy's own ledgers are from its own logits, as shares of the largest logit."""
    top = answer[section.classes]
    total = answer[section.contributions].sum(-1, dtype=np.float64) + answer[section.bias]
    total += np.take_along_axis(answer[section.rest], top, 1)
    if section.omitted is not None:
        total += answer[section.omitted]
    logits = answer[scores].astype(np.float64)
    gap = abs(total - np.take_along_axis(logits, top, 1)).max(1)
    return np.asarray(gap / np.maximum(1.0, abs(logits).max(1)))


def _top_kept(
    section: ClassFeatures, weight: npt.NDArray[np.float32], whole: Answer, copy: Answer, best: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Return which share of the largest contributions to a class, of all features, the copy has among its largest."""
    count = min(TOP, weight.shape[1])
    sets = [
        np.argsort(-abs(weight[best] * answer[section.pooled]), axis=1, kind="stable")[:, :count]
        for answer in (whole, copy)
    ]
    return np.asarray((sets[0][:, :, None] == sets[1][:, None, :]).any(2).mean(1))


def _correlation(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return Pearson's correlation of each row; 1 where both are constant."""
    first, second = (rows - rows.mean(1, keepdims=True, dtype=np.float64) for rows in (one, other))
    size = np.sqrt((first**2).sum(1) * (second**2).sum(1))
    product = (first * second).sum(1)
    constant = (abs(first - second).max(1) == 0).astype(np.float64)
    return np.asarray(np.where(size > 0, product / np.where(size > 0, size, 1), constant))


def _passes(figures: dict[str, Any]) -> dict[str, bool]:
    """Return for every figure that is required whether it holds; a figure that is not to be had does not count."""
    at_least = {name: figures[name]["value"] for name in AT_LEAST if name in figures}
    at_most = {name: figures[name]["value"] for name in AT_MOST if name in figures}
    held = {name: value is not None and bool(value >= AT_LEAST[name]) for name, value in at_least.items()}
    return held | {name: bool(value <= AT_MOST[name]) for name, value in at_most.items()}
