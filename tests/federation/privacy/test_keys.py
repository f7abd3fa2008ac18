import pytest
from hypothesis import given
from hypothesis import strategies as st

from samfed_monai.errors import Refused
from samfed_monai.federation.privacy import SharedKeys

NAMES = ["stem.weight", "bn1.weight", "bn1.bias", "head.weight", "head.bias"]


def test_fault_56_patterns_part_a_network_in_its_own_order():
    keys = SharedKeys(NAMES, personal=["head.*", "bn?.*"])
    assert keys.shared == ("stem.weight",)
    assert keys.personal == ("bn1.weight", "bn1.bias", "head.weight", "head.bias")
    state = dict(zip(NAMES, range(5), strict=True))
    assert keys.only_shared(state) == {"stem.weight": 0}
    assert keys.only_personal(state) == {"bn1.weight": 1, "bn1.bias": 2, "head.weight": 3, "head.bias": 4}


def test_without_patterns_everything_is_shared():
    assert SharedKeys(NAMES).shared == tuple(NAMES)


@pytest.mark.parametrize(
    ("patterns", "told"),
    [
        ({"personal": ["haed.*"]}, r"keys -> personal: expected a pattern of the network's 5 names, found 'haed\.\*'"),
        ({"personal": ["Head.*"]}, "which matches none"),
        ({"personal": "head.*"}, "a list of patterns, found a text; put it in brackets"),
        ({"personal": ["*"]}, "at least one that leaves the site, found no name"),
        ({"personal": ["head.*"], "shared": ["*"]}, "keys -> head.bias: expected one of the two, found both"),
        ({"personal": ["head.*"], "shared": ["stem.*"]}, "keys -> bn1.bias: expected one of the two, found neither"),
    ],
)
def test_fault_56_a_pattern_that_is_not_meant_so_is_refused(patterns, told):
    with pytest.raises(Refused, match=told):
        SharedKeys(NAMES, **patterns)


@given(st.sets(st.sampled_from(NAMES), max_size=4))
def test_every_name_is_on_one_side(personal):
    keys = SharedKeys(NAMES, personal=sorted(personal))
    assert set(keys.personal) == personal
    assert sorted(keys.shared + keys.personal) == sorted(NAMES)
