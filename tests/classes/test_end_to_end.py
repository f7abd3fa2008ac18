"""Two organs in volumes of two sites, from NIfTI files to a run, its report and a NIfTI of class values."""

from __future__ import annotations

import logging
import re
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
from PIL import Image

from samfed_monai.cli.main import main
from samfed_monai.config.bundles import find_bundle
from samfed_monai.config.variants import methods
from samfed_monai.core.errors import Refused
from samfed_monai.core.io import read_json, write_json
from samfed_monai.data import DataList
from samfed_monai.data.synthetic import CLASSES, render_volumes
from samfed_monai.data.volumes import cut_nifti
from samfed_monai.federation.preparation import class_problems
from samfed_monai.federation.site import Site
from samfed_monai.federation.workflow import client_config

ORGANS = str(list(CLASSES))
SMALL = (
    *("--rounds", 1, "--image_size", 32, "--local_steps", 1, "--warm_start_steps", 1, "--batch_size", 2),
    *("--encoder_weights", "null", "--privacy#least_images", 1),
)
TEACHER = ("--teacher#size", 64, "--teacher#epochs", 1)


@pytest.fixture(autouse=True)
def weights(samfed_data, tmp_path_factory, monkeypatch):
    """SAM's checkpoint of the test data, wherever else there is one."""
    folder = tmp_path_factory.mktemp("weights")
    (folder / "mobile_sam.pt").symlink_to(samfed_data / "weights/mobile_sam.pt")
    monkeypatch.setenv("SAMFED_WEIGHTS", str(folder))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """``organs`` with volumes, ``slices`` of them, ``list.json``, and ``weak.json`` with points for masks."""
    folder = tmp_path_factory.mktemp("organs")
    render_volumes(folder / "organs", volumes=3, public=2, size=(32, 32), depth=4)
    done = run(
        *("prepare", "nifti", folder / "organs", "--slices", folder / "slices", "--public", "public", "--no-report"),
        *("--classes", ",".join(CLASSES), "--validation", 0.3, "--test", 0.3, "--output", folder / "list.json"),
    )
    points = ("--data-root", folder / "slices", "--kind", "points", "--output", folder / "weak.json", "--no-report")
    assert (done, run("prepare", "weak", folder / "list.json", *points)) == (0, 0)
    return folder


def run(*words: object) -> int:
    return main([str(word) for word in words])


def federate(place, variant, *more, out=None):
    out = out or place / "runs" / variant
    listed = place / ("weak.json" if methods()[variant].labels == "weak" else "list.json")
    given = ("--datalist", listed, "--data-root", place / "slices", "--cache-dir", place / "cache")
    config = client_config(find_bundle("samfed_skin"), variant, {})
    network = () if config.optional("mixed_networks") else ("--network_name", "basic_unet")
    small = (*SMALL, *network, *(TEACHER if config.value("teacher_adapt") != "off" else ()))
    return run("federate", "samfed_skin", "--variant", variant, *given, "--output-dir", out, *small, *more), out


@pytest.mark.slow
def test_from_nifti_to_a_run_its_report_and_a_nifti_of_classes(place, samfed_data, capsys):
    code, out = federate(place, "samfed", "--classes", ORGANS)
    assert code == 0
    results = read_json(out / "results.json")
    for summary in (results["average"]["test"], results["sites"]["mr"]["validation"], results["worst"]["test"]):
        assert list(summary["classes"]) == list(CLASSES)
    assert list(results["teacher"]["average"]["test"]["classes"]) == list(CLASSES)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "<h2>Classes</h2>" in page
    assert "shaded: predicted; outlined: the label" in page
    volume = place / "organs/mr/images/mr_01.nii.gz"
    words = ("--output-dir", place / "masks", "--overlays", place / "looks", "--areas", place / "areas.csv")
    assert run("infer", "samfed_skin", volume, "--model", out, *words) == 0
    mask, source = nibabel.load(place / "masks/mr_01.nii.gz"), nibabel.load(volume)
    assert mask.shape == source.shape
    assert np.array_equal(mask.affine, source.affine)
    assert set(np.unique(np.asarray(mask.dataobj))) <= {0, 1, 2}
    assert read_json(place / "masks/inference.json")["classes"] == list(CLASSES)
    assert len(list((place / "looks/mr_01").glob("*.png"))) == 4
    assert (place / "areas.csv").read_text().splitlines()[2].endswith("spleen")
    forms = ("--geojson", place / "polygons", "--coco", place / "coco.json")
    assert run("infer", "samfed_skin", volume, "--model", out, "--output-dir", place / "masks", *forms) == 0
    assert [one["name"] for one in read_json(place / "coco.json")["categories"]] == list(CLASSES)
    assert len(list((place / "polygons/mr_01").glob("*.geojson"))) == 4
    scores = ("--datalist", place / "list.json", "--data-root", place / "slices", "--output-dir", place / "scores")
    assert run("evaluate", "samfed_skin", "--model", out, *scores) == 0
    again = read_json(place / "scores/metrics.json")["average"]["classes"]
    known = results["average"]["test"]["classes"]
    assert again["kidney"]["dice"] == pytest.approx(known["kidney"]["dice"])
    whole = results["average"]["test"]["volumes"]
    assert whole["n"] == sum(site["test"]["volumes"]["n"] for site in results["sites"].values()) == 2
    assert whole["classes"]["kidney"]["dice"] != known["kidney"]["dice"], "slices of a volume count together"
    assert read_json(place / "scores/metrics.json")["average"]["volumes"] == whole
    assert re.search(r"whole volumes +n +Dice +HD95 mm\n(.*\n)*mr kidney +1 +0\.\d{3}", capsys.readouterr().out)


