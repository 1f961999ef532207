"""NVIDIA's Triton through PyTriton: two instances of a Python model, dynamic batching without delay.

Arguments: model file, its name, port.
"""

import sys

import numpy as np
from plain_session import MAX_BATCH, Model
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig


def main(file: str, name: str, port: int) -> None:
    """Serve until told to stop."""
    models = [Model(file), Model(file)]

    def runner(model: Model):  # noqa: ANN202 (PyTriton's decorator decides)
        @batch
        def infer(image: np.ndarray) -> dict[str, np.ndarray]:
            return model.run(image)

        return infer

    outputs = [
        Tensor(name=output, dtype=models[0].types[output], shape=shape) for output, shape in models[0].shapes.items()
    ]
    config = TritonConfig(
        grpc_address="127.0.0.1",
        http_address="127.0.0.1",
        grpc_port=port,
        http_port=port + 1,
        allow_metrics=False,
        log_verbose=0,
    )
    with Triton(config=config) as triton:
        triton.bind(
            model_name=name,
            infer_func=[runner(model) for model in models],
            inputs=[Tensor(name="image", dtype=np.float32, shape=models[0].input_shape)],
            outputs=outputs,
            config=ModelConfig(max_batch_size=MAX_BATCH, batcher=DynamicBatcher(max_queue_delay_microseconds=0)),
            strict=False,
        )
        triton.serve()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
