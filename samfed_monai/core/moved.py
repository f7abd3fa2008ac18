"""Names of version 0.1 that have moved: still found for one version, with a warning that has the new name."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from samfed_monai.core.io import canonical_hash

MOVED = {
    "samfed_monai.federation": {
        "samfed_monai.federation": "Release>Filter SiteNode>FederatedSite SiteWorker>ClientAlgoExecutor "
        "from_exchange>from_exchange_object to_exchange>to_exchange_object",
        "samfed_monai.methods.apple": "Apple AppleSharing",
        "samfed_monai.methods.ditto": "DittoSharing",
        "samfed_monai.methods.fca": "ClientTailored",
        "samfed_monai.methods.fedavg": "FedAvg PersonalFedAvg",
        "samfed_monai.methods.fedala": "AdaptiveMixing",
        "samfed_monai.methods.fedmd": "Consensus",
        "samfed_monai.methods.fedproto": "PrototypeSharing Prototypes",
        "samfed_monai.methods.heterogeneous": "CondensationFusion PublicMaskSharing",
        "samfed_monai.methods.local_only": "LocalOnly NothingShared Untrained",
        "samfed_monai.methods.semifl": "ServerTuned",
        "samfed_monai.methods.version_0_1": "AveragedFedAvg",
        "samfed_monai.protocol": "Envelope>Message Failure Inbox Kind MessageRefused Server Sharing Strategy Task "
        "Traffic Transport UpdateGuard from_bytes scrub to_bytes wire_size",
    },
    "samfed_monai.federation.privacy": {
        "samfed_monai.federation.privacy": "Release>ReleaseFilter",
    },
    "samfed_monai.handlers": {
        "samfed_monai.methods.ditto": "AnchoredTerm",
        "samfed_monai.methods.fedproto": "PrototypeTerm",
        "samfed_monai.methods.fedprox": "ProximalTerm",
        "samfed_monai.methods.fedrep": "AlternatingParts",
        "samfed_monai.methods.heterogeneous": "PublicDistillationTerm",
        "samfed_monai.methods.hssf": "ConfidenceTerm LsslTerm",
        "samfed_monai.methods.mean_teacher": "ConsistencyTerm",
        "samfed_monai.methods.pfedsam": "DecoupledStages ExpertUsage LoadBalanceTerm MutualDistillationTerm",
        "samfed_monai.methods.semifl": "MixUpTerm",
        "samfed_monai.methods.unimatch": "UniMatchTerm",
        "samfed_monai.bundle": "site_records",
    },
    "samfed_monai.losses": {
        "samfed_monai.handlers": "SCHEDULES constant gaussian_ramp linear",
        "samfed_monai.methods.fedproto": "prototype_loss",
        "samfed_monai.methods.heterogeneous": "choose most_reliable where_better",
        "samfed_monai.methods.hssf": "LsslLabels confidence_loss dropout_consistency gated_loss lssl_labels",
        "samfed_monai.methods.mean_teacher": "CONSISTENCY_MEASURES consistency_kl consistency_mse",
        "samfed_monai.methods.pfedsam": "load_balance",
    },
    "samfed_monai.networks": {
        "samfed_monai.methods.hssf": "HssfNetwork HssfOutputs hssf_outputs",
        "samfed_monai.teacher": "Exam SelfTraining TeacherFit evaluation_records fill_store public_hash",
    },
    "samfed_monai.parts": {
        "samfed_monai.bundle": "PublicSet SiteAlone SiteImages SplitDataset best_device model_path on_device "
        "parameters_of part_of site_records",
    },
    "samfed_monai.protocol": {
        "samfed_monai.protocol": "Envelope>Message",
    },
    "samfed_monai.protocol.message": {
        "samfed_monai.protocol": "Envelope>Message",
    },
    "samfed_monai.transforms": {
        "samfed_monai.methods.hssf": "NoiseViewd",
    },
}
"""Package to where names of it are now, ``old>new`` where the name is another one, too. Bundles that were copied out of
version 0.1 name these as ``_target_``."""


REPLACED = {
    "samfed_monai.networks": {
        "samfed_monai.teacher.version_0_1": "Augmentation",
    },
    "samfed_monai.transforms": {
        "samfed_monai.transforms.version_0_1": "EvaluationImages LabelledViews UnlabelledViews",
    },
}
"""Package to where names are kept that have no successor of their own: a list of named transforms does their work."""


def _places(table: Mapping[str, str]) -> dict[str, str]:
    """Old name to the path of the new one."""
    pairs = [(now, *name.split(">")) for now, names in table.items() for name in names.split()]
    return {old: f"{now}.{(new or [old])[0]}" for now, old, *new in pairs}


_FIRST = {now: f"{package}.{old}" for package, table in MOVED.items() for old, now in _places(table).items()} | {
    "samfed_monai.methods.fedicra.AdaptiveMixing": "samfed_monai.federation.AdaptiveMixing",  # before fedala
    **dict.fromkeys(
        ("samfed_monai.bundle.site_records", "samfed_monai.parts.site_records"), "samfed_monai.handlers.site_records"
    ),
}


def _is_target(key: str) -> bool:
    return key.rpartition("#")[2] == "_target_"  # a variant may write it as part of an id


_HOOKS: dict[str, Any] = {
    **dict.fromkeys(("sharing", "targets", "mixed_networks", "server_network", "public_steps", "public_images")),
    **{"personal": [], "sam_network": None, "warm_start": None},
}
"""What ``train.json`` of version 0.1 spelt out for variants to fill; where it is absent these still count."""

_BOTH = ["image", "label"]
_STEPS: dict[str, Any] = {
    "read": {"_target_": "samfed_monai.transforms.LoadRGBd", "keys": _BOTH},
    "resize": {
        **{"_target_": "samfed_monai.transforms.ResizeWithLabeld", "keys": _BOTH},
        **{"spatial_size": ["@image_size", "@image_size"], "mode": ["area", "@label_resize"]},
    },
    "binary_label": {
        **{"_target_": "monai.transforms.AsDiscreted", "keys": "label"},
        **{"allow_missing_keys": True, "threshold": 0.5},
    },
    "soft_mask": {
        **{"_target_": "samfed_monai.transforms.LoadSoftMaskd", "store": "@store_dir"},
        **{"teacher_sha256": "@teacher_sha256", "masks_for": "@guides#sam"},
    },
}
_READ = ["@read", "@resize", "@binary_label"]
_HOLDER = {"_target_": "samfed_monai.transforms.PublicTargets"}
_LISTS: dict[str, list[Any]] = {
    "train": [
        *(*_READ, {"_target_": "samfed_monai.transforms.LoadTargetd", "targets": "@targets"}),
        *("@weak_view", "@strong_view"),
        {"_target_": "samfed_monai.transforms.RenameItemsd", "keys": "image_strong", "names": "image"},
    ],
    "unlabelled": [*_READ, "@soft_mask", "@weak_view", "@strong_view"],
    "validate": _READ,
}
_SIZES = {"image_size": "@image_size", "label_resize": "@label_resize"}
_VIEWS = {**_SIZES, "weak": "@weak_view", "strong": "@strong_view"}
_MASKS = {"store_dir": "@store_dir", "teacher_sha256": "@teacher_sha256", "masks_for": "@guides#sam"}
_OBJECTS: dict[str, dict[str, Any]] = {
    "train": {"_target_": "samfed_monai.transforms.LabelledViews", **_VIEWS, "targets": "@targets"},
    "unlabelled": {"_target_": "samfed_monai.transforms.UnlabelledViews", **_VIEWS, **_MASKS},
    "validate": {"_target_": "samfed_monai.transforms.EvaluationImages", **_SIZES},
}
"""The objects of version 0.1 that did what the lists of today's bundles say, of whose steps none has other numbers."""


