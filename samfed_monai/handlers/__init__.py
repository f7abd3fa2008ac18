"""One Ignite handler per file: brings the unlabelled batch, adds a loss term, keeps a model, or writes a record."""

from samfed_monai.lazy import attach

__getattr__, __dir__ = attach(
    __name__,
    {
        "BatchGuide": "batch_guide",
        "BestWeightsSaver": "best_weights_saver",
        "ConfidenceTerm": "confidence_term",
        "DivergenceGuard": "divergence_guard",
        "EmaGuide": "ema_guide",
        "EndlessSampler": "endless_sampler",
        "GlobalDistillationTerm": "global_distillation_term",
        "GlobalGuide": "global_guide",
        "HandlerGroup": "handler_group",
        "Guide": "guide",
        "Guidance": "guidance",
        "LEARNING_RATE_SCHEDULES": "round_learning_rate",
        "LsslTerm": "lssl_term",
        "PseudoLabelTerm": "pseudo_label_term",
        "RoundLearningRate": "round_learning_rate",
        "SamDistillationTerm": "sam_distillation_term",
        "ScoreHandler": "score_handler",
        "SeedHandler": "seed_handler",
        "SiteEvaluation": "site_evaluation",
        "Term": "term",
        "TermLogger": "term_logger",
        "TermTable": "term_table",
        "UnlabelledStream": "unlabelled_stream",
        "round_of": "rounds",
        "site_records": "records_of_site",
        "steps_per_round": "local_steps",
    },
)
