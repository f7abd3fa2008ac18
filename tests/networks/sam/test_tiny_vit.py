from __future__ import annotations

import torch

from samfed_monai.networks.sam.build import build_sam


def test_the_order_of_computing_leaves_what_timms_own_attention_gives(checkpoint):
    sam = build_sam("vit_t", checkpoint, 256)
    encoder, image = sam.image_encoder, torch.randn(2, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    blocks = [module for module in encoder.modules() if hasattr(module, "fused_attn")]
    assert len(blocks) == 10
    with torch.no_grad():
        ours = encoder(image)
        for block in blocks:
            block.fused_attn = True
        timms = encoder.neck(encoder.trunk.forward_features(image))
    assert timms.std() > 0.1
    torch.testing.assert_close(ours, timms, rtol=1e-3, atol=1e-4)  # float32 sums in another order


def test_weights_keep_their_own_order_of_memory(checkpoint):
    encoder = build_sam("vit_t", checkpoint, 256).image_encoder
    assert all(tensor.is_contiguous() for tensor in encoder.state_dict().values())
