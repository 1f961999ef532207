"""Messages of the Open Inference Protocol, in a descriptor pool of their own.

Generated code for the same package, such as that of other servers' clients, lives in the default pool, where each name
can exist once; so it and these messages fit into one process, whichever comes first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib.resources import files
from types import SimpleNamespace
from typing import TYPE_CHECKING

from google.protobuf.descriptor import Descriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

if TYPE_CHECKING:
    from inference import open_inference_pb2 as oip

__all__ = ["FILE", "POOL", "SERVICE", "oip"]


def _pool() -> DescriptorPool:
    """Read what the build has written beside the stubs."""
    pool = DescriptorPool()
    content = files("pellucid").joinpath("open_inference.binpb").read_bytes()
    for file in FileDescriptorSet.FromString(content).file:
        pool.AddSerializedFile(file.SerializeToString())
    return pool


def _classes(messages: Iterable[Descriptor]) -> Iterator[type[Message]]:
    """Yield the classes of messages and of all that are nested in them, entries of maps included."""
    for message in messages:
        yield GetMessageClass(message)
        yield from _classes(message.nested_types)


POOL = _pool()
"""For reflection."""

FILE = POOL.FindFileByName("inference/open_inference.proto")

# Generated code holds every class for good. A class that only messages hold is garbage as soon as they are gone, and
# protobuf still finds it while the garbage collector takes it apart: whoever uses it then ends the process by SIGSEGV.
_KEPT = tuple(_classes(FILE.message_types_by_name.values()))

SERVICE: str = FILE.services_by_name["GRPCInferenceService"].full_name

if not TYPE_CHECKING:
    oip = SimpleNamespace(
        **{name: GetMessageClass(message) for name, message in FILE.message_types_by_name.items()},
        **{value.name: value.number for enum in FILE.enum_types_by_name.values() for value in enum.values},
    )
    """The message classes and enum values, as a generated module would hold them."""
