"""Tiny folders in the official layouts of polyp collections, with made-up pictures."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from tests.data.making import disc, picture, save

JPEG = {"quality": 60}


def pairs(root: Path, images: str, masks: str, count: Iterable[int] = (1, 2, 3), *, first: int = 0, **kwargs) -> None:
    """Pictures ``images`` and discs ``masks``, both templates over ``n``."""
    for n in count:
        save(root / images.format(n=n), picture(first + n))
        save(root / masks.format(n=n), disc(radius=3 + n % 6), **kwargs)


def clinicdb(root: Path, count: Iterable[int] = (1, 25, 26), suffix: str = "tif", inside: str = "") -> None:
    folder = f"CVC-ClinicDB/{inside}"
    pairs(root, f"{folder}Original/{{n}}.{suffix}", f"{folder}Ground Truth/{{n}}.{suffix}", count, first=1000)


def colondb(root: Path, count: Iterable[int] = (1, 38, 39, 301)) -> None:
    """As it was first released: everything in one folder."""
    folder = "CVC-ColonDB/CVC-ColonDB/"
    pairs(root, folder + "{n}.bmp", folder + "p{n}.bmp", count, first=2000)
    pairs(root, folder + "s{n}.bmp", folder + "c{n}.bmp", count)


def cvc300(root: Path) -> None:
    pairs(root, "CVC-300/bbdd/{n}.bmp", "CVC-300/gtpolyp/{n}.bmp", (1, 39, 300), first=3000)
    save(root / "CVC-300/gtlumen/1.bmp", disc())


def etis(root: Path) -> None:
    pairs(root, "ETIS-LaribPolypDB/ETIS-LaribPolypDB/{n}.tif", "ETIS-LaribPolypDB/Ground Truth/p{n}.tif", first=4000)


def endotect(root: Path) -> None:
    folder = "EndoTect_2020_Segmentation_Test_Dataset"
    pairs(root, folder + "/images/0a94-{n}.jpg", folder + "/masks/0a94-{n}.jpg", first=5000, **JPEG)


def kvasir(root: Path, count: Iterable[int] = (1, 2, 3)) -> None:
    pairs(root, "Kvasir-SEG/images/cju{n}.jpg", "Kvasir-SEG/masks/cju{n}.jpg", count, first=6000, **JPEG)
    (root / "Kvasir-SEG" / "kavsir_bboxes.json").write_text("{}")


def polypgen(root: Path) -> None:
    top = "PolypGen2021_MultiCenterData_v3"
    for centre in range(1, 7):
        name, images = f"{top}/data_C{centre}", f"images_C{centre}/x{{n}}.jpg"
        pairs(root, f"{name}/{images}", f"{name}/masks_C{centre}/x{{n}}_mask.jpg", first=7000 + 100 * centre, **JPEG)
        save(root / f"{name}/bbox_image_C{centre}/x1_mask_bbox.jpg", disc())
    save(root / f"{top}/data_C3/images_C3/C3_EndoCV2021_00489_.jpg", picture(7999))
    save(root / f"{top}/data_C3/masks_C3/C3_EndoCV2021_00489_mask.jpg", disc())
    for number in (1, 2):
        name, stem = f"{top}/sequenceData/positive/seq{number}", f"seq{number}/s{number}_{{n}}"
        pairs(root, f"{name}/images_{stem}.jpg", f"{name}/masks_{stem}_mask.jpg", first=8000 + 100 * number)
    save(root / f"{top}/sequenceData/negativeOnly/seq1_neg/a.jpg", picture(8900))
    save(root / f"{top}/imagesAll_positive/x1.jpg", picture(7101))


def neopolyp(root: Path) -> None:
    """Red and green discs on black, as colour JPEG."""
    for n in range(2):
        save(root / f"bkai-igh-neopolyp/train/train/{n}e1.jpeg", picture(9000 + n))
        pixels = np.zeros((24, 32, 3), np.uint8)
        pixels[..., n] = np.asarray(disc())
        path = root / f"bkai-igh-neopolyp/train_gt/train_gt/{n}e1.jpeg"
        save(path, Image.fromarray(pixels), quality=90, subsampling=0)
    save(root / "bkai-igh-neopolyp/test/test/t.jpeg", picture(9100))
