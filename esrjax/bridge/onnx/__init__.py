"""Networks as ONNX graphs, for pictures of any size."""
