"""The teacher: SAM fitted to the public set, evaluated, and applied to a site's images."""

from .exam import Exam, fill_store
from .fit import TeacherFit
from .training import mask_loss
from .views import PlaceInInputd

__all__ = [
    "Exam",
    "PlaceInInputd",
    "TeacherFit",
    "fill_store",
    "mask_loss",
]
