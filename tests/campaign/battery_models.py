"""Cases of models, their metadata, loading them, and of bytes and methods that are nothing."""

from __future__ import annotations

from google.protobuf.message import Message
from tritonclient.grpc import service_pb2 as oip

from tests.campaign.battery_case import INVALID, NOT_FOUND, OK, QUICK, Case, inferred, sent
from tests.campaign.requests import INPUT, SCORES, floats
from tests.campaign.wire import OIP

JUNK = b"\xff\xff\xff\x0f not a message"
MIB = 2**20


def case(name: str, method: str, request: Message | bytes, code: str, word: str = "", **more: object) -> Case:
    """Return a case of any method of the protocol."""
    return Case(name, sent(OIP + method, request), (code,), word, **more)


def field(kind: type[Message], name: str, value: object) -> object:
    """Return a check that a field of the answer has a value."""

    def check(data: bytes) -> str:
        found = getattr(kind.FromString(data), name)
        return "" if found == value else f"{name} {found!r}, not {value!r}"

    return check


def metadata(data: bytes) -> str:
    """Check that inputs and outputs are told."""
    answer = oip.ModelMetadataResponse.FromString(data)
    inputs, outputs = {one.name for one in answer.inputs}, {one.name for one in answer.outputs}
    good = INPUT in inputs and SCORES in outputs and answer.versions == ["1"]
    return "" if good else f"{inputs}, {outputs}, {answer.versions}"


def configured(data: bytes) -> str:
    """Check what NVIDIA's load tester reads."""
    config = oip.ModelConfigResponse.FromString(data).config
    good = config.name == "tiny" and config.input and config.output and config.max_batch_size > 0
    return "" if good else str(config)[:200]


def counted(data: bytes) -> str:
    """Check that answers are counted."""
    (one,) = oip.ModelStatisticsResponse.FromString(data).model_stats
    good = one.inference_count >= one.execution_count > 0 and one.inference_stats.success.count > 0
    return "" if good else str(one)[:200]


def indexed(data: bytes) -> str:
    """Check that the damaged model is listed with its reason."""
    states = {one.name: (one.state, one.reason) for one in oip.RepositoryIndexResponse.FromString(data).models}
    good = states["tiny"][0] == "READY" and states["damaged"][0] == "UNAVAILABLE" and states["damaged"][1]
    return "" if good else str(states)


def loading(name: str, **parameters: oip.ModelRepositoryParameter) -> oip.RepositoryModelLoadRequest:
    """Return a request to load a model."""
    return oip.RepositoryModelLoadRequest(model_name=name, parameters=parameters)


TEXT = oip.ModelRepositoryParameter(string_param="{}")
FILE = oip.ModelRepositoryParameter(bytes_param=b"onnx")

ABOUT = (
    case("live", "ServerLive", b"", OK, check=field(oip.ServerLiveResponse, "live", True)),
    case("ready", "ServerReady", b"", OK, check=field(oip.ServerReadyResponse, "ready", True)),
    case("server metadata", "ServerMetadata", b"", OK),
    case(
        "a ready model",
        "ModelReady",
        oip.ModelReadyRequest(name="tiny", version="1"),
        OK,
        check=field(oip.ModelReadyResponse, "ready", True),
    ),
    case(
        "readiness of an unknown model",
        "ModelReady",
        oip.ModelReadyRequest(name="lion"),
        OK,
        check=field(oip.ModelReadyResponse, "ready", False),
    ),
    case(
        "readiness of an unknown version",
        "ModelReady",
        oip.ModelReadyRequest(name="tiny", version="7"),
        OK,
        check=field(oip.ModelReadyResponse, "ready", False),
    ),
    case(
        "readiness of a refused model",
        "ModelReady",
        oip.ModelReadyRequest(name="damaged"),
        OK,
        check=field(oip.ModelReadyResponse, "ready", False),
    ),
    case("model metadata", "ModelMetadata", oip.ModelMetadataRequest(name="tiny"), OK, check=metadata),
    case("metadata of an unknown model", "ModelMetadata", oip.ModelMetadataRequest(name="lion"), NOT_FOUND, "lion"),
    case(
        "metadata of an unknown version",
        "ModelMetadata",
        oip.ModelMetadataRequest(name="tiny", version="7"),
        NOT_FOUND,
        "7",
    ),
    case("model config", "ModelConfig", oip.ModelConfigRequest(name="tiny"), OK, check=configured),
    case("config of an unknown model", "ModelConfig", oip.ModelConfigRequest(name="lion"), NOT_FOUND, "lion"),
    case("statistics", "ModelStatistics", oip.ModelStatisticsRequest(name="tiny"), OK, check=counted),
    case("statistics of all models", "ModelStatistics", b"", OK),
    case(
        "statistics of an unknown model", "ModelStatistics", oip.ModelStatisticsRequest(name="lion"), NOT_FOUND, "lion"
    ),
    case("repository index", "RepositoryIndex", b"", OK, check=indexed),
)

