"""WhatIf over the wire: exact, confirmed in pixels, refused in one sentence."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import numpy as np
import pytest

from analyzers.pixels import to_model_input
from analyzers.runtime import open_session
from analyzers.what_if import Change
from pellucid.v1 import explain_pb2 as pb
from server.client import Client, ServerError
from tests.conftest import SIZE, png

PIXELS = np.random.default_rng(11).integers(0, 256, (4, SIZE, SIZE, 3), np.uint8)


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[Client]:
    with Client(address) as open_client:
        yield open_client


def test_every_class_gets_its_logit_without_the_feature(client: Client, tiny_model: bytes) -> None:
    outputs = open_session(tiny_model).run({"image": to_model_input(PIXELS)})
    for row, pixels in enumerate(PIXELS):
        answer = client.what_if(png(pixels), Change("feature", 3), Change("part", 5, 2.0))
        change = outputs["class_features.head"][:, [3, 5]] @ (outputs["flat"][row, [3, 5]] * [-1, 1])
        np.testing.assert_allclose(answer.logits_before, outputs["logits"][row], atol=1e-5)
        np.testing.assert_allclose(answer.logits_after, outputs["logits"][row] + change, atol=1e-5)
        assert [one.class_index for one in answer.after] == np.argsort(-np.array(answer.logits_after)).tolist()
        assert sum(one.probability for one in answer.after) == pytest.approx(1)
        assert answer.proof.exact
        assert not answer.HasField("flip")


def test_the_smallest_flip_flips_and_a_tensor_is_as_good_as_a_file(client: Client) -> None:
    answer = client.what_if(PIXELS[0], smallest_flip=True)
    assert answer.flip.after[0].class_index != answer.before[0].class_index
    again = client.what_if(png(PIXELS[0]), *(Change("feature", j) for j in answer.flip.features))
    assert [one.class_index for one in again.after] == [one.class_index for one in answer.flip.after]
    np.testing.assert_allclose(again.after[0].logit, answer.flip.after[0].logit, atol=1e-6)


def test_the_pixels_are_painted_over_where_the_part_is_and_elsewhere(client: Client, tiny_model: bytes) -> None:
    (explanation,) = client.explain(png(PIXELS[0]))
    part = explanation.parts.parts[0]
    occlusion = client.what_if(png(PIXELS[0]), Change("part", part.filter), occlude=True).occlusion
    (place,) = occlusion.places
    assert (place.left, place.top, place.right, place.bottom) == (
        part.cell.left, part.cell.top, part.cell.right, part.cell.bottom,
    )  # fmt: skip
    assert occlusion.elsewhere_draws == 16
    image = to_model_input(PIXELS[:1])
    painted = image.copy()
    # Cells are two pixels wide and lie half a pixel before them: round() takes even numbers.
    top, bottom, left, right = (round(edge) for edge in (part.y - 1, part.y + 1, part.x - 1, part.x + 1))
    painted[0, :, max(top, 0) : bottom, max(left, 0) : right] = image[0].mean((1, 2))[:, None, None]
    before, after = (open_session(tiny_model).run({"image": one})["logits"][0] for one in (image, painted))
    best = before.argmax()
    assert occlusion.drop == pytest.approx(float(before[best] - after[best]), abs=1e-5)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (pb.WhatIfRequest(), "encoded_image: holds no picture"),
        (pb.WhatIfRequest(encoded_image=b"no picture"), "encoded_image: "),
        (pb.WhatIfRequest(encoded_image=png(PIXELS[0]), changes=[pb.Change(scale=0.5)]), "changes[0]: names nothing"),
        (pb.WhatIfRequest(encoded_image=png(PIXELS[0]), changes=[pb.Change(feature=99)]), "names feature 99"),
        (pb.WhatIfRequest(encoded_image=png(PIXELS[0]), top_k_classes=-1), "top_k_classes: is -1"),
        (pb.WhatIfRequest(encoded_image=png(PIXELS[0]), occlude=True), "occlude: none of what changes has fired"),
        (
            pb.WhatIfRequest(tensor=pb.ImageTensor(shape=[2, SIZE, SIZE, 3], data_type=1, data=PIXELS[:2].tobytes())),
            "tensor",
        ),
    ],
)
def test_what_cannot_be_answered_is_refused_naming_the_field(
    address: str, request_: pb.WhatIfRequest, words: str
) -> None:
    from pellucid.v1.explain_pb2_grpc import ExplainServiceStub

    with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as caught:
        ExplainServiceStub(channel).WhatIf(request_)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert words in caught.value.details()


def test_an_unknown_model_is_not_found(client: Client) -> None:
    with pytest.raises(ServerError) as caught:
        client.what_if(png(PIXELS[0]), model="nobody")
    assert caught.value.code == grpc.StatusCode.NOT_FOUND
