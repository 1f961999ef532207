"""Libraries that stand in for CUDA, cuBLAS, cuRAND and cuDNN: enough for ONNX Runtime to place nodes, not to compute.

Which functions are wanted is read from ONNX Runtime's own library, so that another release finds what it needs. What
must answer with more than "done" is in stubs.c.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

_SOURCE = Path(__file__).with_name("stubs.c")
_DRIVER = "libcuda.so.1"  # its functions carry no version
_CUDNN = "libcudnn.so.9"


def build(folder: Path, provider: Path) -> None:
    """Write stub libraries into a folder.

    Args:
        folder: where to; it belongs into LD_LIBRARY_PATH.
        provider: ONNX Runtime's libonnxruntime_providers_cuda.so.

    Raises:
        OSError: there is no compiler and no binutils on this machine.
        CalledProcessError: it failed.
    """
    answered = set(re.findall(r"^(?:\w+ )+\**(\w+)\(", _SOURCE.read_text(), re.MULTILINE))
    for library, functions in _wanted(provider).items():
        _compile(folder, library, sorted(functions - answered))


def _wanted(provider: Path) -> dict[str, set[str]]:
    """Return the functions that the provider expects of each library."""
    needed = re.findall(r"\[(libcu\w+\.so[\d.]*)\]", _output("readelf", "-d", str(provider)))
    found = {name: set[str]() for name in needed}
    for line in _output("nm", "-D", "--undefined-only", str(provider)).splitlines():
        name, _, library = line.split()[-1].partition("@")
        if re.match(r"(__)?cu(da|blas|rand|fft|dnn)|cu[A-Z]", name):
            found.setdefault(library.lstrip("@") or _DRIVER, set()).add(name)
    # cuDNN is opened while it runs, and its functions are looked up by name.
    names = re.findall(rb"\0(cudnn[A-Z][A-Za-z0-9_]+)(?=\0)", provider.read_bytes())
    return found | {_CUDNN: {name.decode() for name in names}}


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _compile(folder: Path, library: str, functions: list[str]) -> None:
    source = folder / f"{library}.c"
    empty = "".join(f"long {name}(void) {{ return 0; }}\n" for name in functions)
    source.write_text(_SOURCE.read_text() + empty)
    script = folder / f"{library}.map"
    script.write_text(f"{library} {{ global: *; }};\n")
    command = ["gcc", "-shared", "-fPIC", "-O1", "-w", "-fno-builtin", f"-Wl,-soname,{library}"]
    command += [f"-Wl,--version-script={script}", "-o", str(folder / library), str(source)]
    subprocess.run(command, check=True, capture_output=True, text=True)
