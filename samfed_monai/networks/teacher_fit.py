"""Adapts SAM to the public images: ``TeacherFit`` (METHOD section 2)."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from samfed_monai.errors import Problems
from samfed_monai.io import canonical_hash, sha256_file
from samfed_monai.networks.autocast import Switch
from samfed_monai.networks.fit_state import FitState, load_state, save_state
from samfed_monai.networks.sam.adapter import Adapt, Adapter, adapted_tensors, prepare, read_header, save_adapter
from samfed_monai.networks.sam.build import build_sam
from samfed_monai.networks.sam.teacher import Teacher
from samfed_monai.networks.sam.weights import find_checkpoint
from samfed_monai.networks.teacher_batches import EmbeddedBatches, ImageBatches
from samfed_monai.networks.teacher_data import Pair, Records, public_hash, read_pair
from samfed_monai.networks.teacher_exam import Exam, as_good_as, mean
from samfed_monai.networks.teacher_recipe import default_learning_rate, learning_rate_at, make_optimizer, mask_loss
from samfed_monai.networks.weight_average import WeightAverage

logger = logging.getLogger(__name__)


class TeacherFit:
    """Fits LoRA and the decoder (or the decoder alone) on ``D_p`` and writes the adapter.

    Kept are averaged weights of the last epoch that is as good on the held-out part of ``D_p`` as the best one (within
    a standard error: see ``as_good_as``). Progress is written after every epoch beside ``output``: a killed fit goes on
    where it stood, to the same adapter. A finished fit is not repeated: ``run`` returns its recorded result.

    Args:
        train_records, held_out_records: the two parts of ``D_p``, as of ``samfed_monai.data.split_public``.
        test_records: name to labelled records whose Dice is reported before and after; they decide nothing.
        output: the adapter to write (safetensors).
        base: SAM's name (``vit_t``, ``vit_b``, ...).
        checkpoint: its weights; ``None`` looks into ``bundle_root``'s ``models/`` and the weights folder.
        adapt: ``lora`` (LoRA and decoder), ``decoder``, or ``none`` (writes SAM's own decoder).
        size: side of the square input in pixels: 256, 512 or 1024.
        rank: LoRA rank.
        epochs: passes over ``train_records``.
        learning_rate: peak; ``None`` is the recipe's for this base and ``adapt``.
        batch_size: images a step.
        seed: decides everything random.
        views: test-time views of the Dice before and after (not of the choice of the epoch).
        cached_views: with ``decoder``, augmented views of each image that are encoded once and then reused; 2 bytes x
            (size)^2 a view in memory (0.5 MB at 512 px).
        bf16: bfloat16 for the encoder, ``"auto"`` where the processor gains.
        bundle_root: see ``checkpoint``.
        datalist_hash: recorded in the adapter.
        progress: show bars with the time left.

    Raises:
        Refused: missing weights, an empty part of ``D_p``, a number out of its range; all at once.
    """

    def __init__(
        self,
        *,
        train_records: Records,
        held_out_records: Records,
        output: str | Path,
        test_records: Mapping[str, Records] | None = None,
        base: str = "vit_t",
        checkpoint: str | Path | None = None,
        adapt: str = "lora",
        size: int = 512,
        rank: int = 4,
        epochs: int = 24,
        learning_rate: float | None = None,
        batch_size: int = 4,
        seed: int = 0,
        views: int = 1,
        cached_views: int = 8,
        bf16: Switch = "auto",
        bundle_root: str | Path | None = None,
        datalist_hash: str = "",
        progress: bool = True,
    ) -> None:
        problems = Problems()
        if adapt not in list(Adapt):
            expected = f"one of {[choice.value for choice in Adapt]}"
            problems.add("teacher -> adapt", found=repr(adapt), expected=expected)
        for name, number in {"epochs": epochs, "batch_size": batch_size, "cached_views": cached_views}.items():
            if not isinstance(number, int) or number < 1:
                problems.add(f"teacher -> {name}", found=repr(number), expected="an integer >= 1")
        if learning_rate is not None and not (isinstance(learning_rate, (int, float)) and learning_rate > 0):
            problems.add("teacher -> learning_rate", found=repr(learning_rate), expected="a number > 0, or null")
        for name, records in {"train": train_records, "held-out": held_out_records}.items():
            unlabelled = sum("label" not in record for record in records)
            if not records or unlabelled:
                found = f"{unlabelled} without a label" if records else "no image"
                mend = "give the public set at least two labelled images"
                problems.add(f"public set, {name} part", found=found, expected="labelled images", mend=mend)
        problems.refuse_if_any()
        self.records = {"train": list(train_records), "held_out": list(held_out_records)}
        self.test_records = dict(test_records or {})
        self.output, self.base, self.adapt = Path(output), base, Adapt(adapt)
        self.checkpoint = Path(checkpoint) if checkpoint else find_checkpoint(base, bundle_root)
        self.size, self.epochs, self.batch_size, self.seed = size, epochs, batch_size, seed
        self.rank = rank if self.adapt is Adapt.LORA else 0
        self.learning_rate = learning_rate or default_learning_rate(base, self.adapt.value)
        self.views, self.cached_views, self.bf16, self.progress = views, cached_views, bf16, progress
        self.datalist_hash = datalist_hash

    def run(self) -> dict[str, Any]:
        """Fits and writes the adapter.

        Returns:
            ``before`` and ``after`` (``held_out`` and each test set to its Dice), ``epoch`` kept, ``history`` of
            the held-out Dice, ``seconds``, ``output``, ``sha256`` of the adapter, ``public_hash``, ``reused``.
        """
        self.base_sha256 = sha256_file(self.checkpoint)
        self.public_hash = public_hash(self.records["train"] + self.records["held_out"])
        fit_hash = self._hash()
        recorded = self._recorded(fit_hash)
        if recorded is not None:
            logger.info("teacher: %s was fitted like this already; reused", self.output)
            return recorded
        started = time.perf_counter()
        sam = build_sam(self.base, self.checkpoint, self.size)
        sam.to("cuda" if torch.cuda.is_available() else "cpu")
        self.parameters = prepare(sam, self.adapt, self.rank)
        self.teacher = Teacher(sam, sha256="", size=self.size, views=1, bf16=self.bf16)
        self.exam = Exam(self.teacher, keep_embeddings=self.adapt is not Adapt.LORA)
        before = self._examine("before")
        state = self._train(fit_hash) if self.adapt is not Adapt.NONE else FitState(fit_hash)
        after = self._examine("after") if self.adapt is not Adapt.NONE else before
        result: dict[str, Any] = {"before": before, "after": after, "epoch": state.kept_epoch, "history": state.history}
        result |= {"seconds": round(time.perf_counter() - started, 1), "public_hash": self.public_hash}
        self._tell(result)
        fit = {"hash": fit_hash, "datalist_hash": self.datalist_hash, "result": result}
        header = Adapter(self.base, self.base_sha256, self.adapt, self.rank, self.size, self.public_hash, fit)
        save_adapter(self.output, sam, header)
        self._progress_file.unlink(missing_ok=True)
        return result | {"output": str(self.output), "sha256": sha256_file(self.output), "reused": False}

    def _tell(self, result: dict[str, Any]) -> None:
        from tqdm import tqdm

        lines = [
            f"teacher ({self.base}, {self.adapt.value}, {self.size} px), Dice before and after, {self.views} view(s)"
        ]
        for name, before in result["before"].items():
            lines.append(f"  {name:<20} {before:.3f}  {result['after'][name]:.3f}")
        logger.info("\n".join(lines))
        if self.progress:  # MONAI's runner shows no log of level INFO
            tqdm.write("\n".join(lines))

    @property
    def _progress_file(self) -> Path:
        return self.output.with_name(self.output.name + ".progress.safetensors")

    def _hash(self) -> str:
        names = "adapt", "base", "base_sha256", "size", "rank", "epochs", "learning_rate", "batch_size", "seed", "views"
        settings = {name: getattr(self, name) for name in (*names, "cached_views", "public_hash")}
        parts = {name: [record["image_sha256"] for record in records] for name, records in self.records.items()}
        tests = {name: [record["image_sha256"] for record in records] for name, records in self.test_records.items()}
        return canonical_hash({"settings": settings, "parts": parts, "tests": tests})

    def _recorded(self, fit_hash: str) -> dict[str, Any] | None:
        if not self.output.exists():
            return None
        fit = read_header(self.output).fit
        if fit.get("hash") != fit_hash:
            return None
        return fit["result"] | {"output": str(self.output), "sha256": sha256_file(self.output), "reused": True}

    def _examine(self, when: str) -> dict[str, float]:
        from tqdm import tqdm

        sets = {"held_out": self.records["held_out"], **self.test_records}
        total = sum(map(len, sets.values()))
        with tqdm(total=total, desc=f"teacher {when}", unit="image", disable=not self.progress) as bar:
            return {name: mean(dice) for name, dice in self.exam(sets, views=self.views, done=bar.update).items()}

    def _train(self, fit_hash: str) -> FitState:
        sam = self.teacher.sam
        batches = self._batches([read_pair(record) for record in self.records["train"]])
        optimizer = make_optimizer(self.parameters)
        state, average = FitState(fit_hash), WeightAverage(adapted_tensors(sam))
        kept: dict[str, Tensor] = {}
        resumed = load_state(self._progress_file, fit_hash, optimizer)
        if resumed is not None:
            state, weights = resumed
            sam.load_state_dict(weights["current"], strict=False)
            average, kept = WeightAverage(weights["average"]), weights["kept"]
            average.step = state.steps
            logger.info("teacher: going on after epoch %d of %d", state.epoch, self.epochs)
        for epoch in self._epochs(state):
            for logits, target in batches(epoch):
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate_at(state.steps, self.epochs * batches.steps, self.learning_rate)
                optimizer.zero_grad(set_to_none=True)
                mask_loss(logits, target).backward()
                optimizer.step()
                average.update(adapted_tensors(sam))
                state.steps += 1
            state.epoch = epoch + 1
            with average.applied(sam):
                scores = self.exam({"held_out": self.records["held_out"]})["held_out"]
            state.history.append(mean(scores))
            if not state.best or mean(scores) > mean(state.best):
                state.best = scores
            if as_good_as(scores, state.best):
                state.kept_epoch = state.epoch
                kept = {name: tensor.clone() for name, tensor in average.tensors.items()}
            weights = {"current": adapted_tensors(sam), "average": average.tensors, "kept": kept}
            save_state(self._progress_file, state, optimizer, weights)
            logger.info("teacher: epoch %d of %d, held-out Dice %.3f", state.epoch, self.epochs, mean(scores))
        sam.load_state_dict(kept, strict=False)
        return state

    def _batches(self, pairs: list[Pair]) -> ImageBatches | EmbeddedBatches:
        settings: dict[str, Any] = {
            "size": self.size,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "bf16": self.bf16,
        }
        if self.adapt is Adapt.DECODER:
            return EmbeddedBatches(self.teacher.sam, pairs, views=self.cached_views, progress=self.progress, **settings)
        return ImageBatches(self.teacher.sam, pairs, **settings)

    def _epochs(self, state: FitState) -> Iterator[int]:
        from tqdm import tqdm

        epochs = range(state.epoch, self.epochs)
        bar = tqdm(
            epochs, desc="teacher", unit="epoch", initial=state.epoch, total=self.epochs, disable=not self.progress
        )
        for epoch in bar:
            yield epoch
            bar.set_postfix(held_out=f"{state.history[-1]:.3f}")
