"""Synthetic sites and volumes: what is on disk, that seeds decide, that sites differ."""

from __future__ import annotations

import shlex
from dataclasses import replace
from functools import cache
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from samfed_monai.core.errors import Refused
from samfed_monai.core.io import sha256_file
from samfed_monai.data import DataList, synthetic
from tests.cli.test_prepare import run

FEW = {"sites": 2, "images_per_site": 2, "public": 2, "validation": 1, "test": 1, "size": (64, 80)}
ONE = {"sites": 1, "images_per_site": 1, "public": 1, "validation": 0, "test": 0, "size": (64, 80)}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic")
    return folder, synthetic.render_synthetic(folder, **FEW)


def hashes(datalist):
    return {item.sha256 for _, _, item in datalist.items()}


def test_counts_names_hashes_and_formats(rendered):
    folder, datalist = rendered
    assert list(datalist.sites) == ["site-1", "site-2"]
    assert len(datalist.public) == 2
    for site in datalist.sites.values():
        assert (len(site.unlabelled), len(site.validation), len(site.test)) == (2, 1, 1)
    assert len(hashes(datalist)) == len(list(datalist.items())) == 10
    for _, _, item in datalist.items():
        assert sha256_file(folder / item.image) == item.sha256
        with Image.open(folder / item.image) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (80, 64))
        if item.label:
            assert sha256_file(folder / item.label) == item.label_sha256
            with Image.open(folder / item.label) as mask:
                assert (mask.format, mask.mode, mask.size) == ("PNG", "L", (80, 64))
                assert set(np.unique(np.asarray(mask))) == {0, 255}


def test_masks_of_unlabelled_images_are_written_on_request_only(rendered, tmp_path):
    folder, datalist = rendered
    assert all(item.label is None and item.label_sha256 is None for item in datalist.sites["site-1"].unlabelled)
    assert len(list((folder / "site-1/masks").iterdir())) == 2  # validation and test
    labelled = synthetic.render_synthetic(tmp_path, labelled=True, **FEW)
    assert all((tmp_path / item.label).is_file() for item in labelled.sites["site-1"].unlabelled)
    assert [item.sha256 for _, _, item in labelled.items()] == [item.sha256 for _, _, item in datalist.items()]


def test_images_depend_on_seed_and_scene_only(rendered, tmp_path):
    _, datalist = rendered
    other = synthetic.render_synthetic(tmp_path / "other", seed=1, **ONE)
    polyps = synthetic.render_synthetic(tmp_path / "polyps", scene="polyp", **ONE)
    assert (datalist.name, other.name, polyps.name) == ("synthetic-0", "synthetic-1", "synthetic-polyp-0")
    assert not hashes(datalist) & (hashes(other) | hashes(polyps))
    more = synthetic.render_synthetic(tmp_path / "more", **{**FEW, "sites": 3, "images_per_site": 3, "public": 3})
    assert hashes(datalist) < hashes(more)


