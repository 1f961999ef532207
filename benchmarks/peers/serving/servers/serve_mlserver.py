"""MLServer with a custom runtime, as its documentation shows one: adaptive batching, two workers.

Arguments: model file, its name, port; `in-process` turns workers and batching off, which cost more than they bring
where a run takes less than a millisecond.
"""

import asyncio
import logging
import sys

from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import NumpyCodec
from mlserver.settings import ModelParameters
from mlserver.types import InferenceRequest, InferenceResponse
from mlserver.utils import install_uvloop_event_loop
from plain_session import MAX_BATCH, Model


class Runtime(MLModel):
    """ONNX Runtime behind MLServer."""

    async def load(self) -> bool:
        """Load the file of the model's settings."""
        self.model = Model(self.settings.parameters.uri)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Run a batch."""
        outputs = self.model.run(NumpyCodec.decode_input(payload.inputs[0]))
        return InferenceResponse(
            model_name=self.name,
            outputs=[NumpyCodec.encode_output(name, value) for name, value in outputs.items()],
        )


async def main(file: str, name: str, port: int, *, in_process: bool) -> None:
    """Serve until told to stop."""
    settings = Settings(
        host="127.0.0.1",
        grpc_port=port,
        http_port=port + 1,
        metrics_endpoint=None,
        parallel_workers=0 if in_process else 2,
        debug=False,
        grpc_max_message_length=64 << 20,
    )
    model = ModelSettings(
        name=name,
        implementation="serve_mlserver.Runtime",
        max_batch_size=0 if in_process else MAX_BATCH,
        max_batch_time=0.002,
        parameters=ModelParameters(uri=file),
    )
    server = MLServer(settings)
    logging.getLogger("mlserver").setLevel(logging.WARNING)  # it would write a line per request
    await server.start([model])


if __name__ == "__main__":
    install_uvloop_event_loop()  # as its command line does
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), in_process="in-process" in sys.argv[4:]))
