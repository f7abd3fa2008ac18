"""Synthetic sites: what lies on disk, that seeds decide, that sites differ, beyond the written looks too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from samfed_monai.core.errors import Refused
from samfed_monai.core.io import sha256_file
from samfed_monai.data.synthetic import render_synthetic
from samfed_monai.data.synthetic_scene.skin import PUBLIC, SITES, look_of, render_scene
from samfed_monai.data.synthetic_scene.texture import lamp_and_size

FEW = {"sites": 2, "images_per_site": 3, "public": 2, "validation": 1, "test": 2, "size": (64, 80)}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic")
    return folder, render_synthetic(folder, **FEW)


def every_item(datalist):
    yield from datalist.public
    for site in datalist.sites.values():
        yield from [*site.unlabelled, *site.validation, *site.test]


def test_counts_names_and_hashes(rendered):
    folder, datalist = rendered
    assert list(datalist.sites) == ["site-1", "site-2"]
    assert len(datalist.public) == 2
    for site in datalist.sites.values():
        assert (len(site.unlabelled), len(site.validation), len(site.test)) == (3, 1, 2)
    items = list(every_item(datalist))
    assert len({item.sha256 for item in items}) == len(items) == 14
    for item in items:
        assert sha256_file(folder / item.image) == item.sha256
        if item.label:
            assert sha256_file(folder / item.label) == item.label_sha256


def test_images_are_jpeg_and_masks_binary_png(rendered):
    folder, datalist = rendered
    for item in datalist.public:
        with Image.open(folder / item.image) as image, Image.open(folder / item.label) as mask:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (80, 64))
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


def test_the_list_loads_again(rendered, tmp_path):
    _, datalist = rendered
    datalist.save(tmp_path / "list.json")
    assert type(datalist).load(tmp_path / "list.json").hash == datalist.hash


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(rendered, tmp_path):
    _, datalist = rendered
    assert render_synthetic(tmp_path / "again", **FEW).hash == datalist.hash
    other = render_synthetic(tmp_path / "other", seed=1, **FEW)
    assert not {item.sha256 for item in every_item(other)} & {item.sha256 for item in every_item(datalist)}


def test_asking_for_more_changes_nothing_that_was_there(rendered, tmp_path):
    _, datalist = rendered
    more = render_synthetic(tmp_path, **{**FEW, "sites": 3, "images_per_site": 4, "public": 3})
    assert {item.sha256 for item in every_item(datalist)} < {item.sha256 for item in every_item(more)}


@pytest.mark.parametrize("look", [PUBLIC, *SITES], ids=["public", "1", "2", "3", "4"])
def test_lesions_are_one_piece_darker_than_skin_and_of_the_sites_size(look):
    shares = []
    for index in range(12):
        image, mask = render_scene(np.random.default_rng(index), (96, 128), look)
        inside = mask > 0
        shares.append(inside.mean())
        assert ndimage.label(inside)[1] == 1
        ring = ndimage.binary_dilation(inside, iterations=6) & ~ndimage.binary_dilation(inside, iterations=2)
        assert image[inside].mean() < image[ring].mean()
    assert 0.005 < np.mean(shares) < 0.5
    low, high = look.radius  # a circle's share of the image; outlines wander, hence the factor 2
    assert 0.5 * np.pi * low**2 * 0.75 < np.mean(shares) < 2 * np.pi * high**2 * 0.75


def test_sites_look_different():
    """The mean colour differs between sites by more than it does between halves of one site."""

    def colour(look, start: int) -> np.ndarray:
        images = [render_scene(np.random.default_rng(start + index), (64, 80), look)[0] for index in range(16)]
        return np.median(np.stack(images), axis=(0, 1, 2)) / 255

    first, second = ([colour(look, start) for look in (PUBLIC, *SITES)] for start in (0, 100))
    within = max(np.abs(a - b).max() for a, b in zip(first, second, strict=True))
    between = [np.abs(first[i] - first[j]).max() for i in range(5) for j in range(i)]
    assert min(between) > 0.03
    assert np.median(between) > 2 * within


def test_further_sites_vary_the_four():
    assert look_of(0, 0) is SITES[0]
    assert look_of(5, 0) != SITES[1]
    assert look_of(5, 0) == look_of(5, 0) != look_of(5, 1)


def test_bad_arguments_are_refused_together(tmp_path):
    with pytest.raises(Refused, match=r"3 problems(.|\n)*sites: expected at least 1(.|\n)*test(.|\n)*size.*\(32, 80\)"):
        render_synthetic(tmp_path, sites=0, test=-1, size=(32, 80))
    assert list(Path(tmp_path).iterdir()) == []


def test_a_range_of_one_number_multiplies_by_it_and_radii_stay_within_their_limits():
    rng = np.random.default_rng(0)
    drawn = lamp_and_size((1.0, 0.5, 0.25), (0.0, 10.0), rng, gains=(2.0, 2.0), limits=(0.1, 0.4))
    assert drawn == {"light": (2.0, 1.0, 0.5), "radius": (0.1, 0.4)}


def test_three_gains_are_drawn_and_then_one_scale():
    gains, scale = (rng := np.random.default_rng(7)).uniform(0.9, 1.1, 3), rng.uniform(0.75, 1.25)
    drawn = lamp_and_size((1, 1, 1), (0.2, 0.3), np.random.default_rng(7), gains=(0.9, 1.1), limits=(0.0, 1.0))
    assert drawn["light"] == tuple(gains)
    assert drawn["radius"] == pytest.approx((0.2 * scale, 0.3 * scale))
