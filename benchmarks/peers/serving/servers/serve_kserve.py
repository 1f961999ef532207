"""KServe's Python server: gRPC of the Open Inference Protocol, runs in two threads.

Its batching is a component of the cluster beside the server, so that there is none here. Arguments: model file, its
name, port.
"""

import asyncio
import logging
import sys
from concurrent.futures import ThreadPoolExecutor

from kserve import InferOutput, InferRequest, InferResponse, ModelServer
from kserve import Model as ServedModel
from kserve.logging import configure_logging
from kserve.utils.numpy_codec import from_np_dtype
from plain_session import Model


class Served(ServedModel):
    """ONNX Runtime behind KServe."""

    def __init__(self, name: str, file: str) -> None:
        super().__init__(name)
        self.model = Model(file)
        self.threads = ThreadPoolExecutor(2)
        self.ready = True

    async def predict(self, payload: InferRequest, headers: object = None, response_headers: object = None) -> object:
        """Run one request."""
        images = payload.inputs[0].as_numpy()
        outputs = await asyncio.get_running_loop().run_in_executor(self.threads, self.model.run, images)
        answers = []
        for name, value in outputs.items():
            answer = InferOutput(name=name, shape=list(value.shape), datatype=from_np_dtype(value.dtype))
            answer.set_data_from_numpy(value, binary_data=True)
            answers.append(answer)
        return InferResponse(response_id=payload.id, model_name=self.name, infer_outputs=answers)


def main(file: str, name: str, port: int) -> None:
    """Serve until told to stop."""
    configure_logging()  # before the server does, which would undo the next lines
    for logger in ("kserve", "kserve.trace"):
        logging.getLogger(logger).setLevel(logging.WARNING)  # they would write lines per request
    ModelServer(http_port=port + 1, grpc_port=port, enable_grpc=True, workers=1, access_log_format=None).start(
        [Served(name, file)]
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
