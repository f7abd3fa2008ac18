"""What a site does to have a teacher of its own: pseudo-labels of its images, then more training."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from samfed_monai.core.io import canonical_hash
from samfed_monai.data import SoftMaskStore, load_records, public_hash
from samfed_monai.federation.stages.made_once import made_once
from samfed_monai.federation.stages.soft_masks import SiteMasks
from samfed_monai.federation.stages.teacher import TeacherStage

if TYPE_CHECKING:
    from samfed_monai.networks import Teacher
    from samfed_monai.teacher import SelfTraining
    from samfed_monai.teacher.exam import Pair, Records

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OwnTeacher:
    """Makes a site's own teacher before round 0; neither it nor anything of it leaves the site.

    Args:
        site: name of the site.
        recipe: how it is trained.
        stage: how the plan uses a teacher.
        masks: the site's list, public images among it, and its store, whose folder (0700) keeps the adapter.
    """

    site: str
    recipe: SelfTraining
    stage: TeacherStage
    masks: SiteMasks

    def of(self, teacher: Teacher, adapter: Path) -> Teacher:
        """The site's own teacher, made out of the server's; the server's, where it finds nothing in the site's images.

        Args:
            teacher: the server's; its masks are the first pseudo-labels. It stays as it is.
            adapter: file of its (first) adapter, where training begins.
        """
        for generation in range(self.recipe.generations):
            recipe = replace(self.recipe, generations=1, seed=self.recipe.seed + generation)
            made = self._next(teacher, adapter, recipe)
            if made is None:
                logger.warning("%s: the teacher finds nothing in any image here; it is used as it is", self.site)
                break
            teacher, adapter = made
        return teacher

    def _next(self, teacher: Teacher, adapter: Path, recipe: SelfTraining) -> tuple[Teacher, Path] | None:
        """The teacher that learns from the masks of this one, and its adapter; ``None`` where these are empty."""
        from samfed_monai.teacher.self_training import PseudoLabelled, confident

        datalist, root = self.masks.datalist, self.masks.data_root
        self.masks.fill(teacher, ("unlabelled",))
        store = SoftMaskStore(self.masks.store_dir(self.site), teacher_sha256=teacher.sha256)
        chosen = confident(self.masks.records(self.site, "unlabelled"), store, recipe.keep)
        if not chosen:
            return None
        public = load_records(datalist, root, split="public", with_labels=True)
        made_of = {
            "teacher": teacher.sha256,
            "recipe": recipe.content(),
            "images": [record["image_sha256"] for record in chosen],
            "public": public_hash(public, ordered=False),
        }
        key = canonical_hash(made_of)
        path = self.masks.store_dir(self.site) / "teachers" / f"{key[:16]}.safetensors"  # in the private folder
        with made_once(path) as exists:
            logger.info("%s: own teacher from %d images%s", self.site, len(chosen), ", reused" if exists else "")
            if not exists:
                self._make(teacher, adapter, recipe, path, key, PseudoLabelled(chosen, store), public)
        return self.stage.load(datalist, root, adapt="lora", adapter=path), path

    @staticmethod
    def _make(
        teacher: Teacher,
        adapter: Path,
        recipe: SelfTraining,
        path: Path,
        key: str,
        own: Sequence[Pair],
        public: Records,
    ) -> None:
        from samfed_monai.networks.sam.adapter import read_header, save_adapter
        from samfed_monai.teacher.self_training import self_train

        progress_file = path.with_name(path.name + ".progress.safetensors")
        sam = self_train(
            teacher.sam,
            recipe,
            own,
            public,
            size=teacher.size,
            progress_file=progress_file,
            fit_hash=key,
        )
        save_adapter(path, sam, replace(read_header(adapter), fit={"hash": key, "self_training": recipe.content()}))
        progress_file.unlink(missing_ok=True)
