"""Load model files with the CUDA provider and say where their nodes are: `python -m benchmarks.placement.place FILES`.

Run by `python -m benchmarks.placement` in an environment with onnxruntime-gpu, on stub libraries or on a real GPU.
Writes one line of JSON for each file: {provider: {operator: count}}.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from analyzers.execution import Execution
from analyzers.placement import placed
from analyzers.runtime import open_session


def main() -> None:
    """Print a line for each file."""
    for file in sys.argv[1:]:
        session = open_session(Path(file), device="auto", threads=1, execution=Execution(provider="cuda"))
        print(json.dumps({provider: dict(nodes) for provider, nodes in placed(session.session).items()}), flush=True)


if __name__ == "__main__":
    main()
