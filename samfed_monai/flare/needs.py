"""NVIDIA FLARE is an optional extra: the error message where it is missing."""

from __future__ import annotations

from importlib.util import find_spec

from samfed_monai.core.errors import Problem, Refused


def require_flare() -> None:
    """Refuses to go on without NVIDIA FLARE.

    Raises:
        Refused: it is not installed; the message has the command that installs it.
    """
    if find_spec("nvflare") is None:
        hint = "install it with `pip install 'samfed-monai[flare]'`"
        raise Refused([Problem("NVIDIA FLARE", found="not installed", expected="nvflare 2.9 or later", hint=hint)])
