"""A second generation: a trained network makes the soft masks of the sites' images in SAM's place."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from samfed_monai.core import tensor_file
from samfed_monai.core.errors import Problem, Refused
from samfed_monai.core.io import canonical_hash, sha256_file
from samfed_monai.core.model_file import (
    ARGUMENTS,
    SETTINGS,
    network_overrides,
    settings_of,
    trained_otherwise,
    words_of,
)
from samfed_monai.core.own_process import best_device
from samfed_monai.core.training_state import own_random_state
from samfed_monai.data.soft_masks import resize_probabilities
from samfed_monai.federation.participants import Participants, network_builder
from samfed_monai.federation.preparation import is_sam
from samfed_monai.federation.start import starting_file
from samfed_monai.handlers.model_loader import trained_weights
from samfed_monai.networks.inferer import Switch, autocast, bf16_possible, mean_of_views
from samfed_monai.networks.sam.build import MASK_STRIDE, inner_size

if TYPE_CHECKING:
    from samfed_monai.federation.teacher import TeacherStage
    from samfed_monai.federation.workflow import WorkflowConfig

WHERE = "federate.json -> masks_from"


class StudentTeacher(nn.Module):
    """A trained network as a teacher: its mean probability over test-time views, in masks of a teacher's size.

    Args:
        network: images ``(B, 3, S, S)`` float in [0, 1] to logits ``(B, C, S, S)``.
        weights_sha256: of the file that it was filled from; with ``size`` and ``views`` it is the masks' identity.
        image_size: S, pixels.
        size: the longer side of a mask has ``size / 4`` pixels, as those of a teacher with an input of ``size`` pixels.
        views: 1, 2, 4 or 8.
        bf16: bfloat16 for the network; no part of the identity.
    """

    def __init__(
        self, network: nn.Module, *, weights_sha256: str, image_size: int, size: int, views: int, bf16: Switch = "auto"
    ) -> None:
        super().__init__()
        self.network, self.image_size, self.size, self.views, self.bf16 = network, image_size, size, views, bf16
        self.sha256 = canonical_hash({"student": weights_sha256, "size": size, "views": views})
        self.eval().requires_grad_(False)

    @classmethod
    def load(cls, path: Path, config: WorkflowConfig, stage: TeacherStage) -> StudentTeacher:
        """Builds the network that a file's header names, and fills it.

        Args:
            path: with the content that :func:`packed` made.
            config: the run's ``train.json``.
            stage: whose ``size``, ``views`` and ``bf16`` of ``teacher.json`` it takes.

        Raises:
            Refused: other classes or another image size than the run's; weights that do not fit their network.
        """
        _require_alike(path, config)
        trained = settings_of(path)
        if missing := [name for name in ("network_name", "image_size") if name not in trained]:
            found, expected = f"a file without {' and '.join(missing)}", "weights whose header says how they are used"
            raise Refused([Problem(WHERE, found, expected)])
        network = _empty(config, trained["network_name"], path)
        network.load_state_dict(trained_weights(network, path))
        made = cls(
            network,
            weights_sha256=sha256_file(path),
            image_size=trained["image_size"],
            size=stage.option("size"),
            views=stage.option("views"),
            bf16="auto" if (bf16 := stage.option("bf16")) is None else bf16,
        )
        return made.to(best_device())

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> Tensor:
        """Mean probability over the views.

        Args:
            images: ``(B, 3, H, W)`` float in [0, 1], RGB, any H and W.

        Returns:
            ``(B, C, h, w)`` float32 in [0, 1] that covers exactly the image, h and w as those of a teacher
            (``Teacher.probabilities``).
        """
        device = next(self.network.parameters()).device
        height, width = images.shape[-2:]
        seen = functional.interpolate(images.to(device), (self.image_size, self.image_size), mode="area")
        with autocast(device.type, bf16_possible(self.bf16, device.type)):
            mean = mean_of_views(seen, self.network, self.views)
        return resize_probabilities(mean, [side // MASK_STRIDE for side in inner_size(height, width, self.size)])


def masks_from_problems(source: str | Path | None, adapt: str) -> list[Problem]:
    """What of a run's settings has no use beside ``masks_from``; empty without one.

    Args:
        source: of ``masks_from``.
        adapt: ``teacher_adapt``; ``off`` has no soft masks.
    """
    expected, hint = "null: this variant learns from no soft masks", "leave it out, or take another variant"
    return [] if source is None or adapt != "off" else [Problem(WHERE, repr(str(source)), expected, hint)]


def next_run_problems(participants: Participants) -> list[Problem]:
    """Why the model of a run could not make the masks of a next one (:func:`packed`); empty where it can.

    Args:
        participants: of the run.
    """
    config, name = participants.config, participants.server_network
    found = {
        "no network at the server": not participants.strategy.exchange.server_model,
        "sites that keep a part of the network": bool(config.optional("personal")),
        f"{name}, on SAM's frozen weights": is_sam(config, name),
    }
    expected = "a variant and a light network of which the server has a whole model: it makes the next run's masks"
    hint = "leave it out, or take another --variant or --network_name"
    return [Problem("--generations", reason, expected, hint) for reason, holds in found.items() if holds]


def packed(source: str | Path, participants: Participants) -> bytes:
    """A model as the content of one file, with a header from which every site builds its network.

    Args:
        source: name or folder of a bundle, folder of a finished run, or a weights file.
        participants: of the run, whose network it is of where nothing says of which.

    Raises:
        Refused: there is no such model, or the run is not finished; other classes or another image size than the
            run's; a network on SAM's frozen weights; weights that do not fit their network.
    """
    path, config = starting_file(source, WHERE), participants.config
    _require_alike(path, config)
    words = {name: text for name, text in words_of(path).items() if name in (*SETTINGS, ARGUMENTS)}
    words = {"network_name": participants.server_network, "image_size": str(config.value("image_size")), **words}
    if is_sam(config, words["network_name"]):
        expected, hint = "a network without frozen weights of SAM", "name a run or a weights file of a light network"
        raise Refused([Problem(WHERE, words["network_name"], expected, hint)])
    network = _empty(config, words["network_name"], path)
    stream = BytesIO()
    tensor_file.write(stream, trained_weights(network, path), words)
    return stream.getvalue()


def _require_alike(path: Path, config: WorkflowConfig) -> None:
    asked = {"image_size": config.value("image_size"), "classes": config.optional("classes") or ["foreground"]}
    if problems := trained_otherwise(path, asked):
        raise Refused([Problem(f"{WHERE} -> {each.where}", each.found, each.expected, each.hint) for each in problems])


def _empty(config: WorkflowConfig, name: str, path: Path) -> nn.Module:
    with own_random_state(0):  # nothing that is drawn here is used
        return network_builder(config, name, network_overrides(path))()
