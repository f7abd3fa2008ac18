"""Renewed soft masks: the same bits in one process and carried to sites, which remove them, too."""

from __future__ import annotations

from samfed_monai.core.io import read_json, safe_load
from tests.federation import half_teacher
from tests.flare.carried import in_both
from tests.flare.test_personal import SITES, SMALL


def test_renewed_masks_give_the_same_bits_in_one_process_and_carried(two_sites, tmp_path, monkeypatch):
    adapter = str(half_teacher.install(monkeypatch.setattr))
    renewal = {"renewal#after": [1], "renewal#views": 2}
    _, there = in_both(two_sites, tmp_path, {**SMALL, **renewal, "adapter": adapter}, worker="tests.flare.half_teacher")
    assert read_json(there / "results.json")["teacher"]["renewed_after"] == [1]
    for site in SITES:
        (state,) = (there / "cache" / "sites" / site / "state").glob(f"*/{site}/001.safetensors")
        assert "renewal.masks" in safe_load(state)
        kept = list((there / "cache" / "sites" / site / "soft_masks" / site).iterdir())
        assert [path.name for path in kept] == [half_teacher.SHA256], "the rounds are over"
