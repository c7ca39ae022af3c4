"""Exported networks as a web page, in which ONNX Runtime Web computes."""
