"""Masks for new images; every name is imported at first use."""

from .assessment import Assessment
from .export import BundleSource, Format, Int8, Measured, export_network
from .model import Kind, TrainedModel
from .onnx_network import OnnxNetwork
from .predictor import Predictor
from .segment import MaskForms, segment

__all__ = [
    "Assessment",
    "BundleSource",
    "Format",
    "Int8",
    "Kind",
    "MaskForms",
    "Measured",
    "OnnxNetwork",
    "Predictor",
    "TrainedModel",
    "export_network",
    "segment",
]
