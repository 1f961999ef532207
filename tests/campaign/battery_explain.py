"""Cases of `pellucid.v1`."""

from __future__ import annotations

import numpy as np

from pellucid.v1 import explain_pb2 as pb
from tests.campaign.battery_case import INVALID, NOT_FOUND, OK, QUICK, Case, explained, sent
from tests.campaign.requests import MODEL, PICTURES, PIXELS, explain, picture_tensor
from tests.campaign.wire import EXPLAIN
from tests.conftest import SIZE

JUNK = b"\xff\xff\xff\x0f not a message"
BYTES = SIZE * SIZE * 3


def tensor(shape: list[int], data: bytes, kind: int = 1) -> pb.ExplainRequest:
    """Return a request of pictures as numbers."""
    return pb.ExplainRequest(model=MODEL, tensor=picture_tensor(shape, data, kind))


def floats(value: float) -> pb.ExplainRequest:
    """Return a request of floats that are all the same."""
    return tensor([1, SIZE, SIZE, 3], np.full(BYTES, value, "<f4").tobytes(), 2)


def answered(count: int) -> object:
    """Return a check that so many pictures are explained."""

    def check(data: bytes) -> str:
        answer = pb.ExplainResponse.FromString(data)
        good = len(answer.explanations) == count and all(len(one.predictions) for one in answer.explanations)
        return "" if good else f"{len(answer.explanations)} explanations"

    return check


def what_if(name: str, code: str, word: str = "", **fields: object) -> Case:
    """Return a case of WhatIf about one good picture, unless told otherwise."""
    request = pb.WhatIfRequest(**{"model": MODEL, "encoded_image": PICTURES[0]} | fields)
    return Case(f"what if: {name}", sent(EXPLAIN + "WhatIf", request), (code,), word)


FINE = (
    explained("a picture", explain(), OK, check=answered(1)),
    explained("eight pictures", explain(encoded_images=PICTURES), OK, check=answered(8)),
    explained("pixels", tensor([3, SIZE, SIZE, 3], PIXELS.tobytes()), OK, check=answered(3)),
    explained("floats", floats(0.5), OK, check=answered(1)),
    what_if("a picture", OK),
    Case("list models", sent(EXPLAIN + "ListModels", b""), (OK,)),
    Case("get model", sent(EXPLAIN + "GetModel", pb.GetModelRequest(model=MODEL)), (OK,)),
)

REFUSED = (
    explained("no picture", explain(encoded_images=[]), INVALID, "encoded_images"),
    explained("pictures and numbers", explain(tensor=picture_tensor([1], b"1")), INVALID, "tensor"),
    explained("an empty picture", explain(encoded_images=[b""]), INVALID, "encoded_images[0]"),
    explained("a GIF", explain(encoded_images=[b"GIF89a" + bytes(50)]), INVALID, "JPEG, PNG or WebP"),
    explained("one bad of two", explain(encoded_images=[PICTURES[0], b"no"]), INVALID, "encoded_images[1]"),
    explained("65 pictures", explain(encoded_images=PICTURES[:1] * 65), INVALID, "64"),
    explained(
        "100,000 empty pictures", explain(encoded_images=[b""] * 100_000), INVALID, "encoded_images", seconds=QUICK
    ),
    explained("an unknown row", explain(rows=["part"]), INVALID, "rows"),
    explained("200,000 rows", explain(rows=["part"] * 200_000), INVALID, "rows", seconds=QUICK),
    explained("a row of 1 MB", explain(rows=["x" * 2**20]), INVALID, "rows", seconds=QUICK),
    explained("minus one class", explain(top_k_classes=-1), INVALID, "top_k_classes"),
    explained("minus one reason", explain(top_k_reasons=-1), INVALID, "top_k_reasons"),
    explained("minus one node", explain(max_nodes=-1), INVALID, "max_nodes"),
    explained("a percentile of NaN", explain(min_percentile=float("nan")), INVALID, "min_percentile"),
    explained("an evidence of nobody", explain(evidence=7), INVALID, "evidence"),
    explained("another shape", tensor([1, 3, SIZE, SIZE], bytes(BYTES)), INVALID, "tensor.shape"),
    explained("[2^62, ...]", tensor([2**62, SIZE, SIZE, 3], b"1234"), INVALID, "tensor.shape"),
    explained("an axis below 0", tensor([-1, SIZE, SIZE, 3], b""), INVALID, "tensor.shape"),
    explained("a byte too many", tensor([1, SIZE, SIZE, 3], bytes(BYTES + 1)), INVALID, "tensor.data"),
    explained("no data type", tensor([1, SIZE, SIZE, 3], bytes(BYTES), 0), INVALID, "tensor.data_type"),
    explained("NaN", floats(float("nan")), INVALID, "NaN"),
    explained("0..255 as floats", floats(255), INVALID, "255"),
    explained("an unknown model", explain(model="lion"), NOT_FOUND, "lion"),
    explained("an unknown version", explain(version="7"), NOT_FOUND, "7"),
    explained("a refused model", explain(model="damaged", version="1"), "FAILED_PRECONDITION", "damaged"),
    explained("a name of 1 MB", explain(model="x" * 2**20), NOT_FOUND, "model", seconds=QUICK),
    explained(
        "a message over the limit",
        explain(encoded_images=[bytes(200_000)]),
        "RESOURCE_EXHAUSTED",
        "larger",
        explained=False,
        server="strict",
    ),
    what_if("no picture", INVALID, "encoded_image", encoded_image=b""),
    what_if("a change of nothing", INVALID, "changes[0]", changes=[pb.Change(scale=1)]),
    what_if("feature 99", INVALID, "99", changes=[pb.Change(feature=99)]),
    what_if("a scale of NaN", INVALID, "scale", changes=[pb.Change(feature=1, scale=float("nan"))]),
    what_if("an unknown model", NOT_FOUND, "lion", model="lion"),
    Case("get an unknown model", sent(EXPLAIN + "GetModel", pb.GetModelRequest(model="lion")), (NOT_FOUND,), "lion"),
    *(
        Case(f"junk to {method}", sent(EXPLAIN + method, JUNK), (INVALID,), "parsed")
        for method in ("Explain", "WhatIf", "ListModels", "GetModel")
    ),
    Case("explain: an unknown method", sent(EXPLAIN + "Dream", b""), ("UNIMPLEMENTED",), explained=False),
)

EXPLAIN_CASES: tuple[Case, ...] = (*FINE, *REFUSED)
