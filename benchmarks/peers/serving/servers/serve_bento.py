"""BentoML: two workers, adaptive batching; arrays as lists in JSON, as its own clients send them.

Arguments: model file, its name, port. `bentoml serve` loads this module a second time in its workers; the file's name
comes to them through the environment.
"""

import os
import sys
from pathlib import Path

import bentoml
import numpy as np
from plain_session import MAX_BATCH, Model

FILE = "MODEL_FILE"


@bentoml.service(workers=2, traffic={"timeout": 60}, metrics={"enabled": False}, logging={"access": {"enabled": False}})
class Served:
    """ONNX Runtime behind BentoML."""

    def __init__(self) -> None:
        self.model = Model(os.environ[FILE])

    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH, max_latency_ms=10_000)
    def predict(self, image: np.ndarray) -> list[dict]:
        """Run a batch."""
        outputs = self.model.run(image.astype(np.float32, copy=False))
        lists = {name: value.tolist() for name, value in outputs.items()}
        return [{name: value[row] for name, value in lists.items()} for row in range(len(image))]


def main(file: str, port: str) -> None:
    """Serve until told to stop."""
    os.environ[FILE] = file
    os.environ["BENTOML_DO_NOT_TRACK"] = "True"
    program = [sys.executable, "-m", "bentoml", "serve", "serve_bento:Served", "--host", "127.0.0.1", "--port", port]
    os.chdir(Path(__file__).resolve().parent)
    os.execv(sys.executable, program)  # noqa: S606 (its own command line)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[3])
