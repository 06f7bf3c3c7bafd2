"""The ONNX backend: networks and samplers as files of ONNX, and the UNet by onnxruntime."""

from ddpm_core_onnx.backend import ONNX
from ddpm_core_onnx.export import export_network, export_sampler
from ddpm_core_onnx.ops import OnnxOps

__all__ = ["ONNX", "OnnxOps", "export_network", "export_sampler"]
