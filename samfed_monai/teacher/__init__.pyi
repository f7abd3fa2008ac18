"""The teacher: SAM fitted to the public set, evaluated, and applied to a site's images."""

from .exam import Exam, evaluation_records, fill_store, public_hash
from .fit import TeacherFit
from .training import mask_loss
from .views import PlaceInInputd

__all__ = [
    "Exam",
    "PlaceInInputd",
    "TeacherFit",
    "evaluation_records",
    "fill_store",
    "mask_loss",
    "public_hash",
]
