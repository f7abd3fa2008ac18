"""Client networks, the SAM teacher, and what fits and applies it; every name is imported at first use."""

from samfed_monai.lazy import attach

__getattr__, __dir__ = attach(
    __name__,
    {
        "CLIENT_NETWORKS": "catalogue",
        "client_network": "catalogue",
        "HssfNetwork": "hssf",
        "HssfOutputs": "hssf",
        "hssf_outputs": "hssf",
        "KeyPatterns": "key_patterns",
        "KeySplit": "key_patterns",
        "network_split": "key_patterns",
        "split_keys": "key_patterns",
        "SamNetwork": "sam.network",
        "SamPath": "sam.paths",
        "sam_outputs": "sam.paths",
        "AutocastInferer": "autocast",
        "bf16_gains": "autocast",
        "declare_torchvision_operators": "torchvision_ops",
        "fill_store": "teacher.soft_masks",
        "Augmentation": "sam.augment",
        "TeacherFit": "teacher.fit",
        "SelfTraining": "teacher.self_training",
        "Exam": "teacher.exam",
        "evaluation_records": "teacher.pairs",
        "public_hash": "teacher.pairs",
        "Teacher": "sam.teacher",
        "build_sam": "sam.build",
        "SAM_BUILDERS": "sam.build",
        "apply_lora": "sam.lora",
        "find_checkpoint": "weights.install",
        "install_weights": "weights.install",
        "weights_folder": "weights.install",
    },
)
