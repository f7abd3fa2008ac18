"""Renewal of soft masks: after chosen rounds a site averages SAM's soft masks with the global model's."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from samfed_monai.config.parse import parsed
from samfed_monai.core.errors import Problem, Problems
from samfed_monai.core.io import canonical_hash
from samfed_monai.core.json_schema import departures
from samfed_monai.core.progress import progress_bar
from samfed_monai.core.tensor_file import checksum
from samfed_monai.data.soft_masks import resize_probabilities
from samfed_monai.federation.exchange_object import call_extra, to_exchange_object
from samfed_monai.federation.site_teacher import SiteMasks, SiteTeacher
from samfed_monai.networks.views import VIEWS, mean_of_views
from samfed_monai.protocol.message import Message, MessageRefused
from samfed_monai.transforms.loading import LoadSoftMaskd, plain

if TYPE_CHECKING:
    from torch import Tensor

    from samfed_monai.federation.client import SamFedAlgo

logger = logging.getLogger(__name__)

WHERE = "federate.json -> renewal"
SCHEMA = {
    "type": ["object", "null"],
    "properties": {
        "after": {"type": "array", "items": {"type": "integer", "minimum": 1}},
        "weight_of_student": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
        "views": {"type": "integer", "enum": sorted(VIEWS)},
    },
    "additionalProperties": False,
}
"""JSON Schema of ``federate.json -> renewal``."""


@dataclass(frozen=True)
class Renewal:
    """After which rounds the soft masks are renewed, and how.

    Args:
        after: numbers of rounds, 1 or more and rising; with ``(5,)`` the sixth round is the first one that learns from
            renewed masks.
        weight_of_student: w in (0, 1]; a renewed mask is ``(1 - w) SAM's + w the model's`` probability.
        views: test-time views of the model whose probabilities are averaged: 1, 2, 4 or 8 (mirror x quarter turns).

    Example::

        "renewal": {"after": [5], "weight_of_student": 0.5, "views": 4}
    """

    after: tuple[int, ...]
    weight_of_student: float = 0.5
    views: int = 4

    @classmethod
    def from_json(cls, content: Mapping[str, Any] | None, rounds: int) -> Renewal | None:
        """Reads ``federate.json -> renewal``; ``None`` where nothing is renewed, as ``after`` is empty or absent.

        Args:
            content: of the option.
            rounds: of the run.

        Raises:
            Refused: an unknown name, a number out of its range, no round left to learn; every problem at once.
        """
        problems = Problems()
        problems.extend(departures({"renewal": content}, {"properties": {"renewal": SCHEMA}}, "federate.json"))
        after = content.get("after", []) if isinstance(content, Mapping) else []
        whole = isinstance(after, (list, tuple)) and all(type(number) is int for number in after)
        if whole and (list(after) != sorted(set(after)) or (after and after[-1] >= rounds)):
            expected = f"rising numbers of rounds below {rounds}, the run's"
            problems.add(f"{WHERE}#after", found=repr(after), expected=expected, hint="for instance [5]; [] is never")
        problems.refuse_if_any()
        return cls(**{**content, "after": tuple(after)}) if content and after else None

    def generation(self, round: int) -> int:
        """How often the masks are renewed before ``round`` (from 0) learns from them."""
        return sum(after <= round for after in self.after)


class SiteRenewal:
    """Has one site learn from the generation of soft masks that a round asks for; nothing of it leaves the site.

    A generation lies beside the teacher's masks, in a folder of its own that says what it is made of and is keyed by
    the hash of that: run, teacher, generation, recipe and the model's weights. The site's state says which one it
    learns from, so that a site or a run that goes on reads the same masks; one that was killed while it filled a
    generation goes on with the images that are left. A site that was away when the others renewed theirs does so with
    the model of the round in which it is back.

    A resumed run goes back one round at the most, so a site keeps the generation that it learns from and the two before
    it; when the run's models are scored, the rounds are over and :meth:`remove` removes all of them.

    Args:
        recipe: of the plan.
        run: folder of the run here; two runs share no generation.
        teacher: whose masks are generation 0.
        masks: the site's store.
    """

    def __init__(self, recipe: Renewal, *, run: Path, teacher: SiteTeacher, masks: SiteMasks) -> None:
        self.recipe, self.run, self.teacher, self.masks = recipe, str(run.resolve()), teacher, masks
        #: Identity of the renewed masks that the site learns from; ``None`` while these are the teacher's own.
        self.sha256: str | None = None
        self._checked: str | None = None

    def before(self, message: Message, client: SamFedAlgo) -> None:
        """Has ``client`` read the masks that the round of ``message`` learns from, and makes them where they are due.

        Args:
            message: the training task; its model, with what of a network stays at this site, is the one that is asked.
            client: trains next.

        Raises:
            MessageRefused: the bundle reads no soft masks; those of a run that goes on are gone, or another teacher's.
        """
        dataset, readers = masks_read(client)
        wanted = self.recipe.generation(message.round)
        if wanted != self._held():
            self.sha256 = self._checked = self._renew(wanted, message, client) if wanted else None
        for reader in readers:
            if reader.read_masks_of(self.sha256 or self.teacher.sha256):
                dataset.set_data(dataset.data)  # items with the old masks are forgotten

    def remove(self, below: int | None = None) -> None:
        """Removes this run's renewed masks, but for those that the site learns from where ``below`` is given.

        Args:
            below: only generations below this one; ``None`` is every one.
        """
        for store in self.masks.store(self.teacher.sha256).renewed():
            origin = store.origin() or {}
            old = below is None or (origin["generation"] < below and store.teacher_sha256 != self.sha256)
            if origin.get("run") == self.run and old:
                store.remove()

    def state_dict(self) -> dict[str, Tensor]:
        """Which masks the site learns from; empty while these are the teacher's own."""
        if self.sha256 is None:
            return {}
        return {_STATE: torch.frombuffer(bytearray.fromhex(self.sha256), dtype=torch.uint8)}

    def take_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Takes its part of a site's state; returns the rest."""
        own = state.get(_STATE)
        self.sha256 = None if own is None else own.numpy().tobytes().hex()
        return {name: tensor for name, tensor in state.items() if name != _STATE}

    def _held(self) -> int:
        """The generation of the masks at hand, known to be whole and of this teacher; 0 is the teacher's own."""
        if self.sha256 is None:
            return 0
        store = self.masks.store(self.sha256)
        origin = store.origin() or {}
        if origin and origin["teacher"] != self.teacher.sha256:
            found = f"those of generation {origin['generation']}, made of teacher {origin['teacher'][:12]}…"
            expected = f"masks made of this run's teacher, {self.teacher.sha256[:12]}…"
            hint = "go on with the teacher.json and adapter that the run began with, or start a run in another folder"
            raise _refusal(found, expected, hint)
        if self._checked != self.sha256:
            missing = (
                store.missing(record["image_sha256"] for record in self.masks.records("unlabelled"))
                if origin
                else ["all"]
            )
            if missing:
                found = f"{len(missing)} missing" if origin else "none"
                expected = f"a mask of every image by {self.sha256[:12]}…, which this run learns from"
                hint = "put this site's cache_dir back, or start a run in another folder: their model is gone"
                raise _refusal(found, expected, hint)
            self._checked = self.sha256
        return int(origin["generation"])

    def _renew(self, generation: int, message: Message, client: SamFedAlgo) -> str:
        started, recipe = time.perf_counter(), self.recipe
        trainer: Any = client.trainer
        evaluation: Any = client.eval_workflow
        preprocessing = evaluation.parser.get_parsed_content("validate#preprocessing")
        with client.model_of(to_exchange_object(message), call_extra(message)) as network:
            origin = {
                "run": self.run,
                "teacher": self.teacher.sha256,
                "generation": generation,
                "round": message.round,
                "student": checksum(network.state_dict()),
                "weight_of_student": recipe.weight_of_student,
                "views": recipe.views,
            }
            sha256 = canonical_hash(origin)
            sam, renewed = self.masks.store(self.teacher.sha256), self.masks.store(sha256)
            renewed.write_origin(origin)
            by_hash = {record["image_sha256"]: record for record in self.masks.records("unlabelled")}
            missing = renewed.missing(by_hash)
            logits = partial(trainer.inferer, network=network)
            with progress_bar(total=len(missing), desc=f"{self.masks.site}: renewed soft masks", unit="image") as bar:
                for image in missing:  # one by one: the bits do not depend on which are left
                    pixels = plain(preprocessing(dict(by_hash[image]))["image"])[None].to(trainer.state.device)
                    student = mean_of_views(pixels, logits, recipe.views).cpu()
                    before = resize_probabilities(sam.get(image)[None], student.shape[-2:])
                    renewed.put(image, renewed_mask(before, student, recipe.weight_of_student)[0])
                    bar.update()
        self.remove(below=generation - 2)
        seconds = time.perf_counter() - started
        text = "%s: soft masks of generation %d from SAM and the model after %d rounds: %d made, %d there, %.0f s"
        logger.info(
            text, self.masks.site, generation, message.round, len(missing), len(by_hash) - len(missing), seconds
        )
        return sha256


