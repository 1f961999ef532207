"""Runs shared by the requests of different callers, over the wire: the answers are those that each would get alone."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import onnx
import pytest

from analyzers.explanation import Explanation
from analyzers.files import write_atomically
from server.client import Client
from server.oip_messages import oip
from tests.conftest import SIZE, running_server

CALLS = 120


def statistics(address: str) -> oip.ModelStatistics:
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelStatistics",
            oip.ModelStatisticsRequest.SerializeToString,
            oip.ModelStatisticsResponse.FromString,
        )
        (counts,) = call(oip.ModelStatisticsRequest(name="tiny")).model_stats
    return counts


def questions() -> list[dict[str, object]]:
    random = np.random.default_rng(5)
    return [
        {
            "images": random.integers(0, 256, (1 + number % 3, SIZE, SIZE, 3), np.uint8),
            "top_k_classes": 1 + number % 3,
            "top_k_reasons": number % 4,
            "rows": (["parts"], ["class_features"], [])[number % 3],
            "evidence": ("", "float32", "float16")[number % 3],
        }
        for number in range(CALLS)
    ]


@pytest.fixture
def busy(repository: Path) -> Iterator[str]:
    """A server whose one worker gets full batches."""
    options = ("--repository", str(repository), "--workers", "1", "--max-batch", "8", "--log-level", "warning")
    with running_server(*options) as (address, _):
        yield address


def ask_all(address: str, threads: int) -> list[list[Explanation]]:
    with Client(address) as client, ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda question: client.explain(**question), questions()))


def test_answers_do_not_depend_on_who_shares_the_run(busy: str) -> None:
    alone = ask_all(busy, 1)
    before = statistics(busy)
    together = ask_all(busy, 24)
    after = statistics(busy)
    assert together == alone  # to the bit
    runs = after.execution_count - before.execution_count
    assert after.inference_count - before.inference_count == sum(len(answers) for answers in alone)
    assert runs < CALLS / 2, "the requests did not share their runs"


@pytest.mark.parametrize("batch", [1, 4])
def test_a_model_of_a_fixed_batch_answers_as_one_of_any_batch(
    batch: int, busy: str, tiny_model: bytes, tmp_path: Path
) -> None:
    model = onnx.load_from_string(tiny_model)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = batch
    for output in model.graph.output:
        if output.type.tensor_type.shape.dim[0].dim_param:
            output.type.tensor_type.shape.dim[0].dim_value = batch
    write_atomically(tmp_path / "tiny" / "1" / "model.onnx", model.SerializeToString())
    with running_server("--repository", str(tmp_path), "--log-level", "warning") as (address, _):
        fixed = ask_all(address, 8)
    values = [[(e.predictions, e.parts, e.class_features) for e in answers] for answers in fixed]
    assert values == [[(e.predictions, e.parts, e.class_features) for e in answers] for answers in ask_all(busy, 1)]