_ONE_CLASS = ("classes", ["foreground"])
"""The knob as the bundles ship it: what there was before there were several classes."""
_OF_CLASSES = {"classes": "@classes"}
_SINCE: dict[str, dict[str, Any]] = {
    "samfed_monai.methods.fedmd.Consensus": {"average": "probabilities", "exchange": "@exchange"},
    "samfed_monai.networks.client_network": _OF_CLASSES,
    "samfed_monai.handlers.ScoreHandler": _OF_CLASSES,
    "samfed_monai.parts.SiteImages": _OF_CLASSES,
    "samfed_monai.handlers.mask_writer.MaskWriter": _OF_CLASSES,
}
"""Arguments that a component has taken on, each with the value that does what was done before there was one."""


def first_spelling(content: Any) -> Any:
    """JSON content as version 0.1 spelt it: every ``_target_`` (or ``a#b#_target_``) that has moved, without arguments
    that came later and change nothing, and with what stood in every ``train.json``.

    Hashes are taken of this, so that a bundle of that version counts as the same as today's, and its runs go on.
    """
    if isinstance(content, dict):
        return {
            key: _FIRST.get(value, value) if _is_target(key) and isinstance(value, str) else first_spelling(value)
            for key, value in _with_hooks(_with_objects(_without_recipe(_without_later(content)))).items()
        }
    return [first_spelling(value) for value in content] if isinstance(content, list) else content