@cache
def scenes(scene: str, number: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pictures and masks of a scene's public look (0) or of a site's (from 1)."""
    look = (synthetic.PUBLIC[scene], *synthetic.SITES[scene])[number]
    return [synthetic.render_scene(np.random.default_rng(index), (64, 80), look) for index in range(32)]


@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize("scene", synthetic.PUBLIC)
def test_lesions_are_single_visible_regions_of_site_size(scene, number):
    shares, darker = [], []
    for image, mask in scenes(scene, number)[:12]:
        inside = mask > 0
        shares.append(inside.mean())
        assert set(np.unique(mask)) == {0, 255}
        assert ndimage.label(inside)[1] == 1
        assert np.median(image[inside].max(axis=-1)) > 25  # the frame is black
        ring = ndimage.binary_dilation(inside, iterations=6) & ~ndimage.binary_dilation(inside, iterations=2)
        darker.append(image[inside].mean() < image[ring].mean())
    assert scene == "polyp" or np.mean(darker) > 0.9
    low, high = (synthetic.PUBLIC[scene], *synthetic.SITES[scene])[number].radius
    # a circle's share of the image; outlines wander and frames cut, hence the factors
    assert 0.4 * np.pi * low**2 * 0.8 < np.mean(shares) < 2 * np.pi * high**2 * 0.8


MEANS = {"skin": [138.53, 122.77, 109.51, 85.28, 85.32], "polyp": [90.54, 86.63, 46.78, 77.78, 109.18]}


@pytest.mark.parametrize("scene", synthetic.PUBLIC)
def test_picture_brightness_is_unchanged(scene):
    found = [np.mean([image.mean() for image, _ in scenes(scene, number)[:4]]) for number in range(5)]
    assert found == pytest.approx(MEANS[scene], abs=0.3)


@pytest.mark.parametrize("scene", synthetic.PUBLIC)
def test_mean_colour_differs_more_between_sites_than_within_site(scene):
    centres = [[image[16:48, 20:60].mean(axis=(0, 1)) / 255 for image, _ in scenes(scene, n)] for n in range(5)]
    first, second = ([np.median(site[half], axis=0) for site in centres] for half in (slice(16), slice(16, None)))
    between = [np.abs(first[i] - first[j]).max() for i in range(5) for j in range(i)]
    assert min(between) > 0.03
    assert np.median(between) > 2 * max(np.abs(a - b).max() for a, b in zip(first, second, strict=True))


def test_frame_is_black_and_print_is_upper_left():
    look = replace(synthetic.PUBLIC["polyp"], margin=(0.1, 0.1), marks=1.0, noise=(0.0, 0.0))
    image, _ = synthetic.render_scene(np.random.default_rng(0), (96, 128), look)
    assert image[:2].max() < 25 > image[-2:].max()
    dark, _ = synthetic.render_scene(np.random.default_rng(0), (96, 128), replace(look, exposure=(0, 0), glare=(0, 0)))
    rows, columns = np.nonzero((dark > 128).all(axis=-1))
    assert 15 < rows.min() < rows.max() < 60
    assert columns.max() < 64


def test_further_sites_vary_within_limits():
    assert synthetic.look_of("skin", 0, 0) is synthetic.SITES["skin"][0]
    assert synthetic.look_of("polyp", 5, 0) == synthetic.look_of("polyp", 5, 0) != synthetic.look_of("polyp", 5, 1)
    for seed in range(20):
        look, base = synthetic.look_of("skin", 4, seed), synthetic.SITES["skin"][0]
        assert 0.07 <= look.radius[0] < look.radius[1] <= 0.42
        assert all(0.9 <= gain / light <= 1.08 for gain, light in zip(look.light, base.light, strict=True))
        assert 0.75 <= look.radius[0] / base.radius[0] <= 1.25


def test_bad_arguments_of_images_and_volumes_are_refused_together(tmp_path):
    with pytest.raises(Refused, match=r"(?s)3 problems.*sites: expected a whole number >= 1.*test.*size.*\(32, 80\)"):
        synthetic.render_synthetic(tmp_path, sites=0, test=-1, size=(32, 80))
    with pytest.raises(Refused, match=r"scene: expected one of \['skin', 'polyp'\], found 'lung'"):
        synthetic.render_synthetic(tmp_path, scene="lung")
    assert list(Path(tmp_path).iterdir()) == []
    message = r"(?s)--volumes: expected a whole number in \[1, 512\], found 0.*"
    message += r"depth: expected a whole number in \[4, 512\].*"
    message += r"--size: expected \(H, W\), each at least 32 and at most 512, found \(16, 64"
    with pytest.raises(Refused, match=message):
        synthetic.render_volumes(tmp_path, volumes=0, size=(16, 64), depth=2)


SMALL = {"volumes": 3, "public": 2, "size": (32, 40), "depth": 4}


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("volumes") / "vol"
    assert synthetic.render_volumes(folder, **SMALL) == ["ct", "mr", "public"]
    return folder


@pytest.mark.parametrize(("scanner", "mean"), [(synthetic.CT, -557.45), (synthetic.MR, 161.82)], ids=["ct", "mr"])
def test_organs_are_present_and_brighter_than_surroundings(scanner, mean):
    grey, _ = synthetic.render_volume(np.random.default_rng(0), (32, 32, 8), replace(scanner, noise=0, bias=0))
    assert grey.mean() == pytest.approx(mean, abs=0.1), "as when the grey values were chosen"
    for index in range(4):
        grey, label = synthetic.render_volume(np.random.default_rng(index), (48, 48, 8), scanner)
        assert set(np.unique(label)) == {0, 1, 2}
        assert all(np.median(grey[label == number]) > scanner.values[2] for number in (1, 2))


def test_volume_files_have_affine_and_spacing(volumes):
    image = nibabel.load(volumes / "mr/images/mr_01.nii.gz")
    mask = nibabel.load(volumes / "mr/masks/mr_01.nii.gz")
    assert image.shape == mask.shape == (40, 32, 4)
    assert np.allclose(image.affine, synthetic.affine_of(synthetic.MR, image.shape), atol=1e-4)
    assert np.allclose(image.affine, mask.affine)
    assert np.allclose(image.header.get_zooms(), synthetic.MR.spacing)
    assert np.linalg.det(nibabel.load(volumes / "ct/images/ct_01.nii.gz").affine) < 0  # the first axis is mirrored


def test_volume_depends_on_site_and_number_only(volumes, tmp_path):
    synthetic.render_volumes(tmp_path, **{**SMALL, "volumes": 1, "public": 0})
    made = (volumes / "ct/images/ct_01.nii.gz").read_bytes()
    assert (tmp_path / "ct/images/ct_01.nii.gz").read_bytes() == made
    with pytest.raises(Refused, match=r"ct_01\.nii\.gz: expected no file, or an identical.* another file; render"):
        synthetic.render_volumes(tmp_path, **SMALL, seed=1)
    assert (tmp_path / "ct/images/ct_01.nii.gz").read_bytes() == made


def test_slices_keep_volume_spacing_group_and_classes(volumes, tmp_path):
    given = ("--slices", tmp_path / "slices", "--output", tmp_path / "list.json", "--no-report", "--public", "public")
    run("nifti", volumes, *given, "--classes", ",".join(synthetic.CLASSES), "--validation", 0.3, "--test", 0.3)
    datalist = DataList.load(tmp_path / "list.json")
    assert datalist.classes == list(synthetic.CLASSES)
    items = [item for _, _, item in datalist.items() if item.volume == "mr/images/mr_02.nii.gz"]
    assert sorted(item.slice for item in items) == [1, 2, 3, 4]
    assert {tuple(item.spacing) for item in items} == {(1.8, 1.8, 4.0)}
    assert len({item.group for item in items}) == 1
    assert all(len(items) == 4 for _, items in datalist.sites["ct"].splits())  # a volume each
    label = np.asarray(nibabel.load(volumes / "mr/masks/mr_02.nii.gz").dataobj)
    for item in items:
        assert np.array_equal(Image.open(tmp_path / "slices" / item.label), label[:, :, item.slice - 1].T)


@pytest.mark.parametrize(("number", "public", "variant"), [(2, "public", ""), (0, "none", "--variant supervised ")])
def test_command_writes_volumes_and_prints_next_step(number, public, variant, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run("synthetic-volumes", "v", "--volumes", 3, "--size", 32, 32, "--public", number)
    listing = capsys.readouterr().out.partition("next    samfed prepare ")[2]
    assert listing.startswith(f"nifti v --slices v_slices --public {public} --classes kidney,spleen ")
    run(*shlex.split(listing))
    following = f"""list.json --data-root v_slices --classes '["kidney", "spleen"]' {variant}--output-dir RUN\n"""
    command = f"next    look at the report, then samfed federate BUNDLE --datalist {following}"
    assert capsys.readouterr().out.endswith(command)
