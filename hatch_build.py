"""Write the gRPC stubs of `proto/` beside their sources whenever the project is built or installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


def write_stubs(root: Path) -> None:
    """Compile every `.proto` below `root/proto` to `_pb2.py`, `_pb2.pyi` and `_pb2_grpc.py`."""
    from importlib.resources import files

    from grpc_tools import protoc

    proto = root / "proto"
    sources = sorted(str(path) for path in proto.rglob("*.proto"))
    well_known = str(files("grpc_tools") / "_proto")
    outputs = [f"--{kind}_out={proto}" for kind in ("python", "pyi", "grpc_python")]
    if protoc.main(["protoc", f"-I{proto}", f"-I{well_known}", *outputs, *sources]):
        raise RuntimeError(f"protoc refused one of {', '.join(sources)}; its message stands above")


class StubsHook(BuildHookInterface):  # type: ignore[type-arg]
    """Generate the stubs before files are collected."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Run before every build, editable ones included."""
        write_stubs(Path(self.root))
