"""What tables call each variant and in which order, what it is in one line, and which of them are of a kind."""

from __future__ import annotations

TEACHER, OWN_TEACHER = "teacher", "own_teacher"

VARIANTS = {
    "dp_only": "Public set only",
    "local_only": "Every site alone",
    TEACHER: "SAM teacher alone",
    OWN_TEACHER: "SAM teacher alone, each site's own",
    "no_sam": "Federated, no SAM",
    "fedprox": "FedProx",
    "fedbn": "FedBN",
    "fedper": "FedPer",
    "fedrep": "FedRep",
    "ditto": "Ditto",
    "fedicra": "FedICRA's adaptive aggregation",
    "apple": "APPLE",
    "fca": "FCA, our reading",
    "mean_teacher": "Mean Teacher",
    "unimatch": "UniMatch",
    "semifl": "SemiFL",
    "no_agreement": "SAM-Fed without the per-image factor g",
    "confidence_selection": "SAM-Fed, labels chosen by confidence",
    "no_sam_kd": "SAM-Fed without SAM distillation",
    "no_global_kd": "SAM-Fed without global distillation",
    "unadapted_sam": "SAM-Fed with unadapted SAM",
    "hssf_compat": "HSSF's local step, its code's conventions",
    "samfed": "SAM-Fed",
    "fedmd": "FedMD",
    "fedproto": "FedProto",
    "hssf": "HSSF, ours without SAM",
    "heterogeneous": "SAM-Fed, heterogeneous",
    "oracle": "Oracle: sites have labels",
    "zero_shot": "SAM as it comes",
    "supervised": "Small network, own labels",
    "local_sam": "Local SAM",
    "fedsam": "FedSAM",
    "full_sam": "Full fine-tuning of SAM",
    "pfedsam": "pFedSAM",
    "pfedsam_joint": "pFedSAM in one stage",
}
"""Variants in the order of every table, with their titles."""

NOTES = {
    "dp_only": "trained on the labelled public set alone; the row to beat",
    "local_only": "nothing is exchanged: every site's own network, its own confident labels, the steps of hssf",
    TEACHER: "the frozen SAM that the students learn from, on the same test images",
    OWN_TEACHER: "the same after every site trained its copy further on its own unlabelled images",
    "no_sam": "federated averaging on the student's own confident labels (FixMatch)",
    "fedprox": "no_sam, held near the round's global weights",
    "fedbn": "no_sam; every site's normalisation layers are its own",
    "fedper": "no_sam; every site's last layer is its own",
    "fedrep": "fedper, the last layer trained before the rest",
    "zero_shot": "SAM without prompt and without training",
    "supervised": "federated averaging on labels of the sites' own images",
    "local_sam": "LoRA and decoder of SAM at every site alone, on its own labels",
    "fedsam": "LoRA and decoder of SAM averaged, on the sites' own labels",
    "full_sam": "all of SAM averaged, on the sites' own labels",
    "pfedsam": "LoRA of SAM averaged; experts and decoder stay at their site; own labels",
    "pfedsam_joint": "pfedsam, all trained in every step: no stages, and no distillation between them",
    "ditto": "no_sam; every site has a network of its own, held near the global one",
    "fedicra": "no_sam; every site mixes the upper layers from its own and the global ones",
    "apple": "no_sam; every site learns how much to take from each other's core model",
    "fca": "no_sam; averaged where sites' updates agree, each site's own where they do not",
    "mean_teacher": "the strong view follows a moving average of the student",
    "unimatch": "two strong views and a feature stream against the student's confident labels",
    "semifl": "sites learn from the global model's labels alone, the server from the public set",
    "no_agreement": "ablation: SAM's label everywhere, and its distillation without the factor g of each image",
    "confidence_selection": "labels chosen and weighed by agreement and confidence, as summaries of the paper put it",
    "no_sam_kd": "ablation: SAM's labels are used, its probabilities are not distilled",
    "no_global_kd": "ablation: no distillation from the round's global network",
    "unadapted_sam": "ablation: SAM as it comes",
    "samfed": "the method, one architecture, weights are averaged",
    "fedmd": "every site learns the mean of all sites' predictions on the public set; otherwise as hssf",
    "fedproto": "class prototypes travel instead of weights",
    "hssf": "regularity condensation and fusion without SAM, on our training",
    "hssf_compat": "hssf with the networks, losses, gates, views, schedule and HD95 of HSSF's code",
    "heterogeneous": "the method where sites' networks differ: soft masks on the public set travel",
    "oracle": "an upper bound that no hospital has: true labels of the sites' own images",
}
"""What each variant is, in one line below the table."""

HETEROGENEOUS = frozenset({"local_only", "fedmd", "fedproto", "hssf", "hssf_compat", "heterogeneous"})
"""Variants in which every site keeps a network of its own."""

OWN_LABELS = frozenset({"zero_shot", "supervised", "local_sam", "fedsam", "full_sam", "pfedsam", "pfedsam_joint"})
"""Variants in which sites learn from labels of their own images, and SAM as it comes, for comparison with these;
a run says it itself, in ``results.json -> own_labels``: these are for runs of before it did."""

ABLATIONS = frozenset({"no_agreement", "confidence_selection", "no_sam_kd", "no_global_kd", "unadapted_sam"})
"""Variants of SAM-Fed itself: no rivals of it."""


def title_of(variant: str) -> str:
    """The title of a variant; an unknown one is its own title."""
    return VARIANTS.get(variant, variant)


def place_of(variant: str) -> int:
    """Where tables show a variant; unknown ones come last."""
    return list(VARIANTS).index(variant) if variant in VARIANTS else len(VARIANTS)
