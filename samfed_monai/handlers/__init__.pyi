"""Ignite handlers: guides, terms, the unlabelled stream, rounds, records, scores, models and masks."""

from .alternating_parts import AlternatingParts
from .confidence_term import ConfidenceTerm
from .decoupled_stages import DecoupledStages
from .evaluation import ScoreHandler, SiteEvaluation
from .expert_usage import ExpertUsage
from .guide import BatchGuide, EmaGuide, GlobalGuide, Guidance, Guide
from .handler_group import HandlerGroup
from .load_balance_term import LoadBalanceTerm
from .lssl_term import LsslTerm
from .mixup_term import MixUpTerm
from .model_loader import BestWeightsSaver
from .mutual_distillation_term import MutualDistillationTerm
from .prototype_term import PrototypeTerm
from .proximal_term import ProximalTerm
from .public_distillation_term import PublicDistillationTerm
from .public_images import PublicPhase, PublicPredictor
from .records import TermLogger, TermTable
from .rounds import LEARNING_RATE_SCHEDULES, DivergenceGuard, RoundLearningRate, SeedHandler, round_of, steps_per_round
from .term import SCHEDULES, AgreedTerm, SiteReliability, SiteTrust, Term, constant, gaussian_ramp, linear
from .terms import AnchoredTerm, ConsistencyTerm, GlobalDistillationTerm, PseudoLabelTerm, SamDistillationTerm
from .unimatch_term import UniMatchTerm
from .unlabelled_stream import EndlessSampler, SupervisedWeight, UnlabelledStream

__all__ = [
    "LEARNING_RATE_SCHEDULES",
    "SCHEDULES",
    "AgreedTerm",
    "AlternatingParts",
    "AnchoredTerm",
    "BatchGuide",
    "BestWeightsSaver",
    "ConfidenceTerm",
    "ConsistencyTerm",
    "DecoupledStages",
    "DivergenceGuard",
    "EmaGuide",
    "EndlessSampler",
    "ExpertUsage",
    "GlobalDistillationTerm",
    "GlobalGuide",
    "Guidance",
    "Guide",
    "HandlerGroup",
    "LoadBalanceTerm",
    "LsslTerm",
    "MixUpTerm",
    "MutualDistillationTerm",
    "PrototypeTerm",
    "ProximalTerm",
    "PseudoLabelTerm",
    "PublicDistillationTerm",
    "PublicPhase",
    "PublicPredictor",
    "RoundLearningRate",
    "SamDistillationTerm",
    "ScoreHandler",
    "SeedHandler",
    "SiteEvaluation",
    "SiteReliability",
    "SiteTrust",
    "SupervisedWeight",
    "Term",
    "TermLogger",
    "TermTable",
    "UniMatchTerm",
    "UnlabelledStream",
    "constant",
    "gaussian_ramp",
    "linear",
    "round_of",
    "steps_per_round",
]
