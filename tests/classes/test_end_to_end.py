"""Two organs in volumes of two sites: from NIfTI files to a run, its report and masks with classes."""

from __future__ import annotations

import math
import re
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image

from samfed_monai.cli.main import main
from samfed_monai.config.bundles import find_bundle
from samfed_monai.config.variants import methods, variant_files
from samfed_monai.core.io import read_json
from samfed_monai.data.synthetic import CLASSES, render_volumes
from samfed_monai.data.volumes import cut_nifti
from tests.methods import present
from tests.workflow import workflow

ORGANS = str(list(CLASSES))
SMALL = {"rounds": 1, "image_size": 32, "local_steps": 1, "warm_start_steps": 1, "batch_size": 2}
SMALL |= {"encoder_weights": "null", "privacy#least_images": 1}
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


def federate(place, variant, *more, out=None, **replaced):
    out = out or place / "runs" / variant
    given = ("--datalist", place / "list.json", "--data-root", place / "slices", "--cache-dir", place / "cache")
    small = (word for name, value in (SMALL | replaced).items() for word in (f"--{name}", value))
    return run("federate", "samfed_skin", "--variant", variant, *given, "--output-dir", out, *small, *more), out


@pytest.mark.slow
def test_nifti_volumes_run_to_report_and_class_masks(place, samfed_data, capsys):
    code, out = federate(place, "samfed", "--classes", ORGANS, "--network_name", "basic_unet", *TEACHER)
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
    forms = ("--geojson", place / "polygons", "--coco", place / "coco.json")
    assert run("infer", "samfed_skin", volume, "--model", out, *words, *forms) == 0
    mask, source = nibabel.load(place / "masks/mr_01.nii.gz"), nibabel.load(volume)
    assert mask.shape == source.shape
    assert np.array_equal(mask.affine, source.affine)
    assert set(np.unique(np.asarray(mask.dataobj))) <= {0, 1, 2}
    assert read_json(place / "masks/inference.json")["classes"] == list(CLASSES)
    assert len(list((place / "looks/mr_01").glob("*.png"))) == 4
    assert (place / "areas.csv").read_text().splitlines()[2].endswith("spleen")
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
    assert re.search(r"whole volumes +n +Dice +HD95 mm  of\n(.*\n)*mr kidney +1 +0\.\d{3}", capsys.readouterr().out)


SAM = {"network_name": "sam_vit_t", "network_def#size": 64, "image_size": 64}
OWN = ("--mixed_networks", "['basic_unet','flexible_unet_resnet18']")
#: Methods with classes in their server or exchange, and what they need here; others run in ``flare/test_related.py``.
FEDERATIONS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "fca": ((), {"rounds": 2, **SAM}),
    "fedmd": (OWN, {}),
    "fedproto": (("--mixed_networks", "['basic_unet']"), {"rounds": 2}),
    "hssf": (("--server_network", "basic_unet", *OWN), {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", present(*FEDERATIONS))
def test_methods_with_other_exchanges_learn_two_classes(place, variant):
    words, replaced = FEDERATIONS[variant]
    code, out = federate(place, variant, "--classes", ORGANS, "--overlays", "false", *words, **replaced)
    assert code == 0
    assert list(read_json(out / "results.json")["average"]["test"]["classes"]) == list(CLASSES)


#: Methods with classes in their terms, what they need here, and those terms; others are there, too.
TERMS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "cpss": ({}, {"style_swap"}),
    "fedda": ({}, {"domain"}),
    "fedgin": ({}, {"pseudo_label"}),
    "mean_teacher": ({}, {"consistency"}),
    "no_sam": ({}, {"pseudo_label"}),
    "pfedsam_two_stage": (SAM, {"load_balance", "mutual_kd"}),
    "semifl": ({}, {"mixup"}),
    "unimatch": ({}, {"unimatch"}),
    "weak_labels": ({}, {"crf"}),
}


@pytest.mark.parametrize("variant", present(*TERMS))
def test_training_terms_of_methods_support_two_classes(place, variant):
    settings, terms = TERMS[variant]
    listed = place / ("weak.json" if methods()[variant].labels == "weak" else "list.json")
    images = {"datalist": str(listed), "data_root": str(place / "slices"), "classes": list(CLASSES), "standalone": {}}
    bundle = find_bundle("samfed_skin")
    made = workflow(bundle, place, variant_files(bundle, variant), **{**images, **settings})
    made.run()
    assert all(math.isfinite(made.trainer.state.term_means[term]) for term in terms)


def test_mismatched_classes_are_refused_before_run(place, tmp_path, capsys):
    code, out = federate(place, "samfed", out=tmp_path / "run")
    assert code != 0
    message = r"list -> classes: expected \['foreground'\], the classes of this run, found the classes \['kidney'"
    assert re.search(message, capsys.readouterr().err)
    assert not (out / "rounds").exists()
    listed = ("--datalist", place / "list.json", "--data-root", place / "slices")
    check = ("check", "samfed_skin", "--workflow", "train", *listed, "--classes")
    assert run(*check, "['spleen', 'kidney']") == 2
    assert "list -> classes: expected ['spleen', 'kidney'], the classes of this run, found" in capsys.readouterr().err
    assert run(*check, ORGANS) == 0
    assert "\n  note: ct has 6 empty and 0 full masks; scores count them separately\n" in capsys.readouterr().out


def test_single_label_volumes_give_binary_masks(place, tmp_path):
    cut_nifti(place / "organs", tmp_path / "s", labels=[2])
    values = {int(v) for path in (tmp_path / "s").rglob("masks/*/*.png") for v in np.unique(np.array(Image.open(path)))}
    assert values == {0, 255}
