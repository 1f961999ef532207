"""Serving: explained ONNX files behind gRPC, and the client that asks them.

Loads grpc, the stubs, `analyzers` and, through `analyzers.runtime`, ONNX Runtime; never torch, onnx or `training`.
The clients (the list `CLIENT` in `tests/test_architecture.py`) load neither ONNX Runtime nor Pillow.
"""
