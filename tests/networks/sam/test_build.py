"""SAM without prompts: positions, sizes, scaled and padded images, checked weights, TinyViT."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from samfed_monai.core.errors import Refused
from samfed_monai.networks.sam import build
from samfed_monai.networks.sam.adapter import Adapt, adapted_tensors, prepare
from tests.networks.sam.tiny import SIZE


def test_positions_are_interpolated_only_if_needed():
    state = {"blocks.2.attn.rel_pos_h": torch.tensor([[0.0], [1.0], [2.0], [3.0]])}
    fitted = build.fit_positions(state, {"blocks.2.attn.rel_pos_h": torch.zeros(2, 1)})
    # two outputs at the middles of two inputs each (align_corners=False)
    torch.testing.assert_close(fitted["blocks.2.attn.rel_pos_h"], torch.tensor([[0.5], [2.5]]))
    state = {"pos_embed": torch.full((1, 8, 8, 2), 3.0), "neck.0.weight": torch.rand(3, 2)}
    fitted = build.fit_positions(state, {"pos_embed": torch.zeros(1, 4, 4, 2), "neck.0.weight": torch.zeros(5, 2)})
    torch.testing.assert_close(fitted["pos_embed"], torch.full((1, 4, 4, 2), 3.0))
    assert fitted["neck.0.weight"] is state["neck.0.weight"]
    assert build.fit_positions(state, state)["pos_embed"] is state["pos_embed"]


def tiny(size: int):
    return build.assemble(build.vit_encoder(size, width=16, depth=2, heads=2, global_blocks=(1,)), size).eval()


@pytest.mark.parametrize("size", [64, 80, 128])
def test_mask_has_quarter_of_image_size(checkpoint, size):
    for network in (build.build_sam("vit_t", checkpoint, size), tiny(size)):
        with torch.no_grad():
            mask = network(torch.rand(1, 3, size, size))
        assert mask.shape == (1, 1, size // 4, size // 4)
        assert mask.isfinite().all()


def test_vit_checkpoint_fits_other_image_size(tmp_path, monkeypatch):
    torch.manual_seed(0)
    tiny_vit = partial(build.vit_encoder, width=16, depth=2, heads=2, global_blocks=(1,))
    monkeypatch.setitem(build.SAM_BUILDERS._entries, "tiny", tiny_vit)
    torch.save(tiny(128).state_dict(), tmp_path / "tiny.pth")
    sam = build.build_sam("tiny", tmp_path / "tiny.pth", size=64)
    with torch.no_grad():
        assert sam(torch.rand(2, 3, 64, 64)).shape == (2, 1, 16, 16)


def test_batch_is_decoded_like_single_images():
    torch.manual_seed(0)
    sam = tiny(64)
    embeddings = torch.rand(3, 256, 4, 4)
    with torch.no_grad():
        together = sam.decode(embeddings)
        apart = torch.cat([sam.decode(one[None]) for one in embeddings])
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)  # float32 sums in another order


def test_normalisation_matches_sam():
    white = tiny(64).normalise(torch.ones(1, 3, 1, 1)).flatten()
    expected = [(255 - 123.675) / 58.395, (255 - 116.28) / 57.12, (255 - 103.53) / 57.375]
    torch.testing.assert_close(white, torch.tensor(expected))


def test_checkpoint_of_other_sam_is_refused(tmp_path, checkpoint):
    torch.save(tiny(64).state_dict(), tmp_path / "sam_vit_b_01ec64.pth")
    with pytest.raises(Refused, match=r"another network's weights .*; set base to the SAM of these weights") as refused:
        build.build_sam("vit_t", tmp_path / "sam_vit_b_01ec64.pth", size=64)
    assert len(refused.value.problems) <= 6, "five of them, and what they mean"


def test_unknown_encoder_name_is_refused():
    with pytest.raises(Refused, match=r"SAM encoder: .*did you mean 'vit_"):
        build.build_sam("vit_x", size=256)


@pytest.mark.parametrize("size", [0, 48, 100, 1040, 224.0, "224", True, None])
def test_invalid_sizes_are_reported(size):
    (problem,) = build.side_problems("network_def#size", size)
    assert str(problem).startswith("network_def#size: expected a multiple of 16 from 64 to 1024 pixels, found ")


def test_inner_size_matches_hand_computed_values():
    assert build.inner_size(256, 256, 512) == (512, 512)
    assert build.inner_size(300, 400, 512) == build.inner_size(767, 1022, 512) == (384, 512)
    assert build.inner_size(400, 1, 256) == (256, 4)


@given(st.integers(8, 3000), st.integers(8, 3000), st.sampled_from([256, 512, 1024]))
def test_inner_size_ends_on_mask_border(height, width, size):
    inner = build.inner_size(height, width, size)
    assert max(inner) == size
    assert all(side % 4 == 0 and 4 <= side <= size for side in inner)
    scale = size / max(height, width)
    assert all(
        abs(fitted - side * scale) <= max(2, 4 - side * scale)
        for fitted, side in zip(inner, (height, width), strict=True)
    )


@given(st.integers(20, 90), st.integers(20, 90))
def test_mask_is_restored_without_shift(height, width):
    """A ramp survives scaling, padding, quartering, cropping and resizing back: nothing moved."""
    ramp = torch.linspace(0, 1, width).expand(1, 1, height, width) + torch.linspace(0, 1, height)[:, None]
    quarter = F.avg_pool2d(build.pad(build.place(ramp, 256), 256), 4)
    back = F.interpolate(build.crop(quarter, height, width, 256), (height, width), mode="bilinear", align_corners=False)
    inside = (slice(None), slice(None), slice(2, -2), slice(2, -2))
    # half a mask pixel at most, where a pixel of the mask is max(h, w) / 64 of the image's
    assert (back - ramp)[inside].abs().max() <= 0.5 * (1 / 64 + 1 / 64) * max(height, width) / min(height, width) + 1e-3


def test_encoder_matches_timm_attention(checkpoint):
    sam = build.build_sam("vit_t", checkpoint, SIZE)
    encoder, image = sam.image_encoder, torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    assert all(tensor.is_contiguous() for tensor in encoder.state_dict().values()), "weights in their own order"
    blocks = [module for module in encoder.modules() if hasattr(module, "fused_attn")]
    assert len(blocks) == 10
    with torch.no_grad():
        ours = encoder(image)
        for block in blocks:
            block.fused_attn = True
        timms = encoder.neck(encoder.trunk.forward_features(image))
    assert timms.std() > 0.1
    torch.testing.assert_close(ours, timms, rtol=1e-3, atol=1e-4)  # float32 sums in another order


def batch_norms(network: torch.nn.Module) -> int:
    return sum(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())


def test_folded_batch_norms_keep_embeddings_and_adapter(checkpoint):
    plain, folded = (build.build_sam("vit_t", checkpoint, SIZE) for _ in range(2))
    with torch.no_grad():
        for sam in (plain, folded):
            generator = torch.Generator().manual_seed(0)  # those of a fresh network change nothing
            for name, tensor in sam.image_encoder.state_dict().items():
                if "running_" in name:
                    tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
        build.fold_batch_norms(folded.image_encoder)
        image = torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
        expected, found = plain.encode(image), folded.encode(image)
    assert (batch_norms(plain), batch_norms(folded)) == (27, 0)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)  # float32 sums in another order
    for sam in (plain, folded):
        prepare(sam, Adapt.LORA, 2)
    assert list(adapted_tensors(plain)) == list(adapted_tensors(folded)), "an adapter fits both"
    trained = [{name for name, p in sam.named_parameters() if p.requires_grad} for sam in (plain, folded)]
    assert trained[0] == trained[1]


def test_vit_has_no_batch_norms_to_fold():
    sam = build.assemble(build.vit_encoder(64, width=16, depth=1, heads=2, global_blocks=()), 64)
    before = list(sam.state_dict())
    build.fold_batch_norms(sam.image_encoder)
    assert list(sam.state_dict()) == before
