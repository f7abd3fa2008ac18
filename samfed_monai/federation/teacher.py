"""The teacher of a run: an adapter given by the user, fitted by an earlier run, or fitted now."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samfed_monai.core.errors import Problem, Refused
from samfed_monai.core.io import canonical_hash, locked, read_json, sha256_bytes, sha256_file, write_bytes
from samfed_monai.data import DataList, public_hash
from samfed_monai.data.records import read_as
from samfed_monai.federation.workflow import EVALUATION, PLACES, WorkflowConfig

if TYPE_CHECKING:
    from samfed_monai.federation.plan import Places, Plan
    from samfed_monai.networks import Teacher


logger = logging.getLogger(__name__)


@contextmanager
def single_writer(path: str | Path) -> Iterator[bool]:
    """Holds a lock on ``path`` while its maker works; says whether it exists already.

    Where the platform has no locks, two runs may make the same thing twice, which costs time and nothing else.

    Example::

        with single_writer(path) as exists:
            if not exists:
                make(path)
    """
    with locked(path, waiting=lambda: logger.info("another run is making %s; waiting for it", Path(path).name)):
        yield Path(path).exists()


TEST_TIME = frozenset(("views", "evaluate_on", "evaluate_limit", "progress", "score"))
"""Ids of ``teacher.json`` that say how an adapter is used or examined; none of them makes it another one."""


@dataclass(frozen=True)
class TeacherStage:
    """Finds or fits the adapter with the bundle's own ``teacher.json``, and loads the frozen teacher.

    Args:
        bundle_root: folder of the bundle; its ``models/`` is searched for SAM's checkpoint first.
        overrides: ids of ``teacher.json`` to values, from ``federate.json -> teacher``.
        cache_dir: fitted adapters are kept here by the hash of everything that determines them.
    """

    bundle_root: Path
    overrides: Mapping[str, Any]
    cache_dir: Path
    _exam: dict[str, Any] = field(default_factory=dict, init=False, repr=False)
    _loaded: dict[str, Path | None] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(cls, plan: Plan, places: Places) -> TeacherStage:
        """That of a plan on this machine."""
        return cls(places.bundle_root, {**plan.teacher, **places.teacher}, places.cache)

    @property
    def base(self) -> str:
        """Name of the SAM."""
        name: str = self._config().value("base")
        return name

    @property
    def file(self) -> Path | None:
        """The adapter that :meth:`load` took last; ``None`` for SAM as it comes."""
        return self._loaded.get("adapter")

    def option(self, name: str) -> Any:
        """An option of ``teacher.json``; ``None`` where the bundle does not have it."""
        return self._config().optional(name)

    def kept(self, content: bytes) -> Path:
        """A file of the cache with what the server sends to the sites, named by its hash."""
        sha256 = sha256_bytes(content)
        path = self.cache_dir / "adapters" / f"{sha256}.safetensors"
        if not path.is_file() or sha256_file(path) != sha256:
            write_bytes(path, content)
        return path

    def content(self) -> dict[str, Any]:
        """The recipe as JSON content, without paths."""
        content = self._config().content()
        if content.get("score") is True:  # the default, and what runs did before there was a choice
            del content["score"]
        return content

    @property
    def start_sha256(self) -> str | None:
        """Of the adapter that the fit goes on from; ``None`` where it begins with SAM as it comes."""
        start = self._config().optional("start_from")
        return None if start is None else sha256_file(start)

    @property
    def scored(self) -> tuple[str, ...]:
        """Splits of the sites on which the teacher itself is scored, for its row in tables."""
        return () if self._config().optional("score") is False else ("test",)

    def about(self, teacher: Teacher, adapt: str) -> dict[str, Any]:
        """What a report says of the teacher; ``after``, and ``before``, as the fit of its adapter reported them."""
        base = self._config().value("base")
        used = {"size": teacher.size, "views": teacher.views, **({} if self.scored else {"score": False})}
        return {"adapt": adapt, "base": base, **used, **self._exam}

    def dry_run(self, adapt: str) -> None:
        """Builds the fit without images and without weights, so that what cannot work is refused before any work.

        Args:
            adapt: as in :meth:`load`; ``off`` has no teacher.

        Raises:
            Refused: ``score`` is no switch, or a setting of ``teacher.json`` that
                :class:`~samfed_monai.teacher.TeacherFit` cannot do with.
        """
        score = self._config().optional("score") if adapt != "off" else None
        if score not in (None, True, False):
            raise Refused([Problem("teacher -> score", found=repr(score), expected="true or false")])
        if adapt != "off" and self._config().optional_id("fit"):
            from samfed_monai.bundle.images import check_public_limit

            check_public_limit(self._config().optional("public_limit"))
            nothing = [{"label": ""}]
            pretended = {"train_records": nothing, "held_out_records": nothing, "test_records": {}, "datalist_hash": ""}
            pairs = {f"fit#{name}": value for name, value in pretended.items()}
            self._config().with_overrides({**pairs, "adapt": adapt, "checkpoint": "unread"}).value("fit")

    def checkpoint(self) -> Path:
        """SAM's checkpoint.

        Raises:
            Refused: it is neither in the bundle's ``models/`` nor in the weights folder; the message has the command.
        """
        from samfed_monai.networks import find_checkpoint

        given = self._config().value("checkpoint")
        return Path(given) if given else find_checkpoint(self._config().value("base"), self.bundle_root)

    def load(self, datalist: DataList, data_root: str | Path, *, adapt: str, adapter: str | Path | None) -> Teacher:
        """The frozen teacher; fits its adapter first when there is none.

        Args:
            datalist: its public part is what the adapter is fitted on.
            data_root: folder that the list's paths are relative to.
            adapt: ``lora``, ``decoder`` or ``none`` (SAM as it comes).
            adapter: path of an adapter to use as it is, or ``None``; left aside with ``none``, so that rows with and
                without an adapted SAM can be compared by one command.
        """
        return self._teacher(self.adapter(datalist, data_root, adapt=adapt, adapter=adapter), self.checkpoint())

    def adapter(
        self, datalist: DataList, data_root: str | Path, *, adapt: str, adapter: str | Path | None
    ) -> Path | None:
        """The adapter file of :meth:`load`, fitted first where there is none; ``None`` for SAM as it comes."""
        from samfed_monai.networks.sam.adapter import read_header

        checkpoint = self.checkpoint()
        if adapt == "none":
            if adapter:
                logger.info("teacher: SAM as it comes (teacher_adapt is none); the given adapter is not used")
            return None
        if not adapter:
            return self._fit(datalist, data_root, adapt=adapt, checkpoint=checkpoint)
        path = Path(adapter)
        self._exam["adapt"] = read_header(path).adapt.value  # what the file is, whatever the bundle asks for
        self._exam.update(_recorded(path))
        return path

    def fitted(self, adapter: Path) -> Teacher:
        """A teacher by the file of its adapter alone, which must be of this ``base``, its weights and this ``size``.

        Raises:
            Refused: another SAM or size, damaged tensors.
        """
        self._exam.update(_recorded(adapter))
        return self._teacher(adapter, self.checkpoint())

    def _teacher(self, adapter: Path | None, checkpoint: Path) -> Teacher:
        from samfed_monai.core.own_process import best_device
        from samfed_monai.networks import Teacher

        self._loaded["adapter"] = adapter
        config = self._config()
        return Teacher.load(
            base=config.value("base"),
            checkpoint=checkpoint,
            adapter=adapter,
            size=config.value("size"),
            views=config.value("views"),
            bf16="auto" if (bf16 := config.optional("bf16")) is None else bf16,
            device=best_device(),
        )

    def _fit(self, datalist: DataList, data_root: str | Path, *, adapt: str, checkpoint: Path) -> Path:
        config = self._config().with_overrides({"adapt": adapt})
        made_of = config.content(without=PLACES | EVALUATION | TEST_TIME)
        public, checkpoint_sha256 = public_hash(datalist), sha256_file(checkpoint)
        about = {"config": made_of, "public": public, "checkpoint": checkpoint_sha256, **read_as(datalist)}
        groups = [item.group for item in datalist.public]  # they decide which images are held out
        start = {} if (sha256 := self.start_sha256) is None else {"start_from": sha256}
        key = canonical_hash(about | start | ({"groups": groups} if any(groups) else {}))
        path = self.cache_dir / "teacher" / f"{key[:16]}.safetensors"
        with single_writer(path) as exists:
            if exists:
                logger.info("teacher: reusing adapter %s", path.name)
            if not exists or self.overrides.get("evaluate_on"):  # else as it is
                self._run(config, datalist, data_root, checkpoint=checkpoint, output=path)
        self._exam.update(_recorded(path))
        return path

    def _run(
        self, config: WorkflowConfig, datalist: DataList, data_root: str | Path, *, checkpoint: Path, output: Path
    ) -> None:
        from samfed_monai.config.monai_parser import ConfigWorkflow
        from samfed_monai.networks.sam.adapter import read_header

        datalist_file = output.with_suffix(".datalist.json")
        datalist.save(datalist_file)
        # a fit of the same public images is kept, whatever the rest of the list that it was made with
        fitted = {"fit#datalist_hash": read_header(output).fit.get("datalist_hash", "")} if output.exists() else {}
        workflow = ConfigWorkflow(
            config_file=config.paths(),
            logging_file=False,
            workflow_type=None,
            **{
                **config.overrides,
                **fitted,
                "bundle_root": str(self.bundle_root),
                "datalist": str(datalist_file),
                "data_root": str(data_root),
                "checkpoint": str(checkpoint),
                "output": str(output),
                "evaluate_on": config.overrides.get("evaluate_on"),
            },
        )
        workflow.initialize()
        workflow.run()
        workflow.finalize()

    def _config(self) -> WorkflowConfig:
        return WorkflowConfig(self.bundle_root, ("configs/teacher.json",), dict(self.overrides))


def _recorded(adapter: Path) -> dict[str, Any]:
    """Dice by image set, from the file that a fit leaves beside its adapter."""
    beside = adapter.with_suffix(".fit.json")
    if not beside.is_file():
        return {}
    fitted = read_json(beside)
    if fitted.get("sha256") != sha256_file(adapter):
        return {}
    return {name: fitted[name] for name in ("after", "start") if name in fitted}
