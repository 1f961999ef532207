"""Ray Serve: its gRPC proxy with the same protocol, two replicas of one core each, batching.

Needs the generated code of the protocol, `inference.open_inference_pb2`, on the path. Arguments: model file, its name,
port.
"""

import sys
import time

import numpy as np
import ray
from inference import open_inference_pb2 as oip
from plain_session import MAX_BATCH, Model
from ray import serve

TYPES = {"float32": "FP32", "int64": "INT64", "int32": "INT32", "bool": "BOOL", "float64": "FP64"}


@serve.deployment(num_replicas=2, max_ongoing_requests=64, ray_actor_options={"num_cpus": 1})
class Served:
    """ONNX Runtime behind Ray Serve."""

    def __init__(self, name: str, file: str) -> None:
        self.name = name
        self.model = Model(file)

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=0.0)
    async def run(self, images: list[np.ndarray]) -> list[dict[str, np.ndarray]]:
        """Run what has come together."""
        outputs = self.model.run(np.concatenate(images))
        return [{name: value[row : row + 1] for name, value in outputs.items()} for row in range(len(images))]

    async def ModelInfer(self, request: oip.ModelInferRequest) -> oip.ModelInferResponse:  # noqa: N802 (the protocol's)
        """Answer one request."""
        images = np.frombuffer(request.raw_input_contents[0], np.float32).reshape(request.inputs[0].shape)
        outputs = await self.run(images)
        return oip.ModelInferResponse(
            model_name=self.name,
            outputs=[
                oip.ModelInferResponse.InferOutputTensor(name=name, datatype=TYPES[str(value.dtype)], shape=value.shape)
                for name, value in outputs.items()
            ],
            raw_output_contents=[value.tobytes() for value in outputs.values()],
        )


def main(file: str, name: str, port: int) -> None:
    """Serve until told to stop."""
    ray.init(num_cpus=3, include_dashboard=False, configure_logging=False)
    adds = ["inference.open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server"]
    serve.start(
        http_options={"host": "127.0.0.1", "port": port + 1, "location": "HeadOnly"},
        grpc_options={"port": port, "grpc_servicer_functions": adds},
    )
    serve.run(Served.bind(name, file), route_prefix="/")
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
