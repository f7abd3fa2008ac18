from __future__ import annotations

import torch

from samfed_monai.networks.sam.adapter import Adapt, adapted_tensors, prepare
from samfed_monai.networks.sam.build import assemble, build_sam, fold_batch_norms, vit_encoder
from tests.networks.sam.tiny import SIZE


def test_the_order_of_computing_leaves_what_timms_own_attention_gives(checkpoint):
    sam = build_sam("vit_t", checkpoint, SIZE)
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


def test_folded_batch_norms_give_the_same_masks_and_take_the_same_adapter(checkpoint):
    plain, folded = (build_sam("vit_t", checkpoint, SIZE) for _ in range(2))
    with torch.no_grad():
        for sam in (plain, folded):
            generator = torch.Generator().manual_seed(0)  # those of a fresh network change nothing
            for name, tensor in sam.image_encoder.state_dict().items():
                if "running_" in name:
                    tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
        fold_batch_norms(folded.image_encoder)
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


def test_sams_vit_has_nothing_to_fold():
    sam = assemble(vit_encoder(64, width=16, depth=1, heads=2, global_blocks=()), 64)
    before = list(sam.state_dict())
    fold_batch_norms(sam.image_encoder)
    assert list(sam.state_dict()) == before