NAMED = (
    inferred("an unknown model", floats(model="lion"), NOT_FOUND, "lion"),
    inferred("a model with a path", floats(model="../tiny"), NOT_FOUND, "../tiny"),
    inferred("an unknown version", floats(version="7"), NOT_FOUND, "7"),
    inferred("a version in words", floats(version="newest"), NOT_FOUND, "newest"),
    inferred("no model where there are several", floats(model=""), NOT_FOUND, "model"),
    inferred("a refused model", floats(model="damaged", version="1"), "FAILED_PRECONDITION", "damaged"),
    inferred("a model's name of 1 MB", floats(model="x" * MIB), NOT_FOUND, "model", seconds=QUICK),
    inferred("a version of 1 MB", floats(version="1" * MIB), NOT_FOUND, "version", seconds=QUICK),
)

CONTROL = (
    case("load", "RepositoryModelLoad", loading("spare"), OK),
    case("load an unknown model", "RepositoryModelLoad", loading("lion"), NOT_FOUND, "lion"),
    case("load a path", "RepositoryModelLoad", loading("../../etc"), NOT_FOUND),
    case("load a refused model", "RepositoryModelLoad", loading("damaged"), "FAILED_PRECONDITION", "damaged"),
    case(
        "load with a file",
        "RepositoryModelLoad",
        loading("spare", **{"file:1/model.onnx": FILE, "config": TEXT}),
        "UNIMPLEMENTED",
        "parameter",
    ),
    case("load with a config", "RepositoryModelLoad", loading("spare", config=TEXT), "UNIMPLEMENTED", "config"),
    case("load nothing", "RepositoryModelLoad", b"", INVALID, "model_name"),
    case(
        "unload an unknown model",
        "RepositoryModelUnload",
        oip.RepositoryModelUnloadRequest(model_name="lion"),
        NOT_FOUND,
        "lion",
    ),
    case("unload", "RepositoryModelUnload", oip.RepositoryModelUnloadRequest(model_name="spare"), OK),
    inferred("a model that was unloaded", floats(model="spare"), NOT_FOUND, "spare"),
    case("load, not allowed", "RepositoryModelLoad", loading("spare"), "PERMISSION_DENIED", server="strict"),
    case(
        "unload, not allowed",
        "RepositoryModelUnload",
        oip.RepositoryModelUnloadRequest(model_name="spare"),
        "PERMISSION_DENIED",
        server="strict",
    ),
)

METHODS = (
    "ServerLive",
    "ModelReady",
    "ModelMetadata",
    "ModelInfer",
    "ModelConfig",
    "ModelStatistics",
    "RepositoryIndex",
    "RepositoryModelLoad",
    "RepositoryModelUnload",
)
NOTHING = (
    *(case(f"junk to {method}", method, JUNK, INVALID, "parsed") for method in METHODS),
    inferred("a message cut short", floats().SerializeToString()[:-1], INVALID, "parsed"),
    inferred("a name that is no UTF-8", b"\x0a\x02\xff\xfe", INVALID, "parsed"),
    inferred("a length of 2^63", b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", INVALID, "parsed"),
    inferred("groups 10,000 deep", b"\x5b" * 10_000, INVALID, "parsed"),
    case("shared memory", "SystemSharedMemoryStatus", b"", "UNIMPLEMENTED"),
    case("registering shared memory", "CudaSharedMemoryRegister", b"", "UNIMPLEMENTED"),
    case("trace settings", "TraceSetting", b"", "UNIMPLEMENTED"),
    case("log settings", "LogSettings", b"", "UNIMPLEMENTED"),
    case("an unknown method", "ModelDream", b"", "UNIMPLEMENTED", explained=False),
    Case("an unknown service", sent("/nobody.Service/Call", b""), ("UNIMPLEMENTED",), explained=False),
    Case(
        "a deadline in the middle of a run",
        sent(OIP + "ModelInfer", floats(model="slow"), 0.05),
        ("DEADLINE_EXCEEDED",),
        explained=False,
    ),
    inferred(
        "a message over the limit",
        floats(id="x" * 200_000),
        "RESOURCE_EXHAUSTED",
        "larger",
        explained=False,
        server="strict",
    ),
    inferred("after all of it, a valid request", floats(), OK),
)

MODEL_CASES: tuple[Case, ...] = (*ABOUT, *NAMED, *CONTROL, *NOTHING)
