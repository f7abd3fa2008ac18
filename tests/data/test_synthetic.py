"""Synthetic sites: what is on disk, that seeds decide, that sites differ, beyond the written looks too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from samfed_monai.core.errors import Refused
from samfed_monai.core.io import sha256_file
from samfed_monai.data.synthetic import PUBLIC, SITES, look_of, render_scene, render_synthetic
from tests.cli.test_prepare import run

FEW = {"sites": 2, "images_per_site": 3, "public": 2, "validation": 1, "test": 2, "size": (64, 80)}
LOOKS = [(scene, number, look) for scene in PUBLIC for number, look in enumerate((PUBLIC[scene], *SITES[scene]))]


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic")
    return folder, render_synthetic(folder, **FEW)


def hashes(datalist):
    return {item.sha256 for _, _, item in datalist.items()}


def test_counts_names_hashes_and_formats(rendered):
    folder, datalist = rendered
    assert list(datalist.sites) == ["site-1", "site-2"]
    assert len(datalist.public) == 2
    for site in datalist.sites.values():
        assert (len(site.unlabelled), len(site.validation), len(site.test)) == (3, 1, 2)
    assert len(hashes(datalist)) == len(list(datalist.items())) == 14
    for _, _, item in datalist.items():
        assert sha256_file(folder / item.image) == item.sha256
        with Image.open(folder / item.image) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (80, 64))
        if item.label:
            assert sha256_file(folder / item.label) == item.label_sha256
            with Image.open(folder / item.label) as mask:
                assert (mask.format, mask.mode, mask.size) == ("PNG", "L", (80, 64))
                assert set(np.unique(np.asarray(mask))) == {0, 255}


def test_unlabelled_images_have_no_mask_on_disk_unless_asked_for(rendered, tmp_path):
    folder, datalist = rendered
    unlabelled = datalist.sites["site-1"].unlabelled
    assert all(item.label is None and item.label_sha256 is None for item in unlabelled)
    assert len(list((folder / "site-1/masks").iterdir())) == 3  # validation and test
    labelled = render_synthetic(tmp_path, labelled=True, **FEW)
    assert all((tmp_path / item.label).is_file() for item in labelled.sites["site-1"].unlabelled)
    assert [item.sha256 for item in labelled.sites["site-1"].unlabelled] == [item.sha256 for item in unlabelled]


def test_bytes_depend_on_seed_and_scene_alone_and_more_images_change_none(rendered, tmp_path):
    _, datalist = rendered
    datalist.save(tmp_path / "list.json")
    assert render_synthetic(tmp_path / "again", **FEW).hash == type(datalist).load(tmp_path / "list.json").hash
    other = render_synthetic(tmp_path / "other", seed=1, **FEW)
    polyps = render_synthetic(tmp_path / "polyps", scene="polyp", **FEW)
    assert (datalist.name, other.name, polyps.name) == ("synthetic-0", "synthetic-1", "synthetic-polyp-0")
    assert not hashes(datalist) & (hashes(other) | hashes(polyps))
    more = render_synthetic(tmp_path / "more", **{**FEW, "sites": 3, "images_per_site": 4, "public": 3})
    assert hashes(datalist) < hashes(more)


@pytest.mark.parametrize(("scene", "number", "look"), LOOKS, ids=[f"{scene}-{number}" for scene, number, _ in LOOKS])
def test_growths_are_one_piece_seen_and_of_the_sites_size(scene, number, look):
    shares, darker = [], []
    for index in range(12):
        image, mask = render_scene(np.random.default_rng(index), (96, 128), look)
        inside = mask > 0
        shares.append(inside.mean())
        assert set(np.unique(mask)) == {0, 255}
        assert ndimage.label(inside)[1] == 1
        assert np.median(image[inside].max(axis=-1)) > 25  # the frame is black
        ring = ndimage.binary_dilation(inside, iterations=6) & ~ndimage.binary_dilation(inside, iterations=2)
        darker.append(image[inside].mean() < image[ring].mean())
    assert scene == "polyp" or np.mean(darker) > 0.9
    low, high = look.radius  # a circle's share of the image; outlines wander and frames cut, hence the factors
    assert 0.4 * np.pi * low**2 * 0.75 < np.mean(shares) < 2 * np.pi * high**2 * 0.75


def test_the_frame_is_black_and_print_is_at_the_upper_left():
    look = replace(PUBLIC["polyp"], margin=(0.1, 0.1), marks=1.0, noise=(0.0, 0.0))
    image, _ = render_scene(np.random.default_rng(0), (96, 128), look)
    assert image[:2].max() < 25 > image[-2:].max()
    dark, _ = render_scene(np.random.default_rng(0), (96, 128), replace(look, exposure=(0, 0), glare=(0, 0)))
    rows, columns = np.nonzero((dark > 128).all(axis=-1))
    assert 15 < rows.min() < rows.max() < 60
    assert columns.max() < 64


@pytest.mark.parametrize("scene", PUBLIC)
def test_sites_look_different(scene):
    """The mean colour differs between sites by more than it does between halves of one site."""

    def colour(look, start: int) -> np.ndarray:
        images = [render_scene(np.random.default_rng(start + index), (64, 80), look)[0] for index in range(16)]
        return np.median([image[16:48, 20:60].mean(axis=(0, 1)) for image in images], axis=0) / 255

    first, second = ([colour(look, start) for look in (PUBLIC[scene], *SITES[scene])] for start in (0, 100))
    within = max(np.abs(a - b).max() for a, b in zip(first, second, strict=True))
    between = [np.abs(first[i] - first[j]).max() for i in range(5) for j in range(i)]
    assert min(between) > 0.03
    assert np.median(between) > 2 * within


def test_further_sites_vary_the_four_within_the_limits_of_the_radius():
    assert look_of("skin", 0, 0) is SITES["skin"][0]
    assert look_of("polyp", 5, 0) == look_of("polyp", 5, 0) != look_of("polyp", 5, 1)
    for seed in range(20):
        look, base = look_of("skin", 4, seed), SITES["skin"][0]
        assert 0.07 <= look.radius[0] < look.radius[1] <= 0.42
        assert all(0.9 <= gain / light <= 1.08 for gain, light in zip(look.light, base.light, strict=True))
        assert 0.75 <= look.radius[0] / base.radius[0] <= 1.25


def test_bad_arguments_are_refused_together(tmp_path):
    with pytest.raises(
        Refused, match=r"3 problems(.|\n)*sites: expected a whole number >= 1(.|\n)*test(.|\n)*size.*\(32, 80\)"
    ):
        render_synthetic(tmp_path, sites=0, test=-1, size=(32, 80))
    with pytest.raises(Refused, match=r"scene: expected one of \['skin', 'polyp'\], found 'lung'"):
        render_synthetic(tmp_path, scene="lung")
    assert list(Path(tmp_path).iterdir()) == []


def test_the_command_takes_the_scene(tmp_path, capsys):
    words = ("--sites", 1, "--images-per-site", 1, "--public", 1, "--size", 64, 64, "--no-report")
    assert run("synthetic", tmp_path, "--scene", "polyp", *words, "--output", tmp_path / "list.json") == 0
    assert "synthetic-polyp-0: 1 public image, 1 site\n" in capsys.readouterr().out
