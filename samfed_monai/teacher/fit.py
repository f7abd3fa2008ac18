"""Adapts SAM to the public images: ``TeacherFit`` (docs/method.md)."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from monai.engines import SupervisedTrainer
from monai.transforms import Compose

from samfed_monai.core.errors import Problems, Refused, refused
from samfed_monai.core.io import canonical_hash, read_json, require_writable, sha256_file, write_json
from samfed_monai.core.process_setup import best_device
from samfed_monai.core.run_log import progress_bar
from samfed_monai.core.seeds import derive_seed
from samfed_monai.core.validators import in_range, one_of, whole
from samfed_monai.data import public_hash
from samfed_monai.networks import find_checkpoint
from samfed_monai.networks.inferer import Switch, switch_problems, views_problems
from samfed_monai.networks.sam.adapter import (
    Adapt,
    Adapter,
    load_adapted,
    load_adapter,
    prepare,
    read_header,
    save_adapter,
)
from samfed_monai.networks.sam.build import SAM_BUILDERS, PromptFreeSam, build_sam, fold_batch_norms, side_problems
from samfed_monai.networks.sam.lora import apply_lora
from samfed_monai.networks.sam.teacher import Teacher
from samfed_monai.teacher.evaluation import Records, TeacherEvaluation, mean
from samfed_monai.teacher.training import (
    LORA_LEARNING_RATE,
    TRAINER,
    EmbeddedBatches,
    ImageBatches,
    TrainedSam,
    Training,
    default_epochs,
    default_learning_rate,
)
from samfed_monai.teacher.views import ViewedImages, content_of, without_views

logger = logging.getLogger(__name__)

LOW = 0.5
"""Dice below which a warning reports that the teacher is more often wrong than right."""


_SET_BY_FIT = frozenset({"network", "train_data_loader", "epoch_length", "max_epochs", "device", "lr"})
"""Arguments of the trainer and its optimizer that a fit sets."""


class TeacherFit:
    """Fits LoRA and the decoder (or the decoder alone) on ``D_p`` and writes the adapter.

    The adapter has the averaged weights of the last epoch whose Dice on the held-out part of ``D_p`` is within a
    standard error of the best one. Progress is written beside ``output`` after the first epoch and
    then at most once a minute, at the end of epochs: an interrupted fit resumes there, with the same adapter as result.
    A finished fit is not repeated: the same settings and images reuse ``output``. The adapter is a function of
    settings, images and machine only; Dice and seconds are in a JSON file beside it.

    Args:
        train_records, held_out_records: the two parts of ``D_p``, see ``samfed_monai.data.split_public``.
        test_records: labelled records by name whose Dice is reported; they have no influence on the fit.
        output: the adapter to write (safetensors).
        base: SAM's name (``vit_t``, ``vit_b``, ...).
        start_from: an adapter of the same ``base``, ``adapt``, ``rank`` and ``size`` to start from; ``None`` starts
            from unadapted SAM.
        checkpoint: SAM's weights; ``None`` searches ``bundle_root``'s ``models/`` and the weights folder.
        adapt: ``lora`` (LoRA and decoder), ``decoder``, or ``none`` (writes SAM's own decoder).
        size: side of the square input in pixels: a multiple of 16 from 64 to 1024; 224 and 448 fill its windows.
        rank: LoRA rank.
        epochs: passes over ``train_records``; ``None`` is the default for this ``adapt``.
        learning_rate: peak for prompt encoder and mask decoder; ``None`` is the default for this base and ``adapt``.
        lora_learning_rate: peak for the low-rank matrices; ``None`` is SAMed's 0.005.
        batch_size: images per step.
        seed: seed of all randomness.
        views: number of test-time views for the reported Dice (not for the choice of the epoch).
        cached_views: with ``decoder``, number of augmented views of each image that are encoded once and then reused;
            2 bytes x (size)^2 per view in memory (0.5 MB at 512 px).
        transform: turns a record of a public image into SAM's input, with or without random steps; ``None`` only
            loads, scales, normalises and pads. See :class:`ViewedImages`.
        bf16: bfloat16 for the encoder; ``"auto"`` enables it where the processor supports it, ``true`` elsewhere warns
            and uses float32.
        trainer: builds MONAI's trainer, if there is anything to fit, with its loss, its handlers and a builder of its
            optimizer (``"_mode_": "callable"`` in a bundle): see ``samfed_monai.teacher.training.TRAINER``. Another
            trainer is another fit; handlers are compared by class and public attributes.
        bundle_root: see ``checkpoint``.
        datalist_hash: recorded in the adapter.
        progress: show progress bars with the time left.

    Raises:
        Refused: missing weights, an empty part of ``D_p``, numbers out of range; all together.
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
        start_from: str | Path | None = None,
        adapt: str = "lora",
        size: int = 512,
        rank: int = 4,
        epochs: int | None = None,
        learning_rate: float | None = None,
        lora_learning_rate: float | None = None,
        batch_size: int = 4,
        seed: int = 0,
        views: int = 1,
        cached_views: int = 4,
        transform: Compose | None = None,
        bf16: Switch = "auto",
        trainer: partial[SupervisedTrainer] = TRAINER,
        bundle_root: str | Path | None = None,
        datalist_hash: str = "",
        progress: bool = True,
    ) -> None:
        problems = Problems()
        epochs = default_epochs(adapt) if epochs is None else epochs
        problems.extend(one_of("teacher -> adapt", adapt, Adapt))
        problems.extend(one_of("teacher -> base", base, sorted(SAM_BUILDERS)))
        problems.extend(side_problems("teacher -> size", size))
        if adapt == Adapt.LORA.value and base in SAM_BUILDERS:
            with problems.collected(), torch.device("meta"):  # of any size, without memory
                apply_lora(SAM_BUILDERS[base](64), rank)
        for name, count in {"epochs": epochs, "batch_size": batch_size, "cached_views": cached_views}.items():
            problems.extend(whole(f"teacher -> {name}", count, least=1))
        problems.extend(in_range("teacher -> learning_rate", learning_rate, above=0, or_null=True))
        problems.extend(in_range("teacher -> lora_learning_rate", lora_learning_rate, above=0, or_null=True))
        for name, records in {"train": train_records, "held-out": held_out_records}.items():
            unlabelled = sum("label" not in record for record in records)
            if not records or unlabelled:
                found = f"{unlabelled} without a label" if records else "no image"
                hint = "give the public set at least two labelled images"
                problems.add(f"public set, {name} part", found=found, expected="labelled images", hint=hint)
        problems.extend([*views_problems("teacher -> views", views), *switch_problems("teacher -> bf16", bf16)])
        if not (isinstance(trainer, partial) and callable(trainer.keywords.get("optimizer"))):
            expected = 'monai.engines.SupervisedTrainer with an "optimizer", both with "_mode_": "callable"'
            problems.add("teacher -> trainer", found=repr(trainer), expected=expected)
        else:
            optimizer = trainer.keywords["optimizer"]
            set_by_fit = sorted(_SET_BY_FIT & {*trainer.keywords, *getattr(optimizer, "keywords", ())})
            expected, hint = "no argument that the fit sets", "leave it out; set epochs and learning_rate"
            problems.unless(not set_by_fit, "teacher -> trainer", set_by_fit, expected, hint)
            try:
                optimizer([{"params": [torch.zeros(1, requires_grad=True)], "lr": 1e-3}])
            except (TypeError, ValueError) as error:
                problems.add("teacher -> optimizer", found=str(error), expected="arguments that it accepts")
        if adapt == "none" and any(record.get("classes") for record in train_records):
            expected, hint = "lora or decoder, with several classes", "set adapt to lora or decoder"
            problems.add("teacher -> adapt", found=repr(adapt), expected=expected, hint=hint)
        if base in SAM_BUILDERS:
            with problems.collected():
                self.checkpoint = Path(checkpoint) if checkpoint else find_checkpoint(base, bundle_root)
        problems.refuse_if_any()
        self.records = {"train": list(train_records), "held_out": list(held_out_records)}
        self.test_records = dict(test_records or {})
        self.output, self.base, self.adapt = Path(output), base, Adapt(adapt)
        self.size, self.epochs, self.batch_size, self.seed = size, epochs, batch_size, seed
        self.rank = rank if self.adapt is Adapt.LORA else 0
        self.start = None if start_from is None else Path(start_from)
        self._require_start("adapt", "base", "size", "rank")
        self.learning_rate = learning_rate or default_learning_rate(base, self.adapt.value)
        self.lora_learning_rate = (lora_learning_rate or LORA_LEARNING_RATE) if self.rank else None
        self.cached_views = cached_views if self.adapt is Adapt.DECODER else 0
        self.views, self.bf16, self.progress = views, bf16, progress
        self.transform = transform or without_views(size)
        self.trainer, self._trainer_content = trainer, content_of(trainer)  # before handlers are attached
        self.datalist_hash = datalist_hash

    def run(self) -> dict[str, Any]:
        """Fits and writes the adapter, unless it exists already.

        Returns:
            ``after`` (Dice of ``held_out`` and of each test set); the kept ``epoch``, ``history`` of the held-out Dice,
            ``seconds``, ``output``, ``sha256`` of the adapter, ``public_hash``, ``reused``. The same is written to
            ``output`` with the suffix ``.fit.json``.
        """
        started = time.perf_counter()
        require_writable(self.output)
        self.base_sha256 = sha256_file(self.checkpoint)
        self._require_start("base_sha256", "outputs")
        self.public_hash = public_hash(self.records["train"] + self.records["held_out"], ordered=False)
        test_hashes = {name: public_hash(records, ordered=False) for name, records in self.test_records.items()}
        hashes = {"fit": self._fit_hash(), "exam": canonical_hash({"views": self.views, "tests": test_hashes})}
        reused, found = False, "a folder" if self.output.is_dir() else "another file"
        with suppress(Refused):
            reused = read_header(self.output).fit.get("hash") == hashes["fit"]
            found = "the adapter of another fit"
        if self.output.exists() and not reused:
            expected, hint = "a new file, or the adapter of this fit", "choose another name"
            hint += "" if self.output.is_dir() else ", or delete that file: adapters are not replaced"
            raise refused("teacher.json -> output", f"{self.output}, {found}", expected, hint)
        if reused:
            logger.info("teacher: reusing %s, which was fitted with the same settings", self.output)
            with suppress(Refused):  # a missing or damaged result is computed again
                recorded: dict[str, Any] = read_json(self._result_file)
                if recorded.get("hashes") == hashes and recorded.get("sha256") == sha256_file(self.output):
                    return recorded | {"reused": True}
        sam = build_sam(self.base, self.checkpoint, self.size)
        fold_batch_norms(sam.image_encoder)
        if self.outputs > 1 and not reused:
            sam.add_class_masks(self.outputs)
        # the decoder is trained and evaluated on embeddings, which are the same in every epoch
        teacher = Teacher(sam.to(best_device()), sha256="", size=self.size, views=1, bf16=self.bf16)
        evaluation = TeacherEvaluation(teacher, keep_embeddings=self.adapt is not Adapt.LORA)
        if reused:
            load_adapter(self.output, sam, base=self.base, base_sha256=self.base_sha256, size=self.size)
        else:
            self._fit(sam, evaluation, hashes["fit"])
        result = {"after": self._evaluate(evaluation), **read_header(self.output).fit["training"]}
        result |= {} if self.start is None else {"start": self.start.name}
        result |= {"public_hash": self.public_hash, "output": str(self.output), "sha256": sha256_file(self.output)}
        result |= {"reused": reused, "seconds": round(time.perf_counter() - started, 1), "hashes": hashes}
        write_json(self._result_file, result)
        self._log_result(result["after"])
        return result

    @property
    def outputs(self) -> int:
        """Number of logits per pixel: 1, or K + 1 for public labels of K classes."""
        classes = self.records["train"][0].get("classes")
        return 1 if classes is None else int(classes) + 1

    def _require_start(self, *names: str) -> None:
        """Refuses a ``start_from`` that differs from this fit in one of ``names``, or without anything to fit."""
        if self.start is None:
            return
        header, problems, where = read_header(self.start), Problems(), "teacher.json -> start_from"
        if self.adapt is Adapt.NONE:
            problems.add(where, found=repr(self.start.name), expected="null with adapt none, which fits nothing")
            names = ()
        for name in names:
            found, expected = (getattr(value := getattr(source, name), "value", value) for source in (header, self))
            if found != expected:
                hint = f"choose another adapter, or set {name} as in the adapter, from which the fit continues"
                problems.add(where, f"{self.start.name} with {name} {found}", f"{name} {expected}", hint)
        problems.refuse_if_any()

    def _log_result(self, after: Mapping[str, float]) -> None:
        logger.info("teacher (%s, %s, %d px), Dice:", self.base, self.adapt.value, self.size)
        for name, dice in after.items():
            logger.info("  %-20s %.3f", name, dice)
        low = [name for name, dice in after.items() if dice < LOW]
        if low:
            logger.warning(
                "the teacher's Dice is below %.1f on %s: it is wrong there more often than right. Check that public "
                "masks match their images, then fit longer (epochs) or on more public images that look like these",
                LOW,
                " and ".join("public images held out" if name == "held_out" else name for name in low),
            )

    def _fit(self, sam: PromptFreeSam, evaluation: TeacherEvaluation, fit_hash: str) -> None:
        """Trains the parts of ``adapt`` and writes the adapter."""
        with torch.random.fork_rng(devices=[]):  # LoRA's initialisation must not change other random numbers
            torch.manual_seed(derive_seed(self.seed, "lora"))
            parts = prepare(sam, self.adapt, self.rank)
        if self.start is not None:
            load_adapted(self.start, sam, read_header(self.start))
            logger.info("teacher: continuing from %s", self.start.name)
        rates = {"lora": self.lora_learning_rate or 0.0, "decoder": self.learning_rate}
        outcome: dict[str, Any] = {"epoch": 0, "history": []}
        progress_file = self.output.with_name(self.output.name + ".progress.safetensors")
        if self.adapt is not Adapt.NONE:
            network = TrainedSam(sam, self.bf16)
            training = Training(
                network,
                [(parameters, rates[part]) for part, parameters in parts.items()],
                self._batches(network),
                lambda: evaluation({"held_out": self.records["held_out"]}, keep=True)["held_out"],
                epochs=self.epochs,
                progress_file=progress_file,
                fit_hash=fit_hash,
                progress=self.progress,
                trainer=self.trainer,
            )
            state = training.run()
            outcome = {"epoch": state.kept_epoch, "history": state.history}
        fit = {"hash": fit_hash, "datalist_hash": self.datalist_hash, "training": outcome}
        identity = self.base, self.base_sha256, self.adapt, self.rank, self.size, self.public_hash
        save_adapter(self.output, sam, Adapter(*identity, fit, self.outputs))
        progress_file.unlink(missing_ok=True)

    def _batches(self, network: TrainedSam) -> ImageBatches:
        images = ViewedImages(self.records["train"], self.transform, seed=self.seed)
        settings: dict[str, Any] = {"batch_size": self.batch_size, "seed": self.seed}
        if self.adapt is Adapt.DECODER:
            return EmbeddedBatches(images, network, views=self.cached_views, progress=self.progress, **settings)
        return ImageBatches(images, **settings)

    def _evaluate(self, evaluation: TeacherEvaluation) -> dict[str, float]:
        sets = {"held_out": self.records["held_out"], **self.test_records}
        total = sum(map(len, sets.values()))
        with progress_bar(total=total, desc="teacher, Dice", unit="image", show=self.progress) as bar:
            scores = evaluation(sets, views=self.views, done=bar.update)
        return {name: mean(dice) for name, dice in scores.items()}

    @property
    def _result_file(self) -> Path:
        return self.output.with_suffix(".fit.json")

    def _fit_hash(self) -> str:
        names = "adapt", "base", "base_sha256", "size", "rank", "epochs", "learning_rate", "batch_size", "seed"
        other_names = "lora_learning_rate", "cached_views", "outputs", "public_hash", "datalist_hash"
        settings = {name: getattr(self, name) for name in (*names, *other_names)}
        settings["start_from"] = None if self.start is None else sha256_file(self.start)
        settings |= {"transform": content_of(self.transform.flatten().transforms), "trainer": self._trainer_content}
        parts = {name: [record["image_sha256"] for record in records] for name, records in self.records.items()}
        return canonical_hash({"settings": settings, "parts": parts})
