"""Words of messages and reports: a number with what is counted, a sentence that goes on behind other words."""

from __future__ import annotations


def counted(count: int, one: str, many: str = "") -> str:
    """A number of things: ``1 seed``, ``3 seeds``.

    Args:
        count: how many.
        one: what follows the number 1.
        many: what follows any other, if that is not ``one`` with an s: ``1 image stands``, ``2 images stand``.
    """
    return f"{count} {one}" if count == 1 else f"{count} {many or one + 's'}"


def uncapitalised(sentence: str) -> str:
    """A sentence to stand behind a colon, or its beginning behind other words; names such as SAM keep their letters."""
    return sentence if sentence[1:2].isupper() else sentence[:1].lower() + sentence[1:]
