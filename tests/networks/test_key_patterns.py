"""Patterns of keys, and the shared, personal and frozen parts of a network."""

import pytest
from torch import nn

from samfed_monai.core.errors import Refused
from samfed_monai.networks import split_keys
from samfed_monai.networks.key_patterns import network_split, pattern_problems
from tests.networks.sam.tiny import tiny_network

NAMES = ["encoder.a", "encoder.norm.weight", "head.weight", "head.bias"]


def test_names_are_split_by_patterns_in_state_dict_order():
    split = split_keys(NAMES, shared=("encoder.*",), personal=("head.b*",))
    assert split.shared == ("encoder.a", "encoder.norm.weight")
    assert (split.personal, split.frozen) == (("head.bias",), ("head.weight",))
    assert split_keys(NAMES, shared=("e*t",)).shared == ("encoder.norm.weight",)


def test_unmatched_and_overlapping_patterns_are_refused():
    with pytest.raises(Refused) as refused:
        split_keys(NAMES, shared=("*.weight", "Head.*", "b*"), where="toy")
    assert [str(problem) for problem in refused.value.problems] == [
        "toy -> shared: expected at least one, found no name like 'Head.*'; correct the pattern or remove it",
        "toy -> shared: expected at least one, found no name like 'b*'; correct the pattern or remove it",
    ]
    both = r"toy: expected only one of them, found 'head.weight' both shared and personal; match it with one pattern"
    with pytest.raises(Refused, match=both):
        split_keys(NAMES, shared=("*.weight",), personal=("head.*",), where="toy")


@pytest.mark.parametrize("patterns", ["head.*", None, [1], {"head.*": 1}])
def test_invalid_pattern_lists_are_reported(patterns):
    problems = pattern_problems("toy", patterns, "head.*")
    assert [(problem.found, problem.hint) for problem in problems] == [(repr(patterns), 'for instance ["head.*"]')]
    assert pattern_problems("toy", [], "a") == pattern_problems("toy", ("a", "b"), "a") == []


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.ln1, self.head = nn.Linear(1, 1, bias=False), nn.LayerNorm(1), nn.Linear(1, 1)


TENSORS = ["stem.weight", "ln1.weight", "ln1.bias", "head.weight", "head.bias"]


def test_fault_56_patterns_split_network_in_order():
    split = network_split(Net(), ["head.*", "ln?.*"])
    assert split.shared == ("stem.weight",)
    assert split.personal == ("ln1.weight", "ln1.bias", "head.weight", "head.bias")
    assert split.frozen == ()
    assert network_split(Net(), ["head.*", "<norm>"]) == split
    assert network_split(Net()).shared == tuple(TENSORS)


def test_norm_pattern_matches_all_sam_norm_layers():
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


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["haed.*"], r"train.json -> personal: expected at least one, found no name like 'haed\.\*'"),
        (["Head.*"], "names begin with stem, ln1, head"),
        ("head.*", r"a list of patterns, found 'head\.\*'; for instance \[\"segmentation_head"),
        ([1], "a list of patterns"),
        (["*"], "at least one shared name, found every name"),
    ],
)
def test_fault_56_invalid_personal_patterns_are_refused(patterns, message):
    with pytest.raises(Refused, match=message):
        network_split(Net(), patterns)
