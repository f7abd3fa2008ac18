"""SAM without prompts: its sizes, its positions, and weights that are checked before they are loaded."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from samfed_monai.core.errors import Refused
from samfed_monai.networks.sam.build import (
    SAM_BUILDERS,
    assemble,
    build_sam,
    fit_positions,
    side_problems,
    vit_encoder,
)


def test_relative_tables_are_interpolated_linearly():
    state = {"blocks.2.attn.rel_pos_h": torch.tensor([[0.0], [1.0], [2.0], [3.0]])}
    fitted = fit_positions(state, {"blocks.2.attn.rel_pos_h": torch.zeros(2, 1)})
    # two outputs at the middles of two inputs each (align_corners=False)
    torch.testing.assert_close(fitted["blocks.2.attn.rel_pos_h"], torch.tensor([[0.5], [2.5]]))


def test_the_absolute_table_keeps_constants_and_what_fits_passes_as_it_is():
    state = {"pos_embed": torch.full((1, 8, 8, 2), 3.0), "neck.0.weight": torch.rand(3, 2)}
    like = {"pos_embed": torch.zeros(1, 4, 4, 2), "neck.0.weight": torch.zeros(5, 2)}
    fitted = fit_positions(state, like)
    torch.testing.assert_close(fitted["pos_embed"], torch.full((1, 4, 4, 2), 3.0))
    assert fitted["neck.0.weight"] is state["neck.0.weight"]
    assert fit_positions(state, state)["pos_embed"] is state["pos_embed"]


def tiny(size: int):
    return assemble(vit_encoder(size, width=16, depth=2, heads=2, global_blocks=(1,)), size).eval()


@pytest.mark.parametrize("size", [64, 80, 128])
def test_mobile_sams_names_load_and_every_multiple_of_16_gives_a_mask_of_a_quarter_of_its_side(checkpoint, size):
    for network in (build_sam("vit_t", checkpoint, size), tiny(size)):
        with torch.no_grad():
            mask = network(torch.rand(1, 3, size, size))
        assert mask.shape == (1, 1, size // 4, size // 4)
        assert mask.isfinite().all()


def test_a_vit_checkpoint_of_one_size_fits_another(tmp_path, monkeypatch):
    torch.manual_seed(0)
    tiny_vit = partial(vit_encoder, width=16, depth=2, heads=2, global_blocks=(1,))
    monkeypatch.setitem(SAM_BUILDERS._entries, "tiny", tiny_vit)
    torch.save(tiny(128).state_dict(), tmp_path / "tiny.pth")
    sam = build_sam("tiny", tmp_path / "tiny.pth", size=64)
    with torch.no_grad():
        assert sam(torch.rand(2, 3, 64, 64)).shape == (2, 1, 16, 16)


def test_a_batch_is_decoded_like_its_images_one_by_one():
    torch.manual_seed(0)
    sam = tiny(64)
    embeddings = torch.rand(3, 256, 4, 4)
    with torch.no_grad():
        together = sam.decode(embeddings)
        apart = torch.cat([sam.decode(one[None]) for one in embeddings])
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)  # float32 sums in another order


def test_normalisation_is_sams_own():
    sam = tiny(64)
    white = sam.normalise(torch.ones(1, 3, 1, 1)).flatten()
    torch.testing.assert_close(
        white, torch.tensor([(255 - 123.675) / 58.395, (255 - 116.28) / 57.12, (255 - 103.53) / 57.375])
    )


def test_a_checkpoint_of_another_sam_is_refused(tmp_path, checkpoint):
    torch.save(tiny(64).state_dict(), tmp_path / "sam_vit_b_01ec64.pth")
    with pytest.raises(Refused, match=r"another network's weights .*; name the base that they are of"):
        build_sam("vit_t", tmp_path / "sam_vit_b_01ec64.pth", size=64)


def test_unknown_names_and_sizes_are_refused():
    with pytest.raises(Refused, match=r"SAM encoder: .*did you mean 'vit_"):
        build_sam("vit_x", size=256)
    told = r"teacher -> size: expected a multiple of 16 from 64 to 1024 pixels, found 380; the nearest is 384; 224"
    with pytest.raises(Refused, match=told):
        build_sam("vit_t", size=380)


@pytest.mark.parametrize("size", [0, 48, 100, 1040, 224.0, "224", True, None])
def test_sizes_that_no_encoder_takes(size):
    (problem,) = side_problems("network_def#size", size)
    assert str(problem).startswith("network_def#size: expected a multiple of 16 from 64 to 1024 pixels, found ")
