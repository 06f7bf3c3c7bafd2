"""ONNX: networks as files that other programs run."""

from ddpm_core_onnx.export import export_network, export_sampler
from ddpm_core_onnx.ops import OnnxOps

__all__ = ["OnnxOps", "export_network", "export_sampler"]
