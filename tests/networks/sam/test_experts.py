"""L-MoE: routing by hand, and experts beside an encoder's MLPs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from samfed_monai.core.errors import Refused
from samfed_monai.networks.sam.build import SAM_BUILDERS, assemble
from samfed_monai.networks.sam.experts import (
    ExpertSwitch,
    LocalExperts,
    MlpWithExperts,
    Routing,
    apply_experts,
    join_layers,
    route,
    routing_statistics,
)
from samfed_monai.networks.sam.lora import apply_lora
from tests.networks.sam.tiny import tiny_sam


def test_router_selects_top_experts_and_normalises_gates():
    gates, probability, chosen = route(torch.tensor([[0.6, 0.1, 0.3, 0.0]]).log(), 2)
    torch.testing.assert_close(probability, torch.tensor([[0.6, 0.1, 0.3, 0.0]]))
    assert chosen.tolist() == [[0, 2]]
    torch.testing.assert_close(gates, torch.tensor([[2 / 3, 0, 1 / 3, 0]]))
    assert (route(torch.zeros(3, 4), 2)[0] > 0).sum(dim=-1).tolist() == [2, 2, 2]
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(route(logits, 4)[0], logits.softmax(-1))
    assert route(logits, 1)[0].max(dim=-1).values.tolist() == [1] * 5


@given(st.integers(1, 6), st.integers(1, 20), st.integers(0, 1000), st.data())
def test_gates_sum_to_one(experts, tokens, seed, data):
    top = data.draw(st.integers(1, experts))
    gates, _, _ = route(3 * torch.randn(tokens, experts, generator=torch.Generator().manual_seed(seed)), top)
    torch.testing.assert_close(gates.sum(-1), torch.ones(tokens))
    assert ((gates > 0).sum(-1) <= top).all()


def test_routing_record_matches_hand_computed_values():
    filed = routing_statistics(torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.3, 0.6]]), torch.tensor([[0, 1], [2, 1]]))
    assert filed.share.tolist() == [0.25, 0.5, 0.25]
    torch.testing.assert_close(filed.probability, torch.tensor([0.3, 0.3, 0.4]))
    assert filed.tokens == 2


def test_switch_is_restored_after_pass_or_failure():
    switch = ExpertSwitch()
    with switch.during(on=False, measure=True) as records:
        assert (switch.on, switch.records) == (False, records)
        try:
            with switch.during(on=True, measure=False) as inner:
                assert (switch.on, switch.records) == (True, None)
                raise RuntimeError
        except RuntimeError:
            assert inner == []
        assert (switch.on, switch.records is records) == (False, True)
    assert (switch.on, switch.records) == (True, None)


def test_routings_are_joined_in_layer_order():
    first, second = (Routing(torch.tensor([a, 1 - a]), torch.tensor([0.5, 0.5]), t) for a, t in ((0.25, 8), (0.5, 2)))
    found = join_layers([first, second])
    assert found.share.tolist() == [[0.25, 0.75], [0.5, 0.5]]
    assert found.tokens == (8, 2)
    assert join_layers([]) is None


def a_mixture(width: int = 6, **options: int) -> LocalExperts:
    torch.manual_seed(0)
    experts = LocalExperts(width, ExpertSwitch(), **options)
    nn.init.normal_(experts.gate)
    nn.init.normal_(experts.up)
    return experts


def test_output_is_gated_sum_of_top_two_experts():
    experts = a_mixture(experts=3, rank=2)
    x, base = torch.randn(2, 5, 6), torch.randn(2, 5, 6)
    expected = base.clone()
    for image in range(2):
        for token in range(5):
            likelihood = (experts.gate @ x[image, token]).softmax(0)
            best = likelihood.argsort(descending=True)[:2].tolist()
            for k in best:
                down, up = experts.down[2 * k : 2 * k + 2], experts.up[2 * k : 2 * k + 2]
                expected[image, token] += likelihood[k] / likelihood[best].sum() * (up.T @ (down @ x[image, token]))
    torch.testing.assert_close(experts(x, base), expected)


def test_unused_expert_has_no_gradient():
    experts = a_mixture(experts=3, rank=2)
    with torch.no_grad():
        experts.gate[2] = 0
        experts.gate[:2] = torch.eye(2, 6) + 1
    x = torch.rand(7, 6) + 0.1  # positive: the third gate's logit of 0 is always the smallest
    experts(x, torch.zeros(7, 6)).square().sum().backward()
    assert not experts.up.grad[4:].any()
    assert not experts.down.grad[4:].any()
    assert experts.up.grad[:4].any(dim=1).all()


def test_up_projection_starts_at_zero_and_gets_gradient():
    torch.manual_seed(0)
    experts = LocalExperts(6, ExpertSwitch())
    x, base = torch.randn(3, 6), torch.randn(3, 6)
    out = experts(x, base)
    assert torch.equal(out, base)
    out.square().sum().backward()
    assert experts.up.grad.any()


def test_mlp_norm_is_applied_before_experts():
    torch.manual_seed(0)
    encoder = SAM_BUILDERS["vit_t"](256).eval()
    block = encoder.trunk.stages[1].blocks[0]  # type: ignore[union-attr, index]
    x = torch.randn(1, 4, 128)
    plain, normed = block.mlp(x), block.mlp.norm(x)
    switch = apply_experts(encoder)
    assert torch.equal(block.mlp(x), plain)
    nn.init.normal_(block.mlp.experts.up)
    torch.testing.assert_close(block.mlp(x), block.mlp.experts(normed, plain))
    with switch.during(on=False, measure=True) as records:
        assert torch.equal(block.mlp(x), plain)
    assert records == []


@pytest.mark.parametrize(
    ("base", "parameters", "blocks", "widths"),
    [
        ("vit_b", 93_735_472, 12, 12 * 768),
        ("vit_l", 312_342_832, 24, 24 * 1024),
        ("vit_h", 641_090_608, 32, 32 * 1280),
        ("vit_t", 10_130_092 - 321_640, 10, 2176 - 320),  # without the class head
    ],
)
def test_encoders_have_published_size_and_experts_per_block(base, parameters, blocks, widths):
    """Parameters of the official checkpoints of 1024 px, counted without allocating them."""
    with torch.device("meta"):
        sam = assemble(SAM_BUILDERS[base](1024), 1024)
        assert sum(parameter.numel() for parameter in sam.parameters()) == parameters
        encoder = sam.image_encoder
        apply_lora(encoder, rank=4)
        apply_experts(encoder)
    layers = [module for module in encoder.modules() if isinstance(module, MlpWithExperts)]
    assert len(layers) == blocks
    assert len({id(layer.experts.switch) for layer in layers}) == 1
    count = sum(p.numel() for name, p in encoder.named_parameters() if ".experts." in name)
    assert count == (4 + 2 * 4 * 4) * widths  # C (K + 2 K r)


def test_invalid_arguments_are_refused_together():
    with pytest.raises(Refused) as refused:
        apply_experts(nn.Identity(), experts=2, rank=0, top=3)
    assert [str(problem) for problem in refused.value.problems] == [
        "network_def#expert_rank: expected a whole number >= 1, found 0",
        "network_def#top: expected at most 2, the number of experts, found 3",
        "L-MoE: expected an encoder whose blocks have attn and mlp, found Identity",
    ]
    with pytest.raises(Refused, match=r"#experts: .* in \[1, 16\], found True(.|\n)*#expert_rank: .* 16\], found 17"):
        apply_experts(tiny_sam().image_encoder, experts=True, rank=17)