def _without_later(content: dict[str, Any]) -> dict[str, Any]:
    """A component without arguments of :data:`_SINCE` that do what was done before them."""
    target = content.get("_target_")
    later = _SINCE.get(target, {}) if isinstance(target, str) else {}
    return {key: value for key, value in content.items() if key not in later or value != later[key]}


def _with_hooks(content: dict[str, Any]) -> dict[str, Any]:
    """A merged ``train.json``, or the part of it that its trainer reaches, with the ids that need not be there."""
    train = content.get("train")
    if not (isinstance(train, dict) and "trainer" in train and "images" in content):
        return content
    hooks = _HOOKS if "validate" in content else {"targets": None}
    return {name: value for name, value in {**hooks, **content}.items() if (name, value) != _ONE_CLASS}


def _with_objects(content: dict[str, Any]) -> dict[str, Any]:
    """A ``train.json`` with the objects in place of the lists; as it is, where a step has numbers of its own."""
    if any(content.get(name, step) != step for name, step in _STEPS.items()):
        return content
    compose = {name: {"_target_": "monai.transforms.Compose", "transforms": steps} for name, steps in _LISTS.items()}
    parts = {name: part for name in compose if isinstance(part := content.get(name), dict)}
    listed = {name: part for name, part in parts.items() if part.get("preprocessing") == compose[name]}
    if not listed:
        return content
    objects = {name: {**part, "preprocessing": _OBJECTS[name]} for name, part in listed.items()}
    before = {name: value for name, value in content.items() if name not in _STEPS} | objects
    sharing = content.get("sharing")
    if content.get("targets") == _HOLDER and not (isinstance(sharing, dict) and sharing.get("targets") == "@targets"):
        before["targets"] = None
    return before


_RECIPE: dict[str, Any] = {
    "loss": {"_target_": "samfed_monai.teacher.mask_loss", "_mode_": "callable"},
    "optimizer": {"_target_": "torch.optim.AdamW", "_mode_": "callable", "weight_decay": 0.1, "fused": True},
    "train": {
        "handlers": [],
        "trainer": {
            **{"_target_": "monai.engines.SupervisedTrainer", "_mode_": "callable"},
            **{"loss_function": "@loss", "optimizer": "@optimizer", "train_handlers": "@train#handlers"},
            **{"decollate": False, "optim_set_to_none": True},
        },
    },
}
"""How ``teacher.json`` has MONAI's trainer made; where it says none of it, a teacher is fitted in the same way."""


def _without_recipe(content: dict[str, Any]) -> dict[str, Any]:
    """A ``teacher.json`` without the ids that version 0.1 had not; as it is, where one of them says something else."""
    fit = content.get("fit")
    if not (_RECIPE.items() <= content.items() and isinstance(fit, dict) and fit.get("trainer") == "@train#trainer"):
        return content
    rest = {name: value for name, value in content.items() if name not in _RECIPE}
    return rest | {"fit": {name: value for name, value in fit.items() if name != "trainer"}}


_OF_CLIENT = ("image_size", "local_steps", "batch_size", "network_name", "learning_rate")


