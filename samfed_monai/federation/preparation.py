"""Checks before round 0: fingerprints that server and sites compare, and images, labels and classes of a list."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from samfed_monai import __version__
from samfed_monai.config.targets import is_from_catalogue
from samfed_monai.core.errors import Problem, Problems, Refused
from samfed_monai.core.io import canonical_hash, read_json, sha256_file, write_json
from samfed_monai.core.seeds import derive_seed
from samfed_monai.core.text import counted
from samfed_monai.data import DataList, check_datalist, load_records
from samfed_monai.data.classes import class_mismatch, is_multiclass
from samfed_monai.data.datalist import confine
from samfed_monai.federation.workflow import WorkflowConfig
from samfed_monai.metrics.quality import Colours, colours_of
from samfed_monai.networks import find_checkpoint

if TYPE_CHECKING:
    from samfed_monai.federation.plan import Plan

logger = logging.getLogger(__name__)

_PREFIX = "sam_"


def is_sam(config: WorkflowConfig, network: str) -> bool:
    """Whether a network of the catalogue is SAM itself, which needs a checkpoint."""
    return network.startswith(_PREFIX) and is_from_catalogue(config.parser())


def base_sam(config: WorkflowConfig, network: str) -> str | None:
    """SHA-256 of the SAM checkpoint under a client network; ``None`` if the network is not a SAM.

    Args:
        config: a run's or a site's ``train.json``.
        network: name of the network.

    Raises:
        Refused: the file is missing here; the message has the command that fetches it.
    """
    if not is_sam(config, network):
        return None
    given = config.parser().get()["network_def"].get("checkpoint")
    path = Path(given) if given else find_checkpoint(network.removeprefix(_PREFIX))
    status = path.stat()
    return _sha256(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=16)
def _sha256(path: Path, size: int, changed: int) -> str:
    return sha256_file(path)


#: Fingerprint to its name in error messages, and how to fix a difference.
_FINGERPRINTS = {
    "plan": ("plan and bundle", "use the same bundle and the same job at server and site; only paths may differ"),
    "version": ("samfed-monai", "install the same version at both ends"),
    "public_list": (
        "public part of the data list",
        "copy the server's list: public images, masks, their order and mask_threshold must be the same",
    ),
    "list": (
        "this site's part of the data list",
        "write it again from the server's list with `samfed prepare split`, or give the server this list",
    ),
    "base_sam": (
        "SAM's weights in this site's network",
        "install the server's checkpoint with `samfed weights`; frozen weights are not sent",
    ),
}


def sam_fingerprint(config: WorkflowConfig, network: str) -> dict[str, str]:
    """Hash of the SAM under a site's network; empty if the network is not a SAM or the file is missing."""
    try:
        sha256 = base_sam(config, network)
    except (Refused, OSError) as error:
        logger.error("%s", error)
        return {}
    return {} if sha256 is None else {"base_sam": sha256}


