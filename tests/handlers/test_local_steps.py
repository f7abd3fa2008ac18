"""Steps of a round."""

from __future__ import annotations

import pytest

from samfed_monai.core.errors import Refused
from samfed_monai.handlers import steps_per_round


@pytest.mark.parametrize(
    ("local_steps", "unlabelled", "steps"),
    [(None, 17, 3), (None, 16, 2), (None, 1, 1), (5, 17, 5), (None, 0, 2)],  # without unlabelled images: public ones
)
def test_steps(local_steps: int | None, unlabelled: int, steps: int) -> None:
    found = steps_per_round(local_steps=local_steps, batch_size=8, labelled=range(10), unlabelled=range(unlabelled))
    assert found == steps


def test_no_image_at_all_is_still_one_step_so_that_the_stream_can_say_what_is_wrong() -> None:
    assert steps_per_round(local_steps=None, batch_size=8, labelled=[], unlabelled=[]) == 1


def test_zero_steps_or_batches_are_refused() -> None:
    with pytest.raises(Refused, match=r"train.json -> local_steps: expected a whole number >= 1, found 0"):
        steps_per_round(local_steps=0, batch_size=8, labelled=[], unlabelled=[])
    with pytest.raises(Refused, match=r"train.json -> batch_size: .* found -2"):
        steps_per_round(local_steps=1, batch_size=-2, labelled=[], unlabelled=[])