_STATE = "renewal.masks"


def renewed_mask(sam: Tensor, student: Tensor, weight_of_student: float) -> Tensor:
    """``(1 - w) sam + w student``, probabilities of one shape, in [0, 1]."""
    return torch.lerp(sam, student, weight_of_student).clamp_(0, 1)


def masks_read(client: SamFedAlgo) -> tuple[Any, list[LoadSoftMaskd]]:
    """The client's dataset of unlabelled images, and what reads the soft masks there.

    Raises:
        MessageRefused: these images come without soft masks, so that there is nothing to renew.
    """
    dataset = parsed(getattr(client.train_workflow, "parser", None), "unlabelled#dataset")
    steps = _steps(getattr(dataset, "transform", None))
    readers = [each for each in steps if isinstance(each, LoadSoftMaskd) and each.store is not None]
    if not readers:
        where, found = "train.json -> unlabelled#dataset", "images without soft masks"
        hint = "enable guides#sam, or set federate.json -> renewal#after to []"
        raise MessageRefused([Problem(where, found=found, expected="LoadSoftMaskd, as renewal is on", hint=hint)])
    return dataset, readers


def _steps(transform: Any) -> Iterator[Any]:
    for each in getattr(transform, "transforms", ()):
        yield each
        yield from _steps(each)


def _refusal(found: str, expected: str, hint: str) -> MessageRefused:
    return MessageRefused([Problem("renewed soft masks", found=found, expected=expected, hint=hint)])
