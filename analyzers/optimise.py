"""Smaller copies to be served: made, certified, and with the certificate in the file."""

from __future__ import annotations

from hashlib import sha256
from typing import Literal

from onnx import ModelProto

from analyzers.certificate import BOUNDS, CERTIFICATE_KEY, Bounds, Certificate
from analyzers.certify import CALIBRATION_PICTURES, certify
from analyzers.eight_bits import Scheme
from analyzers.errors import DataError, ModelError
from analyzers.pictures import Pictures
from analyzers.plain import load_onnx, refuse_unfit

MIN_CALIBRATED = 16
MIN_COMPARED = 50  # with fewer, one picture is more than what may differ


def optimise(
    data: bytes,
    pictures: Pictures,
    to: Literal["fp16", "int8"],
    *,
    split: str = "test",
    scheme: Scheme | None = None,
    calibrate: int = CALIBRATION_PICTURES,
    bounds: Bounds = BOUNDS,
) -> tuple[Certificate, bytes]:
    """Make a smaller copy of an explained file; arguments as in `certify`.

    Returns:
        The certificate, with the copy's SHA-256, and the copy's content, which holds the certificate without it.
        Whether it passed is for the caller to read.

    Raises:
        ModelError: the file is not explained, is a copy itself, or a copy cannot be made of it.
        DataError: there are no pictures, too few, or of other classes.
    """
    _refuse_copies(load_onnx(data))
    if calibrate < MIN_CALIBRATED:
        raise DataError(f"calibrating on {calibrate} pictures says little of ranges; give {MIN_CALIBRATED} or more")
    tested = pictures.of_split(split)
    if len(tested) < MIN_COMPARED:
        raise DataError(
            f"there are {len(tested)} pictures to compare on, which proves little; give {MIN_COMPARED} or more, or"
            " '--split all'"
        )
    if to == "int8" and (fitted := int((pictures.split == 0).sum()) or len(pictures)) < MIN_CALIBRATED:
        raise DataError(f"there are {fitted} pictures to calibrate on; give {MIN_CALIBRATED} or more")
    certificate, copy = certify(data, pictures, to, split=split, scheme=scheme, calibrate=calibrate, bounds=bounds)
    if copy is None:
        raise ModelError(f"there is no copy of form {to}")
    copy.metadata_props.add(key=CERTIFICATE_KEY, value=certificate.to_json())
    content = copy.SerializeToString(deterministic=True)
    return certificate.model_copy(update={"copy_sha256": sha256(content).hexdigest()}), content


def _refuse_copies(model: ModelProto) -> None:
    """Refuse what is a copy already.

    Raises:
        ModelError: naming what it is a copy of.
    """
    written = Certificate.from_metadata({entry.key: entry.value for entry in model.metadata_props})
    if written is not None:
        raise ModelError(
            f"the file is an {written.form} copy already, of the file with SHA-256 {written.model_sha256[:12]}...;"
            " optimise that one"
        )
    refuse_unfit(model)
