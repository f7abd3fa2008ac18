"""Small files and lists for the tests of this room."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from samfed_monai.core.io import sha256_file
from samfed_monai.data.datalist import DataList, Item, Site
from samfed_monai.data.prepare import Options


def picture(seed: int, height: int = 24, width: int = 32) -> Image.Image:
    """Smooth random colours, different for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR)


def disc(height: int = 24, width: int = 32, *, value: int = 255, radius: float = 8) -> Image.Image:
    """A mask with a disc left of the middle."""
    rows, columns = np.ogrid[:height, :width]
    inside = (rows - height / 2) ** 2 + (columns - width / 3) ** 2 < radius**2
    return Image.fromarray((inside * value).astype(np.uint8))


def save(path: Path, image: Image.Image, **kwargs: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **kwargs)
    return path


def drawn(root: Path, *names: str) -> None:
    """Pictures, and discs where a folder is called ``masks``, each another one."""
    for number, name in enumerate(names):
        save(root / name, disc(radius=3 + number % 6) if "masks" in Path(name).parts else picture(number))


def jpeg(image: Image.Image, **kwargs: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", **kwargs)
    return stream.getvalue()


def site(root: Path, name: str, images: int, masks: int, *, first: int = 0) -> None:
    """``root/name/{images,masks}`` with numbered pictures, the first of them with masks."""
    for number in range(images):
        save(root / name / "images" / f"{name}_{number:03d}.png", picture(first + number))
        if number < masks:
            save(root / name / "masks" / f"{name}_{number:03d}.png", disc(radius=3 + number % 6))


def options(tmp_path: Path, **more: object) -> Options:
    """Of ``list.json`` without a report, unless others are asked for."""
    return Options(**{"output": tmp_path / "list.json", "report": False, **more})


def item(root: Path, image: str, label: str | None = None, group: str | None = None) -> Item:
    return Item(image, sha256_file(root / image), label, sha256_file(root / label) if label else None, group)


def pair(root: Path, name: str, seed: int) -> Item:
    """A new picture with its mask, as an item."""
    save(root / "images" / f"{name}.png", picture(seed))
    save(root / "masks" / f"{name}.png", disc(radius=3 + seed % 6))
    return item(root, f"images/{name}.png", f"masks/{name}.png")


def small_list(root: Path) -> DataList:
    """Two public images and one site with one image in each split."""
    made = [pair(root, name, seed) for seed, name in enumerate(("p0", "p1", "u0", "v0", "t0"))]
    return DataList("small", made[:2], {"site-1": Site([made[2]], [made[3]], [made[4]])})
