"""Seeds depend on what is computed, never on when."""

from __future__ import annotations

from samfed_monai.core.seeds import derive_seed


def test_derived_seeds_have_known_values():
    assert derive_seed(0) == 0x5FECEB66
    assert derive_seed(0, "site-1", 3) == 0xABDEDCD1 - 2**31
    assert derive_seed(1, "site-1", 3) == 0x415EF0B6


def test_seed_parts_are_separate_and_ordered():
    assert len({derive_seed(0, "ab", "c"), derive_seed(0, "a", "bc"), derive_seed(0, "c", "ab")}) == 3
    assert derive_seed(1, 2) != derive_seed(12)