UNLIKE = ("--mixed_networks", "['basic_unet','flexible_unet_resnet18']", "--server_network", "basic_unet")
SAM = ("--network_name", "sam_vit_t", "--network_def#size", 64, "--image_size", 64, "--local_steps", 2)
#: What methods need with this small network and these two sites.
NEEDS: dict[str, tuple[object, ...]] = {
    **dict.fromkeys(("apple", "elcfs", "fedda_cyclic"), ("--rounds", 2)),  # in the first they do what no_sam does
    **dict.fromkeys(("fca", "pfedsam", "pfedsam_two_stage"), SAM),
    **dict.fromkeys(("fedmd", "heterogeneous", "hssf", "local_only"), UNLIKE),
    "fedproto": ("--mixed_networks", "['basic_unet']", "--rounds", 2),
    "clustered_sites": ("--strategy#least", 1, "--rounds", 2),
    "fedca": ("--rounds", 2, "--terms#contrast#rounds", 1),
    "fedicra": ("--local_steps", 2, "--before#parts#share", 0.5),
}
#: Methods whose own code meets neither images nor labels: what learns classes there is that of others here.
OF_OTHERS = {
    *("samfed", "no_global_kd", "no_sam_kd", "no_agreement", "confidence_selection", "dp_only"),  # parts left out
    *("coordinate_median", "krum", "norm_clipping", "trimmed_mean"),  # weights at the server
    *("ditto", "fedala", "fedbn", "fedper", "fedprox", "fedrep", "fedgin_own_norm"),  # weights at the sites
    *("elcfs_labelled", "fedsam", "full_sam", "local_sam"),
    "cpss_adapt",  # at one site, and so no federation
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "variant",
    sorted({name for name, each in methods().items() if each.classes == "several"} - OF_OTHERS),
)
def test_every_method_that_says_so_and_meets_them_learns_two_classes(place, variant, samfed_data):
    more = NEEDS.get(variant, ())
    code, out = federate(place, variant, "--classes", ORGANS, "--overlays", "false", *more)
    assert code == 0
    assert list(read_json(out / "results.json")["average"]["test"]["classes"]) == list(CLASSES)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (
            (),
            r"list -> classes: expected \['foreground'\], the classes of this run, found the classes \['kidney'",
        ),
        (("--classes", "['spleen', 'kidney']"), r"the same names in the same order at every site"),
        (
            ("--classes", ORGANS, "--teacher_adapt", "none"),
            "teacher_adapt: expected an adapted SAM: as it comes",
        ),
    ],
)
def test_what_cannot_be_learned_is_refused_before_any_work(place, more, told, tmp_path, capsys, samfed_data):
    code, out = federate(place, "samfed", *more, out=tmp_path / "run")
    assert code != 0
    assert re.search(told, capsys.readouterr().err)
    assert not (out / "rounds").exists()


def test_a_site_of_other_classes_is_told_so_and_its_own_names_stay_in_its_log(place, caplog):
    listed = DataList.load(place / "list.json")
    other = DataList(listed.name, listed.public, listed.sites, classes=["liver", "spleen"])
    config = SimpleNamespace(optional=lambda name: list(CLASSES), value=lambda name: "lora")
    node = SimpleNamespace(site="mr", listed=lambda: other, participants=SimpleNamespace(config=config))
    with caplog.at_level(logging.ERROR):
        (problem,) = Site._other_classes(node)
    assert str(problem) == (
        "data list -> classes: expected ['kidney', 'spleen'], the classes of this run, found others, which this site's "
        "log names; make it again with `samfed prepare … --classes`: the same names in the same order at every site"
    )
    assert "found the classes ['liver', 'spleen']" in caplog.text
    assert [str(each) for each in class_problems(listed, config)] == []


def test_volumes_of_one_organ_are_prepared_as_they_were(place, tmp_path):
    with pytest.raises(Refused, match="say which are foreground: --label N"):
        cut_nifti(place / "organs", tmp_path / "s")
    cut_nifti(place / "organs", tmp_path / "s", labels=[2])
    values = {int(v) for path in (tmp_path / "s").rglob("masks/*/*.png") for v in np.unique(np.array(Image.open(path)))}
    assert values == {0, 255}


def test_a_list_of_classes_can_be_hurt_in_no_way_that_is_not_told(place, tmp_path):
    content = read_json(place / "list.json")
    write_json(tmp_path / "list.json", {**content, "classes": ["kidney", "liver"]})
    with pytest.raises(Refused, match="the list was changed after it was made"):
        DataList.load(tmp_path / "list.json")
