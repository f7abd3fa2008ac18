"""How many optimizer steps a site takes in one round."""

from __future__ import annotations

from collections.abc import Sized

from samfed_monai.errors import Problem, Refused


def steps_per_round(*, local_steps: int | None, batch_size: int, labelled: Sized, unlabelled: Sized) -> int:
    """``local_steps``, or as many as one pass over the unlabelled images takes.

    Args:
        local_steps: number of steps, or ``None``.
        batch_size: images in a batch.
        labelled: the public images; one pass over them where there is no unlabelled image (warm start).
        unlabelled: the site's unlabelled images.

    Raises:
        Refused: a number of steps or a batch size below 1.
    """
    for name, value in (("local_steps", local_steps), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise Refused([Problem(f"train.json -> {name}", found=repr(value), expected="a whole number >= 1")])
    if local_steps is not None:
        return local_steps
    return max(1, -(-(len(unlabelled) or len(labelled)) // batch_size))
