"""The one place that loads ONNX Runtime: telemetry off first, then a check of its wheels, then the import."""

from __future__ import annotations

import os

# Read once, at import: ONNX Runtime >= 1.29 otherwise opens a data base in the home directory and looks up hosts.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

from analyzers.errors import RuntimeNotReadyError

WHEELS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino")


def _installed(wheel: str) -> bool:
    try:
        version(wheel)
    except PackageNotFoundError:
        return False
    return True


def check_wheels(installed: Iterable[str]) -> None:
    """Refuse an environment in which pip has put several ONNX Runtime wheels over each other, or none.

    Raises:
        RuntimeNotReadyError: saying what to install or to remove.
    """
    found = sorted(installed)
    if not found:
        raise RuntimeNotReadyError(
            "ONNX Runtime is not installed; install pellucid[cpu], or pellucid[gpu] on a machine with CUDA"
        )
    if len(found) > 1:
        names = f"{', '.join(found[:-1])} and {found[-1]}"
        raise RuntimeNotReadyError(
            f"{names} are {'both' if len(found) == 2 else 'all'} installed and overwrite each other's files; uninstall"
            f" them, then install exactly one of pellucid[cpu], pellucid[gpu] and pellucid[openvino]"
        )


check_wheels(wheel for wheel in WHEELS if _installed(wheel))

import onnxruntime  # noqa: E402 (the telemetry switch and the check must come first)

ort = onnxruntime
RUNTIME = f"onnxruntime {onnxruntime.__version__}"

ort.set_default_logger_severity(4)  # nothing but fatal ones: errors come as exceptions, with a sentence of ours
