"""Dictionary transforms that a bundle can name, and the tensor functions they wrap."""

from samfed_monai.lazy import attach

__getattr__, __dir__ = attach(
    __name__,
    {
        "EvaluationImages": "views",
        "LabelledViews": "views",
        "LoadRGBd": "load_rgb",
        "LoadSoftMaskd": "load_soft_mask",
        "LoadTargetd": "load_target",
        "PublicTargets": "load_target",
        "NoiseViewd": "noise_view",
        "StrongView": "strong_view",
        "StrongViewd": "strong_view",
        "UnlabelledViews": "views",
        "WeakView": "weak_view",
        "WeakViewd": "weak_view",
        "box_fill": "photometry",
        "colour_matrix": "photometry",
        "cutmix": "batch_mix",
        "gaussian_blur": "photometry",
        "output_to_input": "geometry",
        "warp": "geometry",
    },
)
