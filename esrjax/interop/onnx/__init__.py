"""Conversion of networks to ONNX graphs for images of any size, and ONNX Runtime sessions."""
