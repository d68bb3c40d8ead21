"""DeltaRT: Qwen3.5/3.6 hybrid checkpoints to ONNX and TensorRT engines, and a Python runtime for them."""

__version__ = "0.1.0"
