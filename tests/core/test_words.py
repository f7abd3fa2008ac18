"""Words of messages: the number 1 and all others, and a sentence behind other words."""

from __future__ import annotations

import pytest

from samfed_monai.core.words import counted, uncapitalised


@pytest.mark.parametrize(("count", "text"), [(0, "0 seeds"), (1, "1 seed"), (2, "2 seeds")])
def test_only_one_is_without_an_s(count, text):
    assert counted(count, "seed") == text


def test_a_verb_goes_with_its_number():
    assert [counted(n, "image stands", "images stand") for n in (1, 3)] == ["1 image stands", "3 images stand"]


def test_a_name_keeps_its_letters():
    assert uncapitalised("The model reaches it.") == "the model reaches it."
    assert uncapitalised("SAM is low.") == "SAM is low."
