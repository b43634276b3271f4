"""Interop: parity with PyTorch, checkpoint conversion, export to ONNX and StableHLO."""
