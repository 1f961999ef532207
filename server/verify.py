"""Replay an answer offline: the same model file, the same picture, the same explanation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from analyzers.errors import DataError, ModelError
from pellucid.v1 import explain_pb2 as pb
from server.answer_file import VerificationError, read_answer
from server.convert import from_message, to_message
from server.load import load_model
from server.model import ExplainedModel
from server.request import Limits, read_batch, read_wanted

TOLERANCE = 1e-3  # of the largest logit, between providers or versions of the runtime
MAX_PIXELS = 2**28

# What says where an answer was computed, not what it is.
_ABOUT = ("execution_provider", "runtime")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a replay found.

    Attributes:
        identical: whether every number is the same to the bit.
        difference: the largest difference of two numbers, as a share of the largest logit (1 at least).
        bound: what it may be; 0 for the same runtime on the same provider.
    """

    identical: bool
    difference: float
    bound: float


def verify(answer: dict[str, Any], model: Path, image: bytes) -> Verdict:
    """Compute the answer again and compare.

    Args:
        answer: from `read_answer`.
        model: the model file.
        image: the picture file.

    Raises:
        VerificationError: the file is another one, or the answer differs by more than the bound; it says where.
        ModelError: the model cannot be loaded.
        DataError: the answer is damaged.
    """
    said = answer["proof"]
    loaded = load_model(model, "", "", device="cpu", threads=0)
    if loaded.sha256 != said.get("model_sha256"):
        raise VerificationError(
            f"the model file has SHA-256 {loaded.sha256[:12]}..., the answer is of"
            f" {str(said.get('model_sha256'))[:12]}..."
        )
    replayed = _replay(loaded, answer["request"], image)
    same_place = all(replayed["proof"][name] == said.get(name) for name in _ABOUT)
    bound = 0.0 if same_place else TOLERANCE
    scale = max([1.0, *(abs(one["logit"]) for one in replayed["predictions"])])
    worst, where = 0.0, ""
    for place, one, other in _differences(replayed, {name: answer.get(name) for name in replayed}, ""):
        if place.startswith("proof.") and place.split(".")[1] in (*_ABOUT, "completeness_gap"):
            continue
        if not (isinstance(one, float) and isinstance(other, int | float)):
            raise VerificationError(f"the answer says {str(other)[:60]} at {place}, the model {str(one)[:60]}")
        difference = abs(one - other) / scale
        if not difference <= worst:
            worst, where = difference, place
    if not worst <= bound:
        raise VerificationError(
            f"the answer differs from the model's by {worst:.1e} at {where}; at most {bound:.0e} expected"
        )
    return Verdict(worst == 0, worst, bound)


def _replay(model: ExplainedModel, request: dict[str, Any], image: bytes) -> dict[str, Any]:
    """Return what the model answers to that request, after its way over the wire."""
    try:
        asked = pb.ExplainRequest(encoded_images=[image], **request)
    except (TypeError, ValueError) as error:
        raise DataError(f"the answer's request is damaged: {error}") from None
    batch = read_batch(asked, model.manifest.input, Limits(1, MAX_PIXELS))
    (explanation,) = model.explain(batch.images, batch.frames, batch.digests, read_wanted(asked))
    message = pb.Explanation.FromString(to_message(explanation, asked.evidence).SerializeToString())
    document: dict[str, Any] = json.loads(json.dumps(asdict(from_message(message))))
    return document


def _differences(one: Any, other: Any, place: str) -> Iterator[tuple[str, Any, Any]]:  # noqa: ANN401
    """Yield every leaf in which two documents differ: (place, the one's, the other's)."""
    if isinstance(one, dict) and isinstance(other, dict):
        for name in one.keys() | other.keys():
            yield from _differences(one.get(name), other.get(name), f"{place}.{name}" if place else name)
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for number, pair in enumerate(zip(one, other, strict=True)):
            yield from _differences(*pair, f"{place}[{number}]")
    elif one != other:
        yield place, one, other


def verify_file(answer: Path, model: Path, image: Path) -> Verdict:
    """Read everything and verify.

    Raises:
        VerificationError: the answer is not what the model says of the picture.
        DataError: a file cannot be read.
        ModelError: the model cannot be loaded.
    """
    if not model.is_file():
        raise ModelError(f"{model} is not there")
    data = image.read_bytes()
    return verify(read_answer(answer, sha256(data).hexdigest()), model, data)