def own_fingerprints(
    plan: Plan, bundle_root: str | Path, datalist: DataList, site: str, sam: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Fingerprints that server and site compare: version, and hashes of plan and bundle, public images and site's part.

    Args:
        plan: of the run.
        bundle_root: folder of the bundle.
        datalist: the list; the site's part is included if the list has it.
        site: name of the site.
        sam: its :func:`sam_fingerprint`.
    """
    part = {"list": datalist.part_hash(site)} if site in datalist.sites else {}
    common = {"plan": plan.fingerprint(bundle_root), "version": __version__, "public_list": datalist.public_hash()}
    return {**common, **part, **(sam or {})}


def differences(expected: Mapping[str, str], own: Mapping[str, str]) -> list[Problem]:
    """One problem for each fingerprint in ``expected`` that differs at this site; other words are ignored."""
    return [
        Problem(name, found=own.get(key, "none")[:12], expected=f"the server's {expected[key][:12]}", hint=hint)
        for key, (name, hint) in _FINGERPRINTS.items()
        if key in expected and own.get(key) != expected[key]
    ]


#: Number of files hashed again at each start of a run whose data were checked before.
SAMPLE = 32


def check_data(datalist: DataList, data_root: str | Path, *, cache_dir: str | Path, verify: bool = False) -> None:
    """Decodes and hashes every file of the list, unless they passed this check before.

    A passed check is recorded with the list's hash and the sizes and modification times of all files, so that a
    comparison of many runs reads the images once. Bit errors on disk change neither size nor time: :data:`SAMPLE` other
    files are hashed again at each start until all were (fault 68).

    Args:
        datalist: the frozen list.
        data_root: folder that its paths are relative to.
        cache_dir: folder where a passed check is recorded.
        verify: read everything again, even after a passed check.

    Raises:
        Refused: with every problem of every file.
    """
    state_hash = _seal(datalist, Path(data_root))
    list_hash = datalist.hash  # read once: each access serialises the whole list
    record_file = Path(cache_dir) / "checked" / f"{list_hash[:16]}.json"
    record: object = None
    with suppress(Refused):  # a missing or damaged record is made again
        record = read_json(record_file)
    checks = record.get("looks") if isinstance(record, dict) and record.get("seal") == state_hash else None
    if type(checks) is int and not verify:
        problems = _changed(datalist, list_hash, Path(data_root), checks)
        logger.info("data list %s was checked before and no file has changed", list_hash[:12])
    else:
        problems, checks = check_datalist(datalist, data_root), -1
    if problems:
        record_file.unlink(missing_ok=True)
        raise Refused(problems)
    write_json(record_file, {"datalist": list_hash, "seal": state_hash, "looks": checks + 1})


def _changed(datalist: DataList, list_hash: str, data_root: Path, checks: int) -> list[Problem]:
    """Problems of files with changed bytes, among the :data:`SAMPLE` files that this start checks."""
    files = {item.image: item.sha256 for _, _, item in datalist.items()}
    files |= {item.label: item.label_sha256 for _, _, item in datalist.items() if item.label and item.label_sha256}
    order = sorted(files, key=lambda name: derive_seed(0, list_hash, name))
    sample = [order[(checks * SAMPLE + offset) % len(order)] for offset in range(min(SAMPLE, len(order)))]
    problems = Problems()
    for name in sample:
        if sha256_file(confine(data_root, name)) != files[name]:
            found, expected = "changed content with the same size and date", f"SHA-256 {files[name][:12]}…"
            hint = "restore the file, then check all files with `samfed federate … --verify`"
            problems.add(name, found=found, expected=expected, hint=hint)
    return list(problems)


def image_problems(
    datalist: DataList, data_root: str | Path, *, cache_dir: str | Path, verify: bool = False
) -> list[Problem]:
    """Result of :func:`check_data` that may leave a site: only a number of problems; the site's log has them."""
    try:
        check_data(datalist, data_root, cache_dir=cache_dir, verify=verify)
    except Refused as refused:
        logger.error("%s", refused)
        found, hint = counted(len(refused.problems), "problem"), "see this site's log"
        return [Problem("images", found=found, expected="images and masks as they were listed", hint=hint)]
    return []


def no_public_images(datalist: DataList, *, supervised: bool) -> list[Problem]:
    """The problem of a list without public images, in a run that learns from them.

    Args:
        datalist: the frozen list, or the server's part of it.
        supervised: whether sites learn from labels of their own, which needs no public images.
    """
    if datalist.public or supervised:
        return []
    found, expected = "none", "public images with masks (this variant learns from them)"
    hint = "add some with `samfed prepare ... --public`, or choose a variant that learns from the sites' own labels"
    return [Problem(f"{datalist.name} -> public", found, expected, f"{hint}, for instance pfedsam")]


def class_problems(datalist: DataList, config: WorkflowConfig) -> list[Problem]:
    """Problems of a list's classes: names that differ from the run's, or a teacher that segments only one class.

    Args:
        datalist: the frozen list, or a site's or the server's part of it.
        config: the run's ``train.json``.
    """
    classes, problems = config.optional("classes"), Problems()
    problems.extend(class_mismatch(datalist.classes, classes, f"{datalist.name or 'data list'} -> classes"))
    if is_multiclass(classes) and config.value("teacher_adapt") == "none":
        expected = "an adapted SAM (the original SAM gives only one mask)"
        hint = "use lora or decoder, so that the decoder learns a mask for each class"
        problems.add("train.json -> teacher_adapt", found="'none'", expected=expected, hint=hint)
    return list(problems)


def _seal(datalist: DataList, data_root: Path) -> str:
    files = []
    for _, _, item in datalist.items():
        for name in filter(None, (item.image, item.label)):
            path = data_root / name
            status = path.stat() if path.is_file() else None
            files.append([name, status.st_size if status else None, status.st_mtime_ns if status else None])
    return canonical_hash([str(data_root.resolve()), sorted(files)])


def public_colours(config: WorkflowConfig, datalist: DataList, data_root: str | Path) -> Colours | None:
    """Range of colours of a list's public images after ``validate#preprocessing``."""
    preprocessing = config.value("validate#preprocessing")
    records = load_records(datalist, data_root, split="public", with_labels=True)
    return Colours.of(colours_of(np.asarray(preprocessing(dict(record))["image"])) for record in records)
