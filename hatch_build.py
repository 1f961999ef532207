"""Write the gRPC stubs of `proto/` beside their sources whenever the project is built or installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


def write_stubs(root: Path) -> None:
    """Compile `pellucid.v1` to modules, and the Open Inference Protocol to a descriptor set and its types.

    The latter gets no module: other packages generate code of the same names, and one process can hold one of them.
    Its descriptor set lies in the package `pellucid`, which wheels have and nobody else does.
    """
    proto = root / "proto"
    own = sorted((proto / "pellucid").rglob("*.proto"))
    _compile(proto, [f"--{kind}_out={proto}" for kind in ("python", "pyi", "grpc_python")], own)
    shared = proto / "inference" / "open_inference.proto"
    descriptors = proto / "pellucid" / "open_inference.binpb"
    _compile(proto, [f"--descriptor_set_out={descriptors}", f"--pyi_out={proto}"], [shared])


def _compile(proto: Path, outputs: list[str], sources: list[Path]) -> None:
    from importlib.resources import files

    from grpc_tools import protoc

    well_known = str(files("grpc_tools") / "_proto")
    names = [str(source) for source in sources]
    if protoc.main(["protoc", f"-I{proto}", f"-I{well_known}", *outputs, *names]):
        raise RuntimeError(f"protoc refused one of {', '.join(names)}; its message stands above")


class StubsHook(BuildHookInterface):  # type: ignore[type-arg]
    """Generate the stubs before files are collected."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Run before every build, editable ones included."""
        write_stubs(Path(self.root))
