"""Whether SEE's pseudo-labels improve: Dice of the stored pseudo-labels of a run's last two rounds.

Dice is computed against the sites' own masks, which the run did not use. A run keeps the stores of its last two rounds:

    samfed federate samfed_polyp --variant see_few --datalist list.json --data-root DATA --rounds 2 --output-dir RUN
    python benchmarks/see.py RUN --datalist list.json --data-root DATA
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from urllib.parse import unquote

import numpy as np
import torch
from PIL import Image

from samfed_monai.data import DataList
from samfed_monai.data.soft_masks import resize_probabilities
from samfed_monai.methods.see import PseudoLabelStore
from samfed_monai.metrics import segmentation_scores


@dataclass(frozen=True)
class Change:
    """The pseudo-labels of one image in two rounds.

    Args:
        before, after: Dice between the mean of the pseudo-labels and the image's mask, in [0, 1].
        replaced: whether the later round has different ones.
        used: whether a later one is certain enough for training.
    """

    before: float
    after: float
    replaced: bool
    used: bool


def changes(old: PseudoLabelStore, new: PseudoLabelStore, masks: Mapping[str, np.ndarray]) -> dict[str, Change]:
    """Changes of the images that both stores have.

    Args:
        old, new: stores of two rounds.
        masks: (H, W) bool by the image's SHA-256.
    """
    found = {}
    for image, mask in masks.items():
        kept = old.get(image), new.get(image)
        if all(kept):
            first, second = (torch.stack([label for label, _ in each]) for each in kept)
            used = any(scores.sure() for _, scores in kept[1])
            replaced = not torch.equal(first, second)
            found[image] = Change(_dice(first.mean(0), mask), _dice(second.mean(0), mask), replaced, used)
    return found


def summary(site: str, images: Iterable[Change]) -> str:
    """One line of text: number of images, number of replaced pseudo-labels, and their Dice before and after."""
    images = list(images)
    replaced = [each for each in images if each.replaced]
    text = f"{site}: {len(images)} images, Dice {_mean(images, 'before')} to {_mean(images, 'after')}"
    better = sum(each.after > each.before for each in replaced)
    more = f", {better} of them better: Dice {_mean(replaced, 'before')} to {_mean(replaced, 'after')}"
    used = sum(each.used for each in images)
    return f"{text}; {len(replaced)} replaced{more if replaced else ''}; {used} are certain enough for training"


def _mean(images: list[Change], name: str) -> str:
    return f"{fmean(getattr(each, name) for each in images):.3f}" if images else "–"


def _mask(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.array(picture.convert("L")) > 127


def _dice(label: torch.Tensor, mask: np.ndarray) -> float:
    size = (mask.shape[0], mask.shape[1])
    return segmentation_scores((resize_probabilities(label[None], size)[0, 0] > 0.5).numpy(), mask).dice


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--datalist", type=Path, required=True)
    parser.add_argument("--data-root", type=Path, required=True)
    options = parser.parse_args()
    listed, everywhere = DataList.load(options.datalist), list[Change]()
    for folder in sorted(options.run.glob("pseudo_labels/*")):
        stores = [PseudoLabelStore(), PseudoLabelStore()]
        paths = sorted(folder.glob("*.safetensors"))[-2:]
        for store, path in zip(stores, paths, strict=True):
            store.load(path)
        site = listed.sites[unquote(folder.name)]
        paths_of = {item.sha256: str(item.label) for item in site.unlabelled if item.label and not item.weak}
        masks = {image: _mask(options.data_root / path) for image, path in paths_of.items()}
        found = list(changes(stores[0], stores[1], masks).values())
        everywhere += found
        sys.stdout.write(f"{summary(f'{unquote(folder.name)}, rounds {paths[0].stem} and {paths[1].stem}', found)}\n")
    sys.stdout.write(f"{summary('all', everywhere)}\n")


if __name__ == "__main__":
    main()
