"""Words of messages: the number 1 and all others, a sentence behind other words, what a terminal would obey."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samfed_monai.core.text import as_argument, counted, near, normal, printable, uncapitalised


@pytest.mark.parametrize(
    ("count", "seeds", "images"),
    [(0, "0 seeds", "0 images are"), (1, "1 seed", "1 image is"), (2, "2 seeds", "2 images are")],
)
def test_counted_uses_singular_and_plural(count, seeds, images):
    assert (counted(count, "seed"), counted(count, "image is", "images are")) == (seeds, images)


def test_path_that_begins_with_dash_is_no_option():
    assert [as_argument(path) for path in ("-x", "a/-x", "a b")] == ["./-x", "a/-x", "a b"]


def test_uncapitalised_keeps_acronyms():
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
def test_control_characters_are_escaped(text, shown):
    assert printable(text) == shown
    assert printable("a\tb\nc", keep="") == "a\\tb\\nc"


@given(st.text(st.characters(codec=None)))
def test_any_text_is_printable(text):
    shown = printable(text, keep="")
    assert shown.encode().decode() == shown
    assert not any(unicodedata.category(character) in ("Cc", "Cs") for character in shown)
    assert printable(shown, keep="") == shown


def test_path_is_shown_relative_to_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [near(tmp_path / "masks" / "a"), near("masks"), near("/else/where")] == ["masks/a", "masks", "/else/where"]


def test_normal_removes_invisible_characters():
    assert normal(" La\u0308sion\ufe00\ufe0f\t\u00a07\U000e0100\U000e01ef\u200b ") == "Läsion 7"
    assert normal("\ufe10\U000e01f0") == "\ufe10\U000e01f0", "letters beside the ranges of those that show nothing"
