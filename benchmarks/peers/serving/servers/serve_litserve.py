"""LitServe: two workers, batching; numbers as base64 in JSON, since it reads no binary bodies.

Arguments: model file, its name, port.
"""

import base64
import sys

import litserve
import numpy as np
from plain_session import MAX_BATCH, Model


class Served(litserve.LitAPI):
    """ONNX Runtime behind LitServe."""

    def __init__(self, file: str) -> None:
        super().__init__(max_batch_size=MAX_BATCH, batch_timeout=0.002)
        self.file = file

    def setup(self, device: str) -> None:
        """Load the model in a worker."""
        self.model = Model(self.file)

    def decode_request(self, request: dict) -> np.ndarray:
        """Read one picture."""
        return np.frombuffer(base64.b64decode(request["image"]), np.float32).reshape(self.model.input_shape)

    def predict(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        """Run a batch."""
        return self.model.run(np.ascontiguousarray(batch))

    def unbatch(self, output: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
        """Give each request its rows."""
        count = len(next(iter(output.values())))
        return [{name: value[row] for name, value in output.items()} for row in range(count)]

    def encode_response(self, output: dict[str, np.ndarray]) -> dict[str, str]:
        """Write one answer."""
        return {name: base64.b64encode(value.tobytes()).decode() for name, value in output.items()}


def main(file: str, port: int) -> None:
    """Serve until told to stop."""
    server = litserve.LitServer(Served(file), accelerator="cpu", workers_per_device=2)
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="error")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[3]))
