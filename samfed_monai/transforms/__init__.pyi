"""Dictionary transforms that a bundle can name, and the tensor functions they wrap."""

from .loading import (
    InvertResized,
    LoadImageRGBd,
    LoadRGBd,
    LoadSoftMaskd,
    LoadTargetd,
    PublicTargets,
    RenameItemsd,
    ResizeWithLabeld,
)
from .strong_view import RandomViewd, StrongViewd, box_fill, colour_matrix, cutmix, gaussian_blur
from .weak_view import WeakViewd, output_to_input, warp

__all__ = [
    "InvertResized",
    "LoadImageRGBd",
    "LoadRGBd",
    "LoadSoftMaskd",
    "LoadTargetd",
    "PublicTargets",
    "RandomViewd",
    "RenameItemsd",
    "ResizeWithLabeld",
    "StrongViewd",
    "WeakViewd",
    "box_fill",
    "colour_matrix",
    "cutmix",
    "gaussian_blur",
    "output_to_input",
    "warp",
]
