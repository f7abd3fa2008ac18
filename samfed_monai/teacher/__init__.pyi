"""The teacher: SAM fitted to the public set, examined, and put to work on a site's images."""

from .augmentation import Augmentation
from .exam import Exam, evaluation_records, public_hash
from .fit import TeacherFit
from .inference import fill_store
from .self_training import SelfTraining

__all__ = [
    "Augmentation",
    "Exam",
    "SelfTraining",
    "TeacherFit",
    "evaluation_records",
    "fill_store",
    "public_hash",
]
