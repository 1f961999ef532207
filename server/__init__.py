"""Serving: explained ONNX files behind gRPC, and the client that asks them.

Loads grpc, the stubs, `analyzers` and, through `analyzers.runtime`, ONNX Runtime; never torch, onnx or `training`.
The client (`server.client`, `server.command`) loads neither ONNX Runtime nor Pillow.
"""
