"""Dictionary transforms that a bundle can name, and the tensor functions they wrap."""

from .loading import LoadRGBd, LoadSoftMaskd, LoadTargetd, PublicTargets
from .strong_view import StrongView, StrongViewd, box_fill, colour_matrix, cutmix, gaussian_blur
from .views import EvaluationImages, LabelledViews, UnlabelledViews
from .weak_view import WeakView, WeakViewd, output_to_input, warp

__all__ = [
    "EvaluationImages",
    "LabelledViews",
    "LoadRGBd",
    "LoadSoftMaskd",
    "LoadTargetd",
    "PublicTargets",
    "StrongView",
    "StrongViewd",
    "UnlabelledViews",
    "WeakView",
    "WeakViewd",
    "box_fill",
    "colour_matrix",
    "cutmix",
    "gaussian_blur",
    "output_to_input",
    "warp",
]
