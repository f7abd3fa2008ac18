from __future__ import annotations

import pytest

from samfed_monai.data.partitions import share_problems


@pytest.mark.parametrize(
    ("validation", "test", "told"),
    [
        (1.5, 0.1, ["--validation: expected a share in [0, 1), found 1.5; for instance 0.1"]),
        (
            -0.1,
            float("nan"),
            [
                "--validation: expected a share in [0, 1), found -0.1; for instance 0.1",
                "--test: expected a share in [0, 1), found nan; for instance 0.1",
            ],
        ),
        (
            0.4,
            0.6,
            ["--validation and --test: expected less than 1 together, found 0.4 and 0.6; for instance 0.1 and 0.1"],
        ),
        (0.0, 0.9, []),
    ],
)
def test_impossible_shares_are_told_by_their_options(validation, test, told):
    assert [str(problem) for problem in share_problems(validation, test)] == told
