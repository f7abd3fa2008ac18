"""The colonoscopy scene: masks, looks of the sites, and that the skin scene stays as it was."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from samfed_monai.core.errors import Refused
from samfed_monai.data.synthetic import render_synthetic
from samfed_monai.data.synthetic_scene.polyp import PUBLIC, SITES, ColonLook, draw_frame, look_of, render_colon
from tests.cli.test_prepare import run
from tests.data.test_synthetic import every_item

FEW = {"scene": "polyp", "sites": 2, "images_per_site": 2, "public": 2, "validation": 1, "test": 1, "size": (64, 80)}
IDS = ["public", "1", "2", "3", "4"]


@pytest.mark.parametrize("look", [PUBLIC, *SITES], ids=IDS)
def test_polyps_are_one_piece_visible_and_of_the_sites_size(look):
    shares = []
    for index in range(12):
        image, mask = render_colon(np.random.default_rng(index), (96, 128), look)
        inside = mask > 0
        assert set(np.unique(mask)) == {0, 255}
        assert ndimage.label(inside)[1] == 1
        # black only where the lamp does not reach, never because the frame covers it: the frame is (5, 5, 6)
        assert np.median(image[inside].max(axis=-1)) > 25
        shares.append(inside.mean())
    low, high = look.radius  # a circle's share of the image; outlines wander and frames cut, hence the factors
    assert 0.4 * np.pi * low**2 * 0.75 < np.mean(shares) < 2 * np.pi * high**2 * 0.75


def test_public_polyps_are_smaller_than_those_of_some_sites():
    def size(look: ColonLook) -> float:
        return float(
            np.median([(render_colon(np.random.default_rng(n), (64, 80), look)[1] > 0).mean() for n in range(10)])
        )

    sizes = [size(look) for look in SITES]
    assert max(sizes) > 3 * size(PUBLIC)
    assert max(sizes) > 2.5 * min(sizes)


def test_sites_look_different():
    """The mean colour differs between sites by more than it does between halves of one site."""

    def colour(look, start: int) -> np.ndarray:
        images = [render_colon(np.random.default_rng(start + index), (64, 80), look)[0] for index in range(16)]
        return np.mean([image[16:48, 20:60].mean(axis=(0, 1)) for image in images], axis=0) / 255

    first, second = ([colour(look, start) for look in (PUBLIC, *SITES)] for start in (0, 100))
    within = max(np.abs(a - b).max() for a, b in zip(first, second, strict=True))
    between = [np.abs(first[i] - first[j]).max() for i in range(5) for j in range(i)]
    assert np.median(between) > 2 * within


def test_the_box_is_green_and_covers_the_mucosa():
    frame = draw_frame(np.random.default_rng(0), (96, 128), ColonLook(box=1.0, text=0.0))
    corner = frame.cover[-20:-4, 4:20]
    assert not frame.visible[-20:-4, 4:20].any()
    assert (corner[..., 3] == 1).all()
    assert (corner[..., 1] > corner[..., 0]).mean() > 0.9
    bare = draw_frame(np.random.default_rng(0), (96, 128), ColonLook(box=0.0))
    assert bare.visible[48, 64]
    assert not bare.visible[0, 0]
    assert (bare.over(np.ones((96, 128, 3), np.float32))[0, 0] < 0.05).all()


def test_a_list_of_polyps_has_names_and_bytes_of_its_own(tmp_path):
    polyps = render_synthetic(tmp_path / "polyp", **FEW)
    skin = render_synthetic(tmp_path / "skin", **{**FEW, "scene": "skin"})
    assert (polyps.name, skin.name) == ("synthetic-polyp-0", "synthetic-0")
    assert render_synthetic(tmp_path / "again", **FEW).hash == polyps.hash
    assert not {item.sha256 for item in every_item(polyps)} & {item.sha256 for item in every_item(skin)}
    with Image.open(tmp_path / "polyp" / polyps.public[0].image) as image:
        assert (image.format, image.size) == ("JPEG", (80, 64))


def test_further_sites_vary_the_four():
    assert look_of(3, 0) is SITES[3]
    assert look_of(4, 0) == look_of(4, 0) != look_of(4, 1)


def test_the_command_takes_the_scene_and_unknown_ones_are_refused(tmp_path, capsys):
    words = ("--sites", 1, "--images-per-site", 1, "--public", 1, "--size", 64, 64, "--no-report")
    assert run("synthetic", tmp_path, "--scene", "polyp", *words, "--output", tmp_path / "list.json") == 0
    assert "synthetic-polyp-0: 1 public image, 1 site\n" in capsys.readouterr().out
    with pytest.raises(Refused, match=r"scene: expected one of \['skin', 'polyp'\], found 'lung'"):
        render_synthetic(tmp_path, scene="lung")