def federate_first(content: Mapping[str, Any], train: Mapping[str, Any], teacher: Mapping[str, Any]) -> dict[str, Any]:
    """``federate.json`` as version 0.1 spelt it: with knobs of the other two files, which it handed on to the groups.

    Args:
        content: ``federate.json``; one of that version stays as it is.
        train, teacher: ``train.json`` and ``teacher.json`` of the same bundle.
    """
    client, of_teacher = content.get("client"), content.get("teacher")
    if not isinstance(client, Mapping) or not isinstance(of_teacher, Mapping):
        return dict(content)
    knobs = {name: client.get(name, train.get(name)) for name in _OF_CLIENT if name not in content and name in train}
    views = {"views": teacher["views"]} if "views" in teacher else {}
    handed_on = {**client, **{name: f"@{name}" for name in knobs}}
    return {**content, **knobs, "client": handed_on, "teacher": {**views, **of_teacher}}


def comparable(config: Mapping[str, Any]) -> dict[str, Any]:
    """``run.json -> config`` in which a value counts where it is read, whichever knob it came by.

    Variants of version 0.1 set ``optimizer#lr`` and the batch size of every loader where those of today set the knobs
    ``learning_rate`` and ``batch_size``, and ``sam_network`` where they set ``network_name``. A variant counts by its
    name of today (:func:`variant_of`).
    """
    content = first_spelling(dict(config))
    if "variant" in content:
        content["variant"] = variant_of(content)
    client = content.get("client")
    if isinstance(client, dict):
        mixed = (
            client.get("server_network") if client.get("mixed_networks") else None
        )  # then nothing reads the common one
        network = mixed or client.get("sam_network") or client.get("network_name")
        left = {name: value for name, value in client.items() if name not in ("sam_network", *_READ_ELSEWHERE)}
        common = {"network_name": network} if network else {}
        content["client"] = _read(left | common, client | common)
    return content


def variant_of(config: Mapping[str, Any]) -> str:
    """Name of today of the variant that ``run.json -> config`` ran.

    ``fedicra`` was FedALA's aggregation before it became FedICRA's; what a run of then had is ``fedala``.
    """
    variant, client = str(config.get("variant", "")), config.get("client")
    sharing = client.get("sharing") if isinstance(client, Mapping) else None
    target = str(sharing.get("_target_")) if isinstance(sharing, Mapping) else ""
    if variant == "fedicra" and _FIRST.get(target, target) == "samfed_monai.federation.AdaptiveMixing":
        return "fedala"
    return variant


_READ_ELSEWHERE = ("batch_size", "learning_rate")


def _read(content: Any, knobs: Mapping[str, Any]) -> Any:
    """JSON content with every ``@knob`` replaced by the knob's plain value."""
    if isinstance(content, dict):
        return {key: _read(value, knobs) for key, value in content.items()}
    if isinstance(content, list):
        return [_read(value, knobs) for value in content]
    value = knobs.get(content[1:]) if isinstance(content, str) and content.startswith("@") else None
    return content if value is None or isinstance(value, (dict, list)) or str(value).startswith("@") else value


def config_hash(content: Any) -> str:
    """SHA-256 of a configuration (JSON content), the same wherever in the package its components are defined."""
    return canonical_hash(first_spelling(content))


def found_where_moved(package: str, getattr_: Callable[[str], Any]) -> Callable[[str], Any]:
    """A package's ``__getattr__`` that also finds what has moved out of it.

    Args:
        package: its ``__name__``.
        getattr_: finds what is still there.

    Example::

        __getattr__ = found_where_moved(__name__, __getattr__)
    """
    moved, replaced = (_places(table.get(package, {})) for table in (MOVED, REPLACED))
    places, told = moved | replaced, set[str]()

    def find(name: str) -> Any:
        if name not in places:
            return getattr_(name)
        now, write = places[name], "write the new one"
        if name in replaced:
            now, write = "a list of named transforms", "write the list that the packaged bundles have there"
        text = f"{package}.{name} is {now} now; the old name goes with the next version: {write}"
        if name not in told:  # resolving a bundle's target asks for its name several times
            told.add(name)
            warnings.warn(text, FutureWarning, stacklevel=2)
        home, _, new = places[name].rpartition(".")
        return getattr(importlib.import_module(home), new)

    return find
