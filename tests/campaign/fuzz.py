"""Fuzzing: damaged messages to every method; nothing but a proper status may come back."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from tritonclient.grpc import service_pb2 as oip

from pellucid.v1 import explain_pb2 as pb
from tests.campaign import requests
from tests.campaign.mutate import broken_bytes, broken_picture, broken_values, odd_message
from tests.campaign.outcome import Outcome, outcome
from tests.campaign.serving import MIB, Served, served, settle
from tests.campaign.wire import EXPLAIN, HEALTH, OIP, Reply, aio_channel, ask_aio, failed, offences
from tests.conftest import SIZE, explain_tiny

# What a damaged message may be answered; everything else is a fault.
PROPER = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "PERMISSION_DENIED", "UNIMPLEMENTED"}
PROPER |= {"RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"}
STREAM = OIP + "ModelStreamInfer"
TENSOR = requests.picture_tensor([1, SIZE, SIZE, 3], bytes(SIZE * SIZE * 3))
HEALTHY = health_pb2.HealthCheckRequest()


def seeds() -> tuple[tuple[str, Message], ...]:
    """Return valid requests, of every method at least one; what loads and unloads is a model of its own."""
    node = pb.Change(node=pb.NodeName(layer=0, node=1), scale=0.5)
    return (
        (OIP + "ModelInfer", requests.floats(outputs=("logits",))),
        (OIP + "ModelInfer", requests.pictures(*requests.PICTURES[:2])),
        (OIP + "ModelInfer", requests.infer(requests.tensor("BYTES", (1,), bytes_contents=[requests.PICTURES[0]]))),
        (OIP + "ModelInfer", requests.infer(requests.tensor("FP32", (1, 3, SIZE, SIZE), fp32_contents=[0.5] * 768))),
        (STREAM, requests.floats(id="7")),
        (OIP + "ModelReady", oip.ModelReadyRequest(name="tiny", version="1")),
        (OIP + "ModelMetadata", oip.ModelMetadataRequest(name="tiny")),
        (OIP + "ModelConfig", oip.ModelConfigRequest(name="tiny")),
        (OIP + "ModelStatistics", oip.ModelStatisticsRequest(name="tiny")),
        (OIP + "ServerLive", oip.ServerLiveRequest()),
        (OIP + "ServerReady", oip.ServerReadyRequest()),
        (OIP + "ServerMetadata", oip.ServerMetadataRequest()),
        (OIP + "RepositoryIndex", oip.RepositoryIndexRequest(ready=True)),
        (OIP + "RepositoryModelLoad", oip.RepositoryModelLoadRequest(model_name="spare")),
        (OIP + "RepositoryModelUnload", oip.RepositoryModelUnloadRequest(model_name="spare")),
        (EXPLAIN + "Explain", requests.explain(rows=["parts"], top_k_classes=2)),
        (
            EXPLAIN + "Explain",
            pb.ExplainRequest(model="tiny", tensor=requests.picture_tensor([1, 16, 16, 3], bytes(768))),
        ),
        (EXPLAIN + "WhatIf", pb.WhatIfRequest(model="tiny", encoded_image=requests.PICTURES[0], changes=[node])),
        (EXPLAIN + "ListModels", pb.ListModelsRequest()),
        (EXPLAIN + "GetModel", pb.GetModelRequest(model="tiny")),
        (HEALTH + "Check", HEALTHY),
    )


def damaged_content(random: Random) -> tuple[str, Message]:
    """Return a well-formed request of broken pictures or values."""
    match random.randrange(4):
        case 0:
            return EXPLAIN + "Explain", requests.explain(encoded_images=[broken_picture(random)])
        case 1:
            return EXPLAIN + "WhatIf", pb.WhatIfRequest(model="tiny", encoded_image=broken_picture(random))
        case 2:
            tensor = requests.tensor("BYTES", (random.randint(1, 3),))
            return OIP + "ModelInfer", requests.infer(tensor, raw=(broken_values(random),))
        case _:
            shape = (random.choice((1, 2)), 3, SIZE, random.choice((SIZE, SIZE - 1)))
            tensor = requests.tensor(random.choice(("FP32", "UINT8")), shape)
            return random.choice((OIP + "ModelInfer", STREAM)), requests.infer(tensor, raw=(broken_values(random),))


def message(number: int, seed: int) -> tuple[str, bytes]:
    """Return the method and bytes of one message; always the same for the same number and seed."""
    random = Random(seed * 1_000_003 + number)  # noqa: S311 - damage, not secrets
    if number % 3 == 2:
        method, content = damaged_content(random)
        return method, content.SerializeToString()
    method, valid = random.choice(SEEDS)
    if number % 3 == 1:
        return method, broken_bytes(random, valid.SerializeToString())
    return method, odd_message(random, valid)


SEEDS = seeds()


@dataclass
class Tally:
    """What came back.

    Attributes:
        codes: how often each status came.
        faults: numbers of the messages whose answers were wrong, by method and what was wrong.
        said: the first sentence of each fault.
    """

    codes: Counter[str] = field(default_factory=Counter)
    faults: dict[str, list[int]] = field(default_factory=dict)
    said: dict[str, str] = field(default_factory=dict)

    def add(self, number: int, method: str, reply: Reply) -> None:
        """Count an answer and note what is wrong with it."""
        self.codes[reply.code.name] += 1
        found = [] if reply.code.name in PROPER else [f"is {reply.code.name}"]
        found += offences(reply, explained=False)
        if found:
            fault = f"{method} {', '.join(dict.fromkeys(found))}"
            self.faults.setdefault(fault, []).append(number)
            self.said.setdefault(fault, reply.text[:100])

    def problems(self) -> list[str]:
        """Return one sentence for each kind of fault, with the first messages that showed it."""
        return [
            f"{fault} for {len(numbers)} messages, such as {numbers[:3]}; it said {self.said[fault]!r}"
            for fault, numbers in self.faults.items()
        ]


async def _stream(channel: grpc.aio.Channel, data: bytes) -> Reply:
    """Send a message on a stream of its own; an error in the answer counts as refused."""
    try:
        answers = [answer async for answer in channel.stream_stream(STREAM)(iter([data]), timeout=30)]
    except grpc.aio.AioRpcError as error:
        return failed(error)
    text = "".join(oip.ModelStreamInferResponse.FromString(answer).error_message for answer in answers)
    return Reply(grpc.StatusCode.INVALID_ARGUMENT if text else grpc.StatusCode.OK, text)


async def _send_all(address: str, numbers: Sequence[int], seed: int, clients: int) -> Tally:
    tally, left = Tally(), iter(numbers)

    async def client() -> None:
        async with aio_channel(address) as channel:
            for number in left:
                method, data = message(number, seed)
                reply = await (_stream(channel, data) if method == STREAM else ask_aio(channel, method, data, 30))
                tally.add(number, method, reply)

    await asyncio.gather(*(client() for _ in range(clients)))
    return tally


async def _valid(address: str) -> dict[str, Reply]:
    """Return what valid requests of both protocols are answered, and health."""
    asked = {
        EXPLAIN + "Explain": requests.explain().SerializeToString(),
        OIP + "ModelInfer": requests.floats(outputs=("logits",)).SerializeToString(),
        HEALTH + "Check": HEALTHY.SerializeToString(),
    }
    async with aio_channel(address) as channel:
        return {method: await ask_aio(channel, method, data) for method, data in asked.items()}


def fuzz(count: int = 100_000, seed: int = 20_250, clients: int = 16, first: int = 0) -> Outcome:
    """Send damaged messages: a third odd values, a third broken protobuf, a third broken pictures and tensors.

    Args:
        count: of messages.
        seed: what they are made from.
        clients: that send at the same time.
        first: number of the first message, to send one of them again.
    """
    good = explain_tiny()[2].SerializeToString(deterministic=True)
    with served({"tiny": good, "spare": good}, "--model-control") as server:
        before = asyncio.run(_valid(server.address))
        asyncio.run(_send_all(server.address, range(min(count, 500)), seed + 1, clients))  # warms the allocator
        start = settle(server)
        tally = asyncio.run(_send_all(server.address, range(first, first + count), seed, clients))
        problems = [*tally.problems(), *_after(server, before)]
        grown = (settle(server) - start) / MIB if server.process.poll() is None else math.nan
    refused = sum(number for code, number in tally.codes.items() if code != "OK")
    return outcome(
        "fuzz",
        {"messages": count, "refused": refused, "UNKNOWN": tally.codes["UNKNOWN"], "INTERNAL": tally.codes["INTERNAL"]},
        {"grown_MiB": grown, "seed": seed},
        "no crash, no UNKNOWN, no INTERNAL, no traceback, the same bits before and after",
        problems,
    )


def _after(server: Served, before: dict[str, Reply]) -> list[str]:
    if server.process.poll() is not None:
        return server.faults()
    after = asyncio.run(_valid(server.address))
    changed = [f"{method} answers otherwise than before" for method in before if after[method] != before[method]]
    return (
        changed
        + [f"{method} is {reply.code.name}" for method, reply in after.items() if not reply.ok]
        + server.faults()
    )
