"""What one site is made of, from a plan and from where things lie: its list, its teacher, its client."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from samfed_monai.core.errors import Problem, Refused
from samfed_monai.data import DataList, load_records
from samfed_monai.federation.algo import SamFedAlgo
from samfed_monai.federation.envelope import MessageRefused
from samfed_monai.federation.plan import Places, Plan
from samfed_monai.federation.stages.cast import Cast
from samfed_monai.federation.stages.clients import make_client
from samfed_monai.federation.stages.own_teacher import OwnTeacher
from samfed_monai.federation.stages.papers import sam_paper
from samfed_monai.federation.stages.site_teacher import SiteTeacher
from samfed_monai.federation.stages.soft_masks import SiteMasks
from samfed_monai.federation.stages.teacher import TeacherStage
from samfed_monai.federation.stages.workflow_config import WorkflowConfig

if TYPE_CHECKING:
    from samfed_monai.networks import Teacher

logger = logging.getLogger(__name__)


@dataclass
class Shared:
    """What the sites of one process have in common; a site in a process of its own makes its own.

    Args:
        cast: who takes part.
        datalist: the whole list, whose images were checked.
        teacher: the loaded teacher, while it is needed.
    """

    cast: Cast
    datalist: DataList
    teacher: Teacher | None = None


class SiteParts:
    """Makes each part when it is first asked for.

    Args:
        site, plan, places, shared: as :class:`SiteNode` takes them.

    Raises:
        Refused: the plan has no such site, or the bundle cannot be used.
    """

    def __init__(self, site: str, plan: Plan, places: Places, shared: Shared | None) -> None:
        self.site, self.plan, self.places, self.shared = site, plan, places, shared
        if site not in (*self.cast.sites, *self.cast.unseen):
            expected = f"one of {[*self.cast.sites, *self.cast.unseen]}"
            raise Refused([Problem("site", found=repr(site), expected=expected, mend="name a site of the plan")])

    @property
    def trains(self) -> bool:
        """False for a hospital that takes no part."""
        return self.site in self.cast.sites

    @cached_property
    def cast(self) -> Cast:
        """Who takes part, and with which network."""
        if self.shared is not None:
            return self.shared.cast
        return Cast.of(self.plan, self.places, DataList("", []))  # the plan names everybody

    @cached_property
    def datalist(self) -> DataList:
        """The public images and this site's own."""
        own = self.places.sites.get(self.site, {}).get("datalist")
        if self.shared is not None and own is None:
            return self.shared.datalist.for_site(self.site)
        return DataList.load(own or self.places.datalist).for_site(self.site)

    def listed(self) -> DataList:
        """:attr:`datalist`, refused in words that may leave the site.

        Raises:
            MessageRefused: there is no list, or it does not have this site.
        """
        try:
            return self.datalist
        except Refused as refused:
            logger.error("%s: %s", self.site, refused)
            found, mend = "none that can be used", "this site's log says why"
            raise MessageRefused(
                [Problem("data list", found=found, expected="one with this site's part", mend=mend)]
            ) from None

    def public_records(self) -> list[dict[str, Any]]:
        """The public images of this site's own list, as files here."""
        return load_records(self.datalist, self.data_root, split="public")

    def training_images(self) -> int:
        """How many of this site's own images it trains on: all, or those with a label where it learns from labels."""
        items = self.datalist.sites[self.site].unlabelled
        return sum(item.label is not None for item in items) if self.cast.supervised else len(items)

    def sam_paper(self) -> dict[str, str]:
        """Hash of the SAM under this site's network, as it lies here."""
        cast = self.cast
        config = cast.config.with_overrides(cast.overrides.get(self.site, {}))
        return sam_paper(config, cast.networks.get(self.site, cast.server_network))

    @cached_property
    def teacher(self) -> SiteTeacher | None:
        """The teacher at this site; ``None`` where the plan has none."""
        adapt = self.cast.config.value("teacher_adapt")
        if adapt == "off":
            return None
        cache, alone = self.places.cache, self.shared is None
        stage = TeacherStage.of(self.plan, self.places)
        memory = cache / "prepared" / f"{self.plan.hash[:16]}.{quote(self.site, safe=' ')}.json" if alone else None
        recipe = stage.self_training if self.trains and adapt != "none" else None
        own = None if recipe is None else OwnTeacher(self.site, recipe, stage, self.masks())
        return SiteTeacher(stage, self.masks(), adapt=adapt, memory=memory, own=own, trains=self.trains)

    def client(self) -> SamFedAlgo:
        """An initialized client of this site."""
        return make_client(
            self._config(),
            self.site,
            seed=self.plan.seed,
            output_dir=self.places.output_dir / "evaluation",
            trains=self.trains,
            keep_optimizer=self.plan.keep_optimizer,
        )

    def masks(self) -> SiteMasks:
        """This site's soft-mask store."""
        cast = self.cast
        config = cast.config.with_overrides(cast.overrides.get(self.site, {})) if self.trains else cast.at_server()
        return SiteMasks(self.places.cache, self.datalist, self.data_root, limit=config.optional("limit"))

    @property
    def data_root(self) -> str:
        """Folder that the list's paths are relative to."""
        return str(self.places.sites.get(self.site, {}).get("data_root", self.places.data_root))

    def _config(self) -> WorkflowConfig:
        if not self.trains:
            return self.cast.at_server().with_overrides(self.places.sites.get(self.site, {}))
        stored: dict[str, Any] = {}
        if self.teacher is not None:
            stored = {"store_dir": str(self.masks().store_dir(self.site)), "teacher_sha256": self.teacher.sha256}
        own = {**self.cast.overrides[self.site], "network_name": self.cast.networks[self.site]}
        return self.cast.config.with_overrides({**stored, **own})
