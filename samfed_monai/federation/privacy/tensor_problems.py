"""A message's tensors against what of a site's tensors may leave."""

from __future__ import annotations

import torch

from samfed_monai.core.errors import Problem, Problems
from samfed_monai.federation.envelope import Envelope, Kind
from samfed_monai.federation.privacy.allowed import Allowed


def tensor_problems(reply: Envelope, allowed: Allowed) -> list[Problem]:
    """Everything about the tensors of ``reply`` that keeps it from leaving: kind, names, shapes, dtypes, values.

    No name that is not on the list, and no value, is repeated: the text of a problem may itself leave.

    Args:
        reply: what is about to leave.
        allowed: what may leave now.
    """
    problems = Problems()
    try:
        kind = Kind(reply.kind)
    except ValueError:
        return [Problem("message -> kind", found="an unknown kind", expected="one of the allow-list")]
    if not reply.tensors and kind == Kind.METRICS:
        return []
    like = allowed.like.get(kind)
    if like is None:
        may = ", ".join(sorted({Kind(each).value for each in allowed.like} | {Kind.METRICS.value}))
        return [Problem("message -> kind", found="a kind that may not leave", expected=f"one of {may}")]
    unknown, missing = len(reply.tensors.keys() - like.keys()), len(like.keys() - reply.tensors.keys())
    if unknown:
        expected = f"the {len(like)} names of the allow-list"
        problems.add("message -> tensors", found=f"{unknown} with names that may not leave", expected=expected)
    if missing:
        problems.add("message -> tensors", found=f"{missing} names missing", expected="all of the allow-list")
    for name in sorted(like.keys() & reply.tensors.keys()):
        tensor, wanted = reply.tensors[name], like[name]
        if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided:
            problems.add(f"message -> {name}", found="something else", expected="a plain tensor")
        elif tensor.shape != wanted.shape:
            problems.add(f"message -> {name}", found="another shape", expected=f"shape {tuple(wanted.shape)}")
        elif tensor.dtype != wanted.dtype:
            problems.add(f"message -> {name}", found="another dtype", expected=str(wanted.dtype))
        elif kind in allowed.exact and not torch.equal(tensor.cpu(), wanted.cpu()):
            problems.add(f"message -> {name}", found="other values", expected="the site's own on the public images")
    return list(problems)
