"""Words of messages: the number 1 and all others, a sentence behind other words, what a terminal would obey."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samfed_monai.core.words import counted, near, printable, uncapitalised


@pytest.mark.parametrize(("count", "text"), [(0, "0 seeds"), (1, "1 seed"), (2, "2 seeds")])
def test_only_one_is_without_an_s(count, text):
    assert counted(count, "seed") == text


def test_a_verb_goes_with_its_number():
    assert [counted(n, "image stands", "images stand") for n in (1, 3)] == ["1 image stands", "3 images stand"]


def test_a_name_keeps_its_letters():
    assert uncapitalised("The model reaches it.") == "the model reaches it."
    assert uncapitalised("SAM is low.") == "SAM is low."


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Läsion 東京 \u200f\u05d0 \U0001f600", "Läsion 東京 \u200f\u05d0 \U0001f600"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("\x9b31m\x7f", "\\x9b31m\\x7f"),
        ("a\u202egnp.exe", "a\\u202egnp.exe"),
        ("bef\udcfcnd \ud83d", "bef\\xfcnd \\ud83d"),
        ("a\tb\nc\rd", "a\tb\nc\\rd"),
    ],
)
def test_what_a_terminal_would_obey_is_written_out(text, shown):
    assert printable(text) == shown
    assert printable("a\tb\nc", keep="") == "a\\tb\\nc"


@given(st.text(st.characters(codec=None)))
def test_any_text_can_be_printed_and_letters_stay(text):
    shown = printable(text, keep="")
    assert shown.encode().decode() == shown
    assert not any(unicodedata.category(character) in ("Cc", "Cs") for character in shown)
    assert printable(shown, keep="") == shown


def test_a_path_below_the_current_folder_is_shown_from_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [near(tmp_path / "masks" / "a"), near("masks"), near("/else/where")] == ["masks/a", "masks", "/else/where"]
