"""Synthetic dermoscopy- or colonoscopy-like sites on disk, for the demo and the tests; no two sites look alike."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import numpy as np
from PIL import Image

from samfed_monai.core.errors import Problems, refused
from samfed_monai.core.io import sha256_bytes, write_bytes
from samfed_monai.core.progress import progress_bar
from samfed_monai.core.seeds import derive_seed
from samfed_monai.data.datalist import DataList, Item, Site
from samfed_monai.data.synthetic_scene import PUBLIC, Look, look_of, render_scene

logger = logging.getLogger(__name__)


PUBLIC_FOLDER = "public"
SCENES = tuple(PUBLIC)
_SMALLEST = 64  # pixels; below, hairs and rulers are thinner than a pixel and lesions a handful of them


def render_synthetic(
    folder: str | Path,
    *,
    scene: str = "skin",
    sites: int = 4,
    labelled: bool = False,
    images_per_site: int = 40,
    public: int = 24,
    validation: int = 8,
    test: int = 12,
    size: tuple[int, int] = (192, 256),
    seed: int = 0,
    progress: bool = False,
) -> DataList:
    """Renders sites that look different from each other and returns their data list.

    Image ``index`` of a site depends on ``(seed, site, index)`` only: asking for more images or sites changes none of
    those that exist. The public images have a plain look of their own; every site shifts away from it (colour cast,
    light, size of what is to be found; hair, rulers and skin tone, or frame, print and glare). It does not imitate any
    diagnosis and is no substitute for real images.

    Args:
        folder: receives ``<site>/images/*.jpg`` and ``<site>/masks/*.png`` (values 0 and 255); the public images lie
            in ``public/``.
        scene: ``"skin"`` (pigmented lesions) or ``"polyp"`` (polyps in the colon; the public ones are small).
        sites: number of sites, named ``site-1`` on; the first four have looks of their own, further ones vary them.
        labelled: also writes masks of the unlabelled images (the oracle variant needs them).
        images_per_site: unlabelled images of each site.
        public: labelled public images.
        validation: labelled validation images of each site.
        test: labelled test images of each site.
        size: (H, W) in pixels, at least 64 each.
        seed: every seed gives other images.
        progress: shows a progress bar.

    Returns:
        a :class:`~samfed_monai.data.DataList` whose paths are relative to ``folder``; it is not saved.

    Raises:
        Refused: a count or size is out of range.
    """
    _check(
        scene=scene,
        sites=sites,
        images_per_site=images_per_site,
        public=public,
        validation=validation,
        test=test,
        size=size,
    )
    folder, purpose = Path(folder), ("synthetic",) if scene == "skin" else ("synthetic", scene)
    splits = {"unlabelled": images_per_site, "validation": validation, "test": test}
    bar = progress_bar(total=public + sites * sum(splits.values()), desc="synthetic", unit="image", show=progress)

    def render(site: str, look: Look, indices: range, with_mask: bool) -> list[Item]:
        items = []
        for index in indices:
            random = np.random.default_rng(derive_seed(seed, *purpose, site, index))
            items.append(_render_one(folder, f"{site}_{index:06d}", site, look, random, size, with_mask))
            bar.update()
        return items

    with bar:
        public_items = render(PUBLIC_FOLDER, PUBLIC[scene], range(public), True)
        site_entries = {}
        for number in range(sites):
            name, look, start, entries = f"site-{number + 1}", look_of(scene, number, seed), 0, {}
            # A split starts at its own multiple of 100,000: more unlabelled images leave the others as they are.
            for split, count in splits.items():
                with_mask = labelled or split != "unlabelled"
                entries[split] = render(name, look, range(start, start + count), with_mask)
                start += _SPLIT_STRIDE
            site_entries[name] = Site(**entries)
    logger.info("rendered %d synthetic images of %d sites into %s", bar.total, sites, folder)
    return DataList(name=list_name(scene, seed), public=public_items, sites=site_entries)


def list_name(scene: str, seed: int) -> str:
    """What the list of rendered images is called."""
    return f"synthetic-{seed}" if scene == "skin" else f"synthetic-{scene}-{seed}"


_SPLIT_STRIDE = 100_000


def _check(*, scene: str, sites: int, size: tuple[int, int], **counts: int) -> None:
    problems = Problems()
    problems.unless(scene in SCENES, "synthetic -> scene", scene, f"one of {list(SCENES)}")
    if sites < 1:
        problems.add("synthetic -> sites", found=str(sites), expected="at least 1")
    for name, count in counts.items():
        if not 0 <= count < _SPLIT_STRIDE:
            problems.add(f"synthetic -> {name}", found=str(count), expected=f"0 to {_SPLIT_STRIDE - 1}")
    if len(size) != 2 or min(size) < _SMALLEST:
        problems.add("synthetic -> size", found=str(tuple(size)), expected=f"(H, W), each at least {_SMALLEST}")
    problems.refuse_if_any()


def _render_one(
    folder: Path,
    name: str,
    site: str,
    look: Look,
    random: np.random.Generator,
    size: tuple[int, int],
    with_mask: bool,
) -> Item:
    image, mask = render_scene(random, size, look)
    image_name, mask_name = f"{site}/images/{name}.jpg", f"{site}/masks/{name}.png"
    image_hash = _save(folder / image_name, image, format="JPEG", quality=look.quality)
    if not with_mask:
        return Item(image_name, image_hash)
    return Item(image_name, image_hash, mask_name, _save(folder / mask_name, mask, format="PNG"))


def _save(path: Path, pixels: np.ndarray, **options: object) -> str:
    """Writes an image atomically, over no other, and returns the SHA-256 of its bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, **options)  # type: ignore[arg-type]
    content = buffer.getvalue()
    if path.exists() and path.read_bytes() != content:
        expected, hint = "none, or the very one to be rendered", "render another seed, scene or size into a new folder"
        raise refused(path, found="another image", expected=expected, hint=hint)
    write_bytes(path, content)
    return sha256_bytes(content)
