"""Whether a smaller copy of an explained model gives the same explanations: the explanation-parity certificate."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version

import numpy as np
import onnx
from onnx import ModelProto

from analyzers import __version__
from analyzers.certificate import BOUNDS, ELSEWHERE, Bounds, Calibration, Certificate, Figure, Form, PictureSet
from analyzers.eight_bits import Float32Array, Scheme, to_eight_bits
from analyzers.errors import ModelError
from analyzers.half import to_half
from analyzers.manifest import Manifest
from analyzers.parity import Parity
from analyzers.pictures import Pictures
from analyzers.pixels import to_model_input
from analyzers.plain import explained_plain, load_onnx, manifest_of, set_manifest
from analyzers.probe import record
from analyzers.progress import track
from analyzers.runtime import RUNTIME, open_session
from analyzers.smaller import Run, named, openvino_runner, runner

CALIBRATION_PICTURES = 128
BATCH = 32


@dataclass(frozen=True, slots=True)
class Copy:
    """A smaller copy, ready to be compared.

    Attributes:
        form: how it differs from the model.
        run: answers pictures.
        runtime: what does.
        model: the copy; None where the same file is run elsewhere.
        calibration: what ranges of eight bits were taken from.
    """

    form: Form
    run: Run
    runtime: str
    model: ModelProto | None = None
    calibration: Calibration | None = None


def certify(
    data: bytes,
    pictures: Pictures,
    form: Form,
    *,
    split: str = "test",
    scheme: Scheme | None = None,
    calibrate: int = CALIBRATION_PICTURES,
    bounds: Bounds | None = None,
) -> tuple[Certificate, ModelProto | None]:
    """Make a smaller copy and compare it with the model, picture by picture.

    Args:
        data: the model file's content; explained, float32.
        pictures: labelled; eight bits are calibrated on their train split, or on all where there is none.
        form: which copy.
        split: which pictures to compare on.
        scheme: how eight bits are made.
        calibrate: how many pictures ranges are taken from, at most.
        bounds: what a copy has to keep; by default `BOUNDS`, elsewhere than in ONNX Runtime `ELSEWHERE`.

    Returns:
        The certificate and the copy, None where the same file is run elsewhere.

    Raises:
        ModelError: the model has no class features, or the copy cannot be made.
        DataError: there are no pictures, or of other classes.
    """
    model = load_onnx(data)
    known = manifest_of(model)
    if known.class_features is None:
        raise ModelError("the model has no class features; attach them with `pellucid-analyze attach`")
    pictures = pictures.relabelled(known.classes)
    tested = pictures.of_split(split)
    bounds = bounds or (ELSEWHERE if form == "openvino" else BOUNDS)
    copy = _copy(model, known, pictures, form, scheme or Scheme(), calibrate)
    figures = _compare(model, known, tested, copy)
    certificate = Certificate(
        form=form,
        model_sha256=sha256(data).hexdigest(),
        runtime=copy.runtime,
        tools={"pellucid": __version__, "onnxruntime": RUNTIME.split()[1], "onnx": version("onnx")},
        data=_set(tested, split),
        calibration=copy.calibration,
        figures=figures,
        required=bounds,
        passed=bounds.judge(figures),
    )
    return certificate, copy.model


def _copy(model: ModelProto, known: Manifest, pictures: Pictures, form: Form, scheme: Scheme, calibrate: int) -> Copy:
    if form == "openvino":
        return Copy(form, *openvino_runner(model))
    calibration = None
    if form == "fp16":
        copy = to_half(named(model))
    else:
        images, shown = _calibration_pictures(pictures, known, calibrate)
        copy = to_eight_bits(named(model), images, scheme)
        calibration = Calibration(
            data=shown, method=scheme.method, keep=scheme.keep, symmetric=scheme.symmetric, reduced=scheme.reduced
        )
    set_manifest(copy, known)
    try:
        onnx.checker.check_model(copy, full_check=True)
    except Exception as error:  # onnx raises unrelated classes
        raise ModelError(f"the copy's graph is inconsistent: {str(error)[:300]}") from None
    record(copy, open_session(copy.SerializeToString()), known)
    return Copy(form, runner(copy), RUNTIME, copy, calibration)


def _calibration_pictures(pictures: Pictures, known: Manifest, count: int) -> tuple[Float32Array, PictureSet]:
    split = "train" if (pictures.split == 0).any() else "all"
    fitted = pictures.of_split(split)
    rows = np.random.default_rng(0).permutation(len(fitted))[:count]
    shown = fitted.take(np.sort(rows))
    return to_model_input(shown.decoded(known.input.height, known.input.width)), _set(shown, split)


def _compare(model: ModelProto, known: Manifest, tested: Pictures, copy: Copy) -> dict[str, Figure]:
    if known.class_features is None:
        raise ModelError("the model has no class features; attach them with `pellucid-analyze attach`")
    whole, size = runner(model), known.input
    parity = Parity(known, known.class_features, explained_plain(model).found.head.weight)
    steps = -(-len(tested) // BATCH)
    batches = tested.batches(size.height, size.width, BATCH)
    for number, pixels in enumerate(track(batches, f"{copy.form} against float32", steps)):
        images = to_model_input(pixels)
        label = tested.label[number * BATCH : number * BATCH + len(pixels)]
        parity.add(whole(images), copy.run(images), label)
    return parity.figures()


def _set(pictures: Pictures, split: str) -> PictureSet:
    return PictureSet(split=split, pictures=len(pictures), fingerprint=pictures.fingerprint())
