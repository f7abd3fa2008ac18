"""The target of an attack: the released model of a finished run of your own, and images with known membership."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from samfed_monai.core.errors import Problem, refused
from samfed_monai.core.run_log import progress_bar
from samfed_monai.core.validators import require

PUBLIC = "public"


@dataclass(frozen=True)
class Images:
    """Images of one group.

    Args:
        name: ``public``, or the name of the site.
        member: whether the released model was trained on them.
        images: (N, 3, H, W) float in [0, 1], preprocessed as for scoring.
        labels: (N, 1, H, W) float, 0 or 1; ``None`` without masks.
    """

    name: str
    member: bool
    images: Tensor
    labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Target:
    """A model with its training images (members) and images that it was not trained on.

    Args:
        network: the released model; attacks train only copies of it.
        fresh: builds the same network with random weights.
        loss: ``(logits, label) -> scalar``, the training loss.
        groups: public images, then each site's training and test images.
        learning_rate: of the sites' optimizer.
        about: facts about the run, for the report.
    """

    network: nn.Module
    fresh: Callable[[], nn.Module]
    loss: Callable[..., Tensor]
    groups: Sequence[Images]
    learning_rate: float = 1e-3
    about: Mapping[str, Any] = field(default_factory=dict)

    def copy(self) -> nn.Module:
        """Returns a copy of the released model in training mode."""
        return copy.deepcopy(self.network).train()

    @property
    def private(self) -> Images:
        """Training images of the first site with masks, else of the first site, for reconstruction attacks.

        Raises:
            Refused: no site has training images.
        """
        groups = [each for each in self.groups if each.member and each.name != PUBLIC and len(each)]
        if not groups:
            raise refused("data list", found="no training images of a site", expected="training images of a site")
        return next((each for each in groups if each.labels is not None), groups[0])

    def masks_of(self, group: Images, count: int) -> Tensor:
        """Returns the labels of a group's first images, or else the model's predictions; (count, 1, H, W)."""
        if group.labels is not None:
            return group.labels[:count]
        with torch.no_grad():
            logits = copy.deepcopy(self.network).eval()(group.images[:count])
        return (logits[:, :1] > 0).float()

    @property
    def blank(self) -> Tensor:
        """The mean of the public images, else of the test images (3, H, W): an attacker's guess without an update."""
        filled = [each for each in self.groups if len(each)]
        known = [each.images for each in filled if each.member and each.name == PUBLIC]
        return torch.cat(known or [each.images for each in filled if not each.member]).mean(dim=0)


def target_of_run(
    folder: str | Path,
    *,
    bundle: str | None = None,
    datalist: str | Path | None = None,
    data_root: str | Path | None = None,
    images: int = 64,
) -> Target:
    """Returns the released model of a finished run, its training images, and images that it was not trained on.

    No component of the run's own configuration is built: network, loss and preprocessing are those of the bundle on
    this machine, with the run's network name and image size.

    Args:
        folder: the run folder.
        bundle: folder or name; ``None`` takes that of the run's command.
        datalist, data_root: ``None`` takes those of the run's command.
        images: largest number of images of each group, chosen by hash.

    Raises:
        Refused: no finished run; a run without a global model; a bundle, list or images that cannot be found; another
            list than the run's, or images that changed since.
    """
    from samfed_monai.config import bundle_of_command, find_bundle
    from samfed_monai.config.options import MONAI_IDS
    from samfed_monai.config.parse import reached
    from samfed_monai.core.model_file import network_overrides, settings_of
    from samfed_monai.data import DataList, load_records
    from samfed_monai.data.classes import is_multiclass
    from samfed_monai.data.partitions import subset
    from samfed_monai.federation.run_models import RunModels
    from samfed_monai.federation.workflow import client_config, trained_split
    from samfed_monai.reports.run_data import RunData

    models = RunModels(folder)
    models.require()
    run = RunData.read(folder)
    given: dict[str, Any] = {"bundle": bundle or bundle_of_command(run.results.get("command"))}
    given |= {"datalist": datalist or run.setting("datalist"), "data_root": data_root or run.setting("data_root")}
    missing = [f"--{name.replace('_', '-')}" for name, value in given.items() if not value]
    require([Problem(f"{folder} -> command", f"no {name}", "that of the run", f"give {name}") for name in missing])
    listed, root = DataList.load(str(given["datalist"])), str(given["data_root"])
    if not run.used(listed):
        raise refused(f"{given['datalist']} -> hash", "another list", "the run's, with its training images", "name it")
    if is_multiclass(listed.classes):
        found, expected = f"a run of the classes {listed.classes}", "a run of binary masks"
        raise refused(str(folder), found=found, expected=expected, hint="attacks support only one class")
    ids = {**settings_of(models.server), **network_overrides(models.server)}
    config = client_config(find_bundle(str(given["bundle"])), run.results["variant"], ids).without_pretraining()
    loss, preprocessing, rate, _ = config.values("loss", "validate#preprocessing", "learning_rate", "initialize")

    fresh = partial(config.value, "network_def")
    network: nn.Module = fresh()
    network.load_state_dict(models.tensors(), strict=False)
    content = config.content()
    split = trained_split(content)
    trains_at_sites = "stream" in reached(content, MONAI_IDS) or split != "public"
    trained_images = min(images, run.run.get("config", {}).get("client", {}).get("limit") or images)

    def group(part: str, site: str | None, member: bool, limit: int = images) -> Images:
        load = partial(load_records, listed, root, split=part, site=site, with_labels=True, weak_labels=True)
        records = load()
        if site and split == "labelled":  # images without a label were not trained on
            records = [record for record in records if "label" in record]
        chosen = [records[index]["id"] for index in subset([record["image_sha256"] for record in records], limit)]
        records = [record for record in load(verify=chosen) if record["id"] in chosen]
        shown = progress_bar(records, desc=f"{site or PUBLIC}, {part}", unit="image")
        return _images(site or PUBLIC, member, shown, preprocessing)

    groups = [group("public", None, True)]
    for site in models.trained:
        if trains_at_sites:  # a network trained only on public images has no members at a site
            groups.append(group("unlabelled", site, True, trained_images))
        groups.append(group("test", site, False))
    about = {"run": Path(folder).resolve().name, "variant": run.results["variant"], "round": models.round + 1}
    about |= {"network": str(ids.get("network_name", type(network).__name__)), "image_size": ids.get("image_size")}
    return Target(network.eval(), fresh, loss, groups, learning_rate=float(rate), about=about)


def _images(name: str, member: bool, records: Iterable[Mapping[str, Any]], preprocessing: Callable[..., Any]) -> Images:
    """Returns a group's images, with labels if all of them have masks; weak labels do not count."""
    from samfed_monai.data.datalist import LabelKind

    images, masks = [], []
    for record in records:
        masked = record.get("label_kind", LabelKind.MASK) == LabelKind.MASK
        item = preprocessing({key: value for key, value in record.items() if key != "label" or masked})
        images.append(torch.as_tensor(item["image"]).float())
        masks += [torch.as_tensor(item["label"]).float()] if "label" in item else []
    if not images:
        return Images(name, member, torch.empty(0))
    return Images(name, member, torch.stack(images), torch.stack(masks) if len(masks) == len(images) else None)
