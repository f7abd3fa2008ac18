from __future__ import annotations

import pytest
import torch
from torch import nn

from samfed_monai.core.errors import Refused
from samfed_monai.networks.sam.build import SAM_BUILDERS
from samfed_monai.networks.sam.lora import LoRAQueryValue, QKVLayout, apply_lora, merge_lora
from tests.networks.sam.tiny import SIZE, tiny_sam


def lora_layer(layout: QKVLayout, rank: int = 2) -> LoRAQueryValue:
    torch.manual_seed(0)
    rows = layout.groups * (layout.query + layout.key + layout.value)
    lora = LoRAQueryValue(nn.Linear(6, rows), layout, rank)
    nn.init.normal_(lora.query_b)
    nn.init.normal_(lora.value_b)
    return lora


def test_lora_changes_only_query_and_value_and_can_be_merged():
    lora = lora_layer(QKVLayout(groups=2, query=1, key=1, value=2))
    x = torch.rand(5, 6)
    change = lora(x) - lora.linear(x)
    query, value = x @ (lora.query_b @ lora.query_a).T, x @ (lora.value_b @ lora.value_a).T
    # rows: q0 k0 v0 v0 q1 k1 v1 v1
    torch.testing.assert_close(change[:, [0, 4]], query)
    torch.testing.assert_close(change[:, [2, 3, 6, 7]], value)
    assert torch.equal(lora(x)[:, [1, 5]], lora.linear(x)[:, [1, 5]])
    assert type(lora.merged()) is nn.Linear
    torch.testing.assert_close(lora.merged()(x), lora(x))
    own = lora_layer(QKVLayout(groups=1, query=3, key=3, value=3))  # SAM's own order
    change = own(x) - own.linear(x)
    torch.testing.assert_close(change[:, :3], x @ (own.query_b @ own.query_a).T)
    torch.testing.assert_close(change[:, 6:], x @ (own.value_b @ own.value_a).T)
    assert torch.equal(own(x)[:, 3:6], own.linear(x)[:, 3:6])
    torch.testing.assert_close(own.merged()(x), own(x))


def test_tiny_vit_keys_are_unchanged():
    torch.manual_seed(0)
    encoder = SAM_BUILDERS["vit_t"](SIZE).eval()
    block = encoder.trunk.stages[1].blocks[0].attn  # type: ignore[union-attr, index]
    x = torch.rand(3, 49, 128)

    def split() -> tuple[torch.Tensor, ...]:  # as timm's own forward does
        qkv = block.qkv(block.norm(x)).view(3, 49, block.num_heads, -1)
        return qkv.split([block.key_dim, block.key_dim, block.val_dim], dim=3)

    query, key, value = split()
    apply_lora(encoder)
    nn.init.normal_(block.qkv.query_b)
    nn.init.normal_(block.qkv.value_b)
    new_query, new_key, new_value = split()
    assert torch.equal(key, new_key)
    assert ((new_query - query).abs().amax(dim=(0, 1, 3)) > 0).all()  # every head's
    assert ((new_value - value).abs().amax(dim=(0, 1, 3)) > 0).all()


def test_invalid_rank_and_encoder_are_refused():
    expected = r"(?s)teacher -> rank: expected a whole number >= 1, found 0.*LoRA: expected an encoder whose attention "
    with pytest.raises(Refused, match=expected + "blocks have a joint qkv, found Identity"):
        apply_lora(nn.Identity(), 0)
    with pytest.raises(Refused, match=r"network_def#rank: expected a whole number in \[1, 16\], found 1000000000"):
        apply_lora(tiny_sam().image_encoder, 10**9, "network_def#rank")


def test_tiny_vit_blocks_are_adapted_and_merged():
    torch.manual_seed(0)
    encoder, images = SAM_BUILDERS["vit_t"](SIZE).eval(), torch.rand(1, 3, SIZE, SIZE)
    names = list(encoder.state_dict())
    with torch.no_grad():
        before = encoder(images)
        parameters = apply_lora(encoder, rank=4)
        assert torch.equal(before, encoder(images))
    # r x (in + out): q and v C to C, in 2, 6 and 2 blocks
    assert sum(p.numel() for p in parameters) == 4 * 4 * (2 * 128 + 6 * 160 + 2 * 320)
    trained = {name.rpartition(".")[2] for name, p in encoder.named_parameters() if p.requires_grad}
    assert trained == {"query_a", "query_b", "value_a", "value_b"}
    for parameter in parameters:
        nn.init.normal_(parameter, std=0.1)
    with torch.no_grad():
        moved = encoder(images)
        merged = merge_lora(encoder)(images)
    assert list(encoder.state_dict()) == names
    torch.testing.assert_close(merged, moved, atol=1e-4, rtol=1e-4)  # float32: other sums, ten blocks deep
