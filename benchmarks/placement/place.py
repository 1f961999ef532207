"""Load model files with the CUDA provider and say where their nodes are: `python -m benchmarks.placement.place FILES`.

Run by `python -m benchmarks.placement` in an environment with onnxruntime-gpu, on stub libraries or on a real GPU.
Writes one line of JSON for each file: {provider: {operator: count}}. A file without nodes on the CPU is loaded
once more as `--device gpu` loads it, for captured runs: that ONNX Runtime accepts it says the same in another way.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from analyzers.execution import CPU, Execution
from analyzers.placement import placed
from analyzers.runtime import open_session


def main() -> None:
    """Print a line for each file."""
    for file in sys.argv[1:]:
        found = placed(open_session(Path(file), device="auto", threads=1, execution=Execution(provider="cuda")).session)
        if CPU not in found:
            open_session(Path(file), device="gpu", threads=1, execution=Execution(cuda_graphs=(1,)))
        print(json.dumps({provider: dict(nodes) for provider, nodes in found.items()}), flush=True)


if __name__ == "__main__":
    main()
