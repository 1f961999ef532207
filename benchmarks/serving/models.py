"""The networks that are served: explained and plain files of the same one, with random weights."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from pathlib import Path

from benchmarks.latency import CASES, Case, files

SERVED = {f"{case.backbone}-{case.size}": case for case in CASES if case.backbone in ("resnet20", "resnet18")}
EXPLAINED, PLAIN = "explained", "plain"


def model_name(network: str, kind: str) -> str:
    """Return what a file is called in the repository."""
    return f"{network}-{kind}"


def write_models(root: Path, networks: list[str]) -> None:
    """Write NAME/1/model.onnx of every network, explained and plain, where it is not there yet."""
    for network in networks:
        targets = [root / model_name(network, kind) / "1" / "model.onnx" for kind in (PLAIN, EXPLAINED)]
        if all(target.exists() for target in targets):
            continue
        for target, content in zip(targets, _files(SERVED[network]), strict=False):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)


def _files(case: Case) -> tuple[bytes, bytes, bytes]:
    with redirect_stdout(io.StringIO()):
        return files(case)
