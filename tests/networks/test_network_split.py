"""What of a network is shared, personal and frozen: the one answer of server, site and filter."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from samfed_monai.core.errors import Refused
from samfed_monai.networks.key_patterns import network_split
from tests.networks.sam.tiny import tiny_network


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.ln1, self.head = nn.Linear(1, 1, bias=False), nn.LayerNorm(1), nn.Linear(1, 1)


NAMES = ["stem.weight", "ln1.weight", "ln1.bias", "head.weight", "head.bias"]


def test_fault_56_patterns_part_a_network_in_its_own_order():
    split = network_split(Net(), ["head.*", "ln?.*"])
    assert split.shared == ("stem.weight",)
    assert split.personal == ("ln1.weight", "ln1.bias", "head.weight", "head.bias")
    assert split.frozen == ()
    assert network_split(Net(), ["head.*", "<norm>"]) == split


def test_the_norm_layers_of_sam_are_those_of_its_neck_and_its_upscaling_too():
    layers = [f"image_encoder.blocks.{block}.norm{norm}" for block in (0, 1) for norm in (1, 2)]
    layers += ["image_encoder.neck.1", "image_encoder.neck.3"]
    layers += ["prompt_encoder.mask_downscaling.1", "prompt_encoder.mask_downscaling.4"]
    transformer = "mask_decoder.transformer"
    layers += [f"{transformer}.layers.{layer}.norm{norm}" for layer in (0, 1) for norm in (1, 2, 3, 4)]
    layers += [f"{transformer}.norm_final_attn", "mask_decoder.output_upscaling.1"]
    expected = {f"sam.{layer}.{name}" for layer in layers for name in ("weight", "bias")}
    assert set(network_split(tiny_network(full=True), ["<norm>"]).personal) == expected
    decoder = {name for name in expected if "mask_decoder" in name}  # LoRA freezes the encoder
    assert set(network_split(tiny_network(experts=0, decoder="shared"), ["<norm>"]).personal) == decoder


def test_without_patterns_everything_is_shared():
    assert network_split(Net()).shared == tuple(NAMES)


@pytest.mark.parametrize(
    ("patterns", "told"),
    [
        (["haed.*"], r"train.json -> personal: expected at least one, found no name like 'haed\.\*'"),
        (["Head.*"], "names begin with stem, ln1, head"),
        ("head.*", r"a list of patterns, found 'head\.\*'; for instance \[\"segmentation_head"),
        ([1], "a list of patterns"),
        (["*"], "at least one that is shared, found every name"),
    ],
)
def test_fault_56_a_pattern_that_is_not_meant_so_is_refused(patterns, told):
    with pytest.raises(Refused, match=told):
        network_split(Net(), patterns)


@given(st.sets(st.sampled_from(NAMES), max_size=4))
def test_every_name_is_on_one_side(personal):
    split = network_split(Net(), sorted(personal))
    assert set(split.personal) == personal
    assert sorted(split.shared + split.personal) == sorted(NAMES)
