"""Imports torchvision where its compiled operators are missing or do not load."""

from __future__ import annotations

import importlib
import sys
from typing import Any

# torchvision/_meta_registrations.py registers fake kernels for these two without checking that they exist
_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_library: Any = None  # torch forgets the schemas when their Library object is collected


def declare_torchvision_operators() -> bool:
    """Imports torchvision, and declares the schemas of ``nms`` and ``qnms`` if its own are missing.

    A torchvision whose binary part is missing or built for another torch fails at import with "operator
    torchvision::nms does not exist". segment-anything, segmentation_models_pytorch and timm import torchvision, but
    none of their networks used here calls a compiled operator. The schemas are therefore declared without an
    implementation; calling one still raises. If torchvision's own operators exist, nothing is declared. Call this
    before importing any of the three packages; calling it twice costs nothing.

    Returns:
        Whether the schemas were declared here.
    """
    global _library
    if _library is not None or "torchvision.ops" in sys.modules:
        return _library is not None
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        import torch

        _library = torch.library.Library("torchvision", "DEF")
        for schema in _SCHEMAS:
            _library.define(schema)
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]  # the half-imported ones
        importlib.import_module("torchvision")
    return _library is not None
