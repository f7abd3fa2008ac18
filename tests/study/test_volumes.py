"""Collections of volumes in folders of sites: each patient is at one site, and a share is public."""

from __future__ import annotations

from pathlib import Path

import pytest

from samfed_monai.core.errors import Refused
from study.volumes import stage_volumes


def collection(folder: Path) -> Path:
    """Site ``a``: ten patients with two files each; ``b``: patients 8 and 9, too, and 10; ``c``: no patient named."""
    lines = ["site,id,patient,image,mask"]
    files = [("a", f"a{n}_{phase}", f"p{n}") for n in range(10) for phase in ("ed", "es")]
    files += [*(("b", f"b{n}", f"p{n}") for n in (8, 9, 10)), ("c", "c1", "")]
    for site, name, patient in files:
        for kind in ("image", "mask"):
            path = folder / site / f"{name}_{kind}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{name} {kind}")
        lines.append(f"{site},{name},{patient},{site}/{name}_image.nii.gz,{site}/{name}_mask.nii.gz")
    (folder / "manifest.csv").write_text("\n".join(lines))
    return folder


def test_patients_are_at_one_site_and_share_is_public(tmp_path):
    count = stage_volumes(collection(tmp_path / "in"), tmp_path / "out", public_of="a", share=0.25)
    assert count == {"a": 12, "b": 3, "c": 1, "public": 4}  # of a's ten patients two are b's, and two of eight public
    rows = [line.split(",") for line in (tmp_path / "out/patients.csv").read_text().splitlines()[1:]]
    sites_of: dict[str, set[str]] = {}
    for image, patient in rows:
        sites_of.setdefault(patient, set()).add(image.partition("/")[0])
        assert (tmp_path / "out" / f"{image}.nii.gz").read_text() == f"{image.rpartition('/')[2]} image"
    assert all(len(folders) == 1 for folders in sites_of.values())
    assert sites_of["p8"] == sites_of["p9"] == {"b"}
    assert (tmp_path / "out/c/masks/c1.nii.gz").read_text() == "c1 mask"


def test_unknown_public_site_is_refused(tmp_path):
    with pytest.raises(Refused, match=r"--public: expected a site of .* one of \['a', 'b', 'c'\], found 'd'"):
        stage_volumes(collection(tmp_path / "in"), tmp_path / "out", public_of="d")
