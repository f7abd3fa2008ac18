from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from samfed_monai.data.sources.polyp import clinicdb_sequence, colondb_sequence, cvc300_sequence


@pytest.mark.parametrize(("sequence", "frames", "count"), [(clinicdb_sequence, 612, 29), (colondb_sequence, 380, 15)])
def test_every_frame_has_one_sequence(sequence, frames, count):
    groups = [sequence(str(number)) for number in range(1, frames + 1)]
    assert None not in groups
    assert len(set(groups)) == count
    changes = sum(one != other for one, other in pairwise(groups))
    assert changes == count - 1  # each is one run of frames
    assert sequence(str(frames + 1)) is None


def test_sizes_of_some_sequences():
    clinic = Counter(clinicdb_sequence(str(number)) for number in range(1, 613))
    assert (clinic["clinicdb_seq1"], clinic["clinicdb_seq10"], clinic["clinicdb_seq29"]) == (25, 6, 21)
    test_part = Counter(cvc300_sequence(str(number)) for number in range(149, 209))
    assert test_part == {"colondb_seq7": 7, "colondb_seq9": 48, "colondb_seq10": 5}


def test_cvc_300_is_numbered_from_1_or_after_clinicdb():
    assert cvc300_sequence("1") == cvc300_sequence("613") == "colondb_seq1"
    assert cvc300_sequence("300") == cvc300_sequence("912") == "colondb_seq15"
    assert cvc300_sequence("913") is None


@pytest.mark.parametrize("name", ["", "0", "p1", "1a", "-1", "²", "٣", "cju0qkwl"])
def test_other_names_have_no_sequence(name):
    assert clinicdb_sequence(name) is None
    assert colondb_sequence(name) is None
    assert cvc300_sequence(name) is None
