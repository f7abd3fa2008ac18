"""The teacher: SAM fitted to the public set, evaluated, and applied to a site's images."""

from .evaluation import TeacherEvaluation, fill_store
from .fit import TeacherFit
from .training import mask_loss
from .views import PlaceInInputd

__all__ = [
    "PlaceInInputd",
    "TeacherEvaluation",
    "TeacherFit",
    "fill_store",
    "mask_loss",
]
