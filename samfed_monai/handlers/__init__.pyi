"""Ignite handlers: guides, terms, the unlabelled stream, rounds, records, scores, models and masks."""

from .evaluation import ScoreHandler, SiteEvaluation
from .guide import BatchGuide, EmaGuide, GlobalGuide, Guidance, Guide
from .handler_group import HandlerGroup
from .model_loader import BestWeightsSaver
from .public_images import PublicPhase, PublicPredictor
from .records import BatchBar, TermLogger
from .rounds import LEARNING_RATE_SCHEDULES, DivergenceGuard, RoundLearningRate, SeedHandler, round_of, steps_per_round
from .term import (
    SCHEDULES,
    AgreedTerm,
    GlobalDistillationTerm,
    PseudoLabelTerm,
    SamDistillationTerm,
    Term,
    constant,
    gaussian_ramp,
)
from .unlabelled_stream import EndlessSampler, SupervisedWeight, UnlabelledStream

__all__ = [
    "LEARNING_RATE_SCHEDULES",
    "SCHEDULES",
    "AgreedTerm",
    "BatchBar",
    "BatchGuide",
    "BestWeightsSaver",
    "DivergenceGuard",
    "EmaGuide",
    "EndlessSampler",
    "GlobalDistillationTerm",
    "GlobalGuide",
    "Guidance",
    "Guide",
    "HandlerGroup",
    "PseudoLabelTerm",
    "PublicPhase",
    "PublicPredictor",
    "RoundLearningRate",
    "SamDistillationTerm",
    "ScoreHandler",
    "SeedHandler",
    "SiteEvaluation",
    "SupervisedWeight",
    "Term",
    "TermLogger",
    "UnlabelledStream",
    "constant",
    "gaussian_ramp",
    "round_of",
    "steps_per_round",
]
