"""The kernel of Pellucid: what an explained model file means, as pure functions over arrays.

What the server and the client import from here loads numpy, pydantic and Pillow at most. The offline edge (`attach`,
`plain`, `prove`, `graph`, `evaluate`, `runtime`, `progress`, `figure`, `__main__`) may load onnx, onnxruntime, rich and
matplotlib. Nothing here loads torch or grpc.
"""

__version__ = "0.1.0"
