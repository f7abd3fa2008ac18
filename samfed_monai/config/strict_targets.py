"""The components that a strict bundle may name: this package's, and of others those that compute.

What loads, fetches, compiles, writes or starts something is not among the latter.
"""

from __future__ import annotations

import inspect
from typing import Any

from samfed_monai.config.targets import ALLOWED_PREFIXES, allowed_prefixes, resolve_target
from samfed_monai.errors import Problem, Refused

CLASSES = (
    *(
        f"samfed_monai.{room}."
        for room in ("federation", "handlers", "losses", "metrics", "networks", "parts", "reports", "transforms")
    ),
    *("monai.data.dataset.Dataset", "monai.data.dataset.CacheDataset", "monai.data.dataloader.DataLoader"),
    *("monai.engines.trainer.", "monai.engines.evaluator."),
    *("monai.inferers.", "monai.losses.", "monai.metrics.", "monai.optimizers."),
    *("monai.networks.blocks.", "monai.networks.layers.", "monai.networks.nets."),
    *(f"monai.handlers.{name}_handler." for name in ("stats", "validation", "lr_schedule", "earlystop")),
    *(f"monai.transforms.{room}." for room in ("compose", "croppad", "intensity", "post", "spatial", "utility")),
    *("torch.nn.modules.", "torch.optim."),
    *("ignite.handlers.tqdm_logger.", "ignite.metrics."),
)
"""Where the classes are defined, which need not be the path that a bundle spells (``monai.data.DataLoader`` is defined
in ``monai.data.dataloader``). A name without a final dot is one class."""

DENIED = (
    *("ignite.metrics.gan.", "monai.losses.perceptual.", "monai.networks.layers.gmm."),
    *("monai.inferers.inferer.PatchInferer", "monai.inferers.merger.ZarrAvgMerger"),
    *("monai.networks.blocks.fcn.FCN", "monai.networks.blocks.fcn.MCFCN"),
    *("monai.networks.blocks.text_embedding.TextEncoder", "monai.networks.nets.ahnet.AHNet"),
    *("monai.networks.nets.cell_sam_wrapper.CellSamWrapper", "monai.networks.nets.flexible_unet.FlexibleUNet"),
    *(f"monai.networks.nets.densenet.DenseNet{depth}" for depth in (121, 169, 201, 264)),
    *(f"monai.networks.nets.efficientnet.EfficientNet{name}" for name in ("BN", "BNFeatures", "Encoder")),
    *("monai.networks.nets.hovernet.HoVerNet", "monai.networks.nets.milmodel.MILModel"),
    *(f"monai.networks.nets.resnet.ResNet{name}" for name in ("Encoder", "Features")),
    *(f"monai.networks.nets.senet.SE{name}" for name in ("Net154", "ResNet50", "ResNet101", "ResNet152")),
    *(f"monai.networks.nets.senet.SEResNext{depth}" for depth in (50, 101)),
    *("monai.networks.nets.torchvision_fc.TorchVisionFCModel", "monai.networks.nets.transchex."),
    "monai.transforms.post.dictionary.SaveClassificationd",
)
"""Of :data:`CLASSES`, those whose constructor fetches, loads, compiles or writes: pretrained weights, torch.hub, C++,
a class named by a string, a store on disk."""

FUNCTIONS = frozenset(
    {
        "samfed_monai.config.exit_codes.run_job",
        "samfed_monai.config.require.require_checked",
        "samfed_monai.data.image_folder.image_folder",
        "samfed_monai.handlers.local_steps.steps_per_round",
        "samfed_monai.networks.catalogue.client_network",
        *(f"samfed_monai.parts.wiring.{name}" for name in ("best_device", "model_path", "on_device")),
        *(f"samfed_monai.parts.wiring.{name}" for name in ("parameters_of", "part_of")),
        "monai.data.meta_obj.set_track_meta",
    }
)
"""Functions one by one: what a function does cannot be seen from where it is defined."""

_MEND = "name a component that computes, or start the command with its package in SAMFED_ALLOW if you trust it"


def strict_target(target: Any, where: str) -> list[Problem]:
    """Why a strict bundle may not name ``target``; empty when it may.

    Packages that whoever started the command added in ``SAMFED_ALLOW`` count as allowed here, too.

    Args:
        target: what stands at ``_target_``.
        where: file and id, for the message.
    """
    try:
        found = resolve_target(target, where)
    except Refused as refused:
        return refused.problems
    name = f"{getattr(found, '__module__', '')}.{getattr(found, '__qualname__', '')}"
    added = tuple(prefix for prefix in allowed_prefixes() if prefix not in ALLOWED_PREFIXES)
    if name in FUNCTIONS or name.startswith(added) or (inspect.isclass(found) and _listed(name)):
        return []
    real = "" if name == target else f" (really {name!r})"
    expected = "a component of the strict allow-list (samfed_monai.config.strict_targets)"
    return [Problem(where, found=f"{target!r}{real}", expected=expected, mend=_MEND)]


def _listed(name: str) -> bool:
    return _one_of(name, CLASSES) and not _one_of(name, DENIED)


def _one_of(name: str, entries: tuple[str, ...]) -> bool:
    return any(name.startswith(entry) if entry.endswith(".") else name == entry for entry in entries)
