"""Labels in folders that their owner declares to be scribbles, points, boxes or blocks, and which of them are masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from samfed_monai.core.errors import Problem, Problems, Refused, did_you_mean
from samfed_monai.core.words import counted
from samfed_monai.data.datalist import LabelKind, confine
from samfed_monai.data.reading import decode_grey, read_bytes
from samfed_monai.data.sources.found import Found
from samfed_monai.data.weak_labels import IGNORE

EXPECTED = "0 background, 1 foreground, 255 not labelled, in masks as in weak labels"


def declare_kinds(
    found: Mapping[str, Sequence[Found]], given: Mapping[str, str], root: Path, *, spared: Mapping[str, str]
) -> tuple[dict[str, list[Found]], list[Problem]]:
    """The images with the kinds that are declared of their sites' labels.

    At such a site 255 is "not labelled" in every file. A label of 0 and 1 alone says all of its image, so it is a mask,
    which may be measured with; every other one is of the declared kind. One of 0 and 255 alone could be a mask or
    scribbles without foreground, and is refused.

    Args:
        found: images of each site.
        given: site to one of :class:`LabelKind`; ``""`` is every site that is neither named nor spared.
        root: the data root.
        spared: sites whose labels have to be masks, with what for.

    Returns:
        Images of each site, and what is wrong with the declaration or with the labels. What else is wrong with a file
        is found where it is read as what it is declared to be.
    """
    problems, names = Problems(), [kind.value for kind in LabelKind]
    for site, kind in given.items():
        if site and site not in found:
            hint = did_you_mean(site, found)
            problems.add("--label-kind", found=f"the site {site!r}", expected=f"one of {sorted(found)}", hint=hint)
        elif kind not in names:
            where, hint = f"--label-kind of {site or 'all sites'}", did_you_mean(kind, names)
            problems.add(where, found=repr(kind), expected=f"one of {names}", hint=hint)
        elif site in spared and kind != LabelKind.MASK:
            hint = "leave it out, or let another site's images be those"
            problems.add(f"--label-kind of {site}", found=repr(kind), expected=f"masks: {spared[site]}", hint=hint)
    every = {} if "" not in given else dict.fromkeys(found.keys() - spared.keys(), given[""])
    kinds = {site: kind for site, kind in {**every, **given}.items() if site and kind != LabelKind.MASK}
    declared = {site: list(ones) for site, ones in found.items()}
    if not len(problems):
        for site in sorted(kinds):
            declared[site], wrong = _of_site(site, found[site], kinds[site], root, named=site in given)
            problems.extend(wrong)
    return declared, list(problems)


def _of_site(
    site: str, ones: Sequence[Found], kind: str, root: Path, *, named: bool
) -> tuple[list[Found], list[Problem]]:
    labels = [one.label for one in ones if one.label is not None]
    with ThreadPoolExecutor() as pool:
        values = dict(zip(labels, pool.map(lambda label: _values(label, root), labels), strict=True))
    unclear = sorted(label for label, there in values.items() if IGNORE in there and there <= {0, IGNORE})
    weak = {label for label, there in values.items() if not there <= {0, 1}} - set(unclear)
    where, problems = f"--label-kind of {site}", Problems()
    masks = f"if {site} has masks alone, give --label-kind {site}=mask"
    if unclear:
        who = counted(len(unclear), "label has", "labels have")
        found_here = f"{who} the values 0 and 255 alone, such as {unclear[0]}: masks, or weak labels without foreground"
        hint = f"write foreground as 1, that of masks, too; {masks}"
        problems.add(where, found=found_here, expected=EXPECTED, hint=hint)
    elif labels and not weak:
        found_here = f"{counted(len(labels), 'label')} without any 255: masks alone"
        problems.add(where, found=found_here, expected=EXPECTED, hint=f"write what is not labelled as 255; {masks}")
    elif named and not labels:
        hint = f"put labels into {site}/masks, each called as its image"
        problems.add(where, found="no labels", expected=f"some of the kind {kind}", hint=hint)
    return [one.with_kind(kind) if one.label in weak else one for one in ones], list(problems)


def _values(label: str, root: Path) -> set[int]:
    """Values of a label's file; of one that is no weak label, because it cannot be read as grey, none of a mask's."""
    try:
        return set(np.unique(decode_grey(read_bytes(confine(root, label, where=label)), label)).tolist())
    except Refused:
        return {-1}
