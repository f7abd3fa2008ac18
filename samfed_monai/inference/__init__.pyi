"""Masks for new images; every name is imported at first use."""

from .assessment import Assessment
from .export import FORMATS, Measured, OnnxNetwork, export_network
from .forms import MaskForms
from .model import Kind, TrainedModel
from .predictor import Predictor
from .segment import segment

__all__ = [
    "FORMATS",
    "Assessment",
    "Kind",
    "MaskForms",
    "Measured",
    "OnnxNetwork",
    "Predictor",
    "TrainedModel",
    "export_network",
    "segment",
]
