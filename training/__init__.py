"""Learning: interpretable CNNs, decomposed final layers, and their export to explained ONNX files.

Loads torch and onnx, and `analyzers` for the meaning of things; never grpc, `server` or the stubs.
"""
