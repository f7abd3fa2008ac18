"""The catalogue of client networks: small segmentation networks that a JSON file can name, and their input sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

from torch import nn

from samfed_monai.config.targets import entry_points_of
from samfed_monai.config.variants import installed_networks
from samfed_monai.core.errors import Problem, refused
from samfed_monai.core.model_file import ARGUMENTS, CATALOGUE, run_settings
from samfed_monai.core.registry import Registry
from samfed_monai.core.validators import one_of, require
from samfed_monai.data.classes import class_problems, outputs_of
from samfed_monai.networks.features import select_channels
from samfed_monai.networks.fpn import lite0_fpn, load_trunk, mobile_sam_fpn
from samfed_monai.networks.input_size import limit_inputs
from samfed_monai.networks.torchvision_ops import declare_torchvision_operators
from samfed_monai.networks.weights import (
    encoder_weights_file,
    load_encoder_weights,
    set_epsilon,
    starts_from,
    takes_teacher,
)

CLIENT_NETWORKS: Registry[Callable[..., nn.Module]] = Registry("client network", elsewhere=installed_networks)
"""Builders ``(in_channels=..., out_channels=..., **kwargs) -> nn.Module`` by name; weights are random except for SAM.
Those of other packages (entry points ``samfed_monai.networks``, a method's ``_method -> networks``) are imported at
first use."""
PYRAMIDS = ("mobile_sam_fpn", "lite0_fpn", "lite0_fpn_96", "lite0_fpn_small")
"""Networks that support ``feature_groups``."""


def network_problems(name: str, where: str) -> list[Problem]:
    """Returns why a network cannot be built: the name is unknown, or the package that provides it is broken.

    Args:
        name: name of the network.
        where: id of the setting, for the message.
    """
    broken = {} if name in CLIENT_NETWORKS else entry_points_of("networks").broken
    return [broken[name]] if name in broken else one_of(where, name, CLIENT_NETWORKS)


def client_network(
    name: str = "mobile_sam_fpn",
    *,
    in_channels: int = 3,
    out_channels: int = 1,
    classes: Sequence[str] | None = None,
    weights: str | Path | None = None,
    load: bool = True,
    site_channels: int | None = None,
    feature_groups: Sequence[int] = (),
    frozen_stages: int | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Builds a client network, which maps ``(B, in_channels, H, W)`` to logits ``(B, out_channels, H, W)``.

    Args:
        name: a name in ``CLIENT_NETWORKS``: ``mobile_sam_fpn`` (MobileSAM's trunk), ``lite0_fpn`` (0.75 M parameters),
            ``lite0_fpn_96`` (the same with features as wide as those of ``mobile_sam_fpn``),
            ``lite0_fpn_small`` (0.28 M), ``deeplabv3plus_resnet18``, ``deeplabv3plus_resnet34``,
            ``deeplabv3plus_efficientnet_lite0``, ``flexible_unet_resnet18``, ``basic_unet``; networks of methods
            (``hssf_resnet18``, ``hssf_resnet34``, ``hssf_resnet101``); and SAM itself with trainable adapters and its
            own weights, ``sam_vit_t`` (MobileSAM), ``sam_vit_b``, ``sam_vit_l``, ``sam_vit_h``, see
            ``samfed_monai.networks.sam.network.sam_network``.
        in_channels, out_channels: channels of images and logits.
        classes: names of the classes, instead of ``out_channels``: one logit for one class, K + 1 for K classes, the
            background's first (:func:`samfed_monai.data.classes.outputs_of`).
        weights: initial weights of the encoder: ``"pretrained"``, the network's own, if any (``mobile_sam`` or
            ``efficientnet_lite0``, installed by ``samfed weights``); ``"teacher"``, see
            :data:`~samfed_monai.networks.weights.TEACHER`; a name of weights; a local file, read without
            unpickling code: MobileSAM's checkpoint, a teacher's adapter, or torchvision's ResNet names; ``None``:
            random weights. Nothing is downloaded.
        load: ``False`` does not read the weights: others are loaded into the network before it is used.
        site_channels: maximum number of sites for the selection of the deepest channels by site
            (:func:`samfed_monai.networks.features.select_channels`); ``None`` for no selection.
        feature_groups: for a pyramid (``mobile_sam_fpn``, ``lite0_fpn``), see
            :class:`samfed_monai.networks.fpn.FeatureGroups`; empty for other networks.
        frozen_stages: for ``mobile_sam_fpn``, see :class:`samfed_monai.networks.fpn.TinyViTFeatures`; ``None``: 2 if
            the encoder starts from weights, else 0; other networks accept 0 only.
        kwargs: passed to the network's own class, for instance ``encoder_output_stride``.

    Raises:
        Refused: an unknown name, invalid names of classes, several classes for a network that supports one, or weights
            of another encoder; at the first forward pass, an unsupported image size or training batch size, with the
            nearest that fit.

    Example::

        "network_def": {"_target_": "samfed_monai.networks.client_network", "name": "@network_name"}
    """
    if classes is not None:
        require(class_problems(classes, "train.json -> classes"))
        out_channels = outputs_of(classes)
    require(network_problems(name, "train.json -> network_name"))
    if feature_groups:
        require(one_of("network_def#feature_groups -> network_name", name, PYRAMIDS))
        kwargs["feature_groups"] = feature_groups
    initial = starts_from(name, weights)
    if frozen_stages is None and initial is not None and takes_teacher(name):
        frozen_stages = 2  # a sixth less time at the same Dice: docs/results/light.md
    stages = {"frozen_stages": frozen_stages} if frozen_stages else {}
    network = _built(name, in_channels=in_channels, out_channels=out_channels, **stages, **kwargs)
    if initial is not None:
        network.pretrained = "encoder"  # type: ignore[assignment]  # parameters_of gives it a learning rate of its own
    if initial is not None and load and takes_teacher(name):
        load_trunk(network, encoder_weights_file(initial, name))
    elif initial is not None and load:
        load_encoder_weights(network, initial, name=name)
    if site_channels is not None:
        network, kwargs["site_channels"] = select_channels(network, site_channels), site_channels
    settings = {"network_name": name, "classes": list(classes or ()), ARGUMENTS: {"_target_": CATALOGUE, **kwargs}}
    network.samfed_settings = run_settings({"client": settings})  # type: ignore[assignment]  # stored in weights files
    return network


def _built(name: str, **kwargs: Any) -> nn.Module:
    try:
        return CLIENT_NETWORKS[name](**kwargs)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        hint = "remove it, or choose another network: names of SAM networks begin with sam_"
        raise refused("network_def", str(error), f"arguments that {name} takes", hint) from error


CLIENT_NETWORKS.register("mobile_sam_fpn")(mobile_sam_fpn)
CLIENT_NETWORKS.register("lite0_fpn")(lite0_fpn)
CLIENT_NETWORKS.register("lite0_fpn_96")(partial(lite0_fpn, width=96))  # features as wide as mobile_sam_fpn's
CLIENT_NETWORKS.register("lite0_fpn_small")(partial(lite0_fpn, width=48, stages=4))


def _deeplabv3plus(encoder: str, in_channels: int, out_channels: int, **kwargs: Any) -> nn.Module:
    declare_torchvision_operators()
    from segmentation_models_pytorch import DeepLabV3Plus

    for name in kwargs.keys() - signature(DeepLabV3Plus).parameters.keys():  # it ignores unknown names silently
        raise TypeError(f"DeepLabV3Plus got an unexpected keyword argument {name!r}")
    # encoder_weights=None: segmentation_models_pytorch would download ImageNet weights otherwise
    network = DeepLabV3Plus(encoder, encoder_weights=None, in_channels=in_channels, classes=out_channels, **kwargs)
    return limit_inputs(network, multiple=16, least_batch=2)


CLIENT_NETWORKS.register("deeplabv3plus_resnet18")(partial(_deeplabv3plus, "resnet18"))
CLIENT_NETWORKS.register("deeplabv3plus_resnet34")(partial(_deeplabv3plus, "resnet34"))


@CLIENT_NETWORKS.register("deeplabv3plus_efficientnet_lite0")
def _deeplabv3plus_efficientnet_lite0(**kwargs: Any) -> nn.Module:
    network = _deeplabv3plus("timm-tf_efficientnet_lite0", **kwargs)
    set_epsilon(network.get_submodule("encoder"))  # segmentation_models_pytorch leaves PyTorch's 1e-5
    return network


@CLIENT_NETWORKS.register("flexible_unet_resnet18")
def _flexible_unet_resnet18(in_channels: int, out_channels: int, **kwargs: Any) -> nn.Module:
    from monai.networks.nets import FlexibleUNet

    return limit_inputs(FlexibleUNet(in_channels, out_channels, **{"backbone": "resnet18", **kwargs}), multiple=32)


@CLIENT_NETWORKS.register("basic_unet")
def _basic_unet(in_channels: int, out_channels: int, **kwargs: Any) -> nn.Module:
    from monai.networks.nets import BasicUNet

    # four halvings; below 32 px its instance norm would get a single pixel
    return limit_inputs(BasicUNet(2, in_channels, out_channels, **kwargs), multiple=1)


def _sam(base: str, **kwargs: Any) -> nn.Module:
    from samfed_monai.networks.sam.network import sam_network

    return limit_inputs(sam_network(base, **kwargs), multiple=1)


for _base in ("vit_t", "vit_b", "vit_l", "vit_h"):
    CLIENT_NETWORKS.register(f"sam_{_base}")(partial(_sam, _base))
