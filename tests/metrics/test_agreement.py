"""HD95 and Dice against MONAI, and against MedPy in the pooled convention, on masks of every kind.

The tolerance is 1e-4: MONAI holds distances in float32, which rounds those of these masks by less than 1e-5.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import compute_dice, compute_hausdorff_distance
from scipy.ndimage import binary_erosion, distance_transform_edt, gaussian_filter

from samfed_monai.metrics import hausdorff95, segmentation_scores

Mask = np.ndarray
TOLERANCE = 1e-4


def monai(prediction: Mask, label: Mask) -> tuple[float, float]:
    a, b = torch.from_numpy(prediction)[None, None], torch.from_numpy(label)[None, None]
    far = compute_hausdorff_distance(a, b, include_background=True, percentile=95)
    return compute_dice(a, b).item(), far.item()


def medpys_definition(prediction: Mask, label: Mask) -> float:
    """What ``medpy.metric.binary.hd95`` computes, on the full frame, so that the tests need no MedPy."""
    edges = [mask ^ binary_erosion(mask) for mask in (prediction, label)]
    there, back = distance_transform_edt(~edges[1])[edges[0]], distance_transform_edt(~edges[0])[edges[1]]
    return float(np.percentile(np.hstack([there, back]), 95))


@st.composite
def rectangle(draw, shape):
    """A rectangle: among them single pixels, thin lines, the whole frame and what touches its border."""
    (top, bottom), (left, right) = (sorted([draw(st.integers(0, n - 1)) for _ in "ab"]) for n in shape)
    mask = np.zeros(shape, bool)
    mask[top : bottom + 1, left : right + 1] = True
    return mask


@st.composite
def diagonal(draw, shape):
    mask = np.zeros(shape, bool)
    start, step = draw(st.integers(0, shape[1] - 1)), draw(st.sampled_from([-2, -1, 1, 2]))
    rows = np.arange(shape[0])
    mask[rows, (start + step * rows) % shape[1]] = True
    return mask


@st.composite
def blob(draw, shape):
    noise = gaussian_filter(np.random.default_rng(draw(st.integers(0, 10**6))).normal(size=shape), draw(SMOOTH))
    return noise >= np.quantile(noise, draw(st.floats(0.1, 0.99)))


SMOOTH = st.sampled_from([0.5, 2, 5])
SHAPES = st.tuples(st.integers(1, 48), st.integers(1, 48))


@st.composite
def masks(draw, shape):
    parts = draw(st.lists(rectangle(shape) | diagonal(shape) | blob(shape), min_size=1, max_size=3))
    return np.logical_or.reduce(parts)


@st.composite
def pairs(draw):
    """Two masks: unrelated, shifted, one inside the other, or the corners of a frame apart."""
    shape = draw(SHAPES)
    first = draw(masks(shape))
    kind = draw(st.sampled_from(["unrelated", "shifted", "nested", "apart"]))
    second = draw(masks(shape))
    if kind == "shifted":
        second = np.roll(first, draw(st.integers(-5, 5)), axis=draw(st.integers(0, 1)))
    elif kind == "nested":
        second = first | second
    elif kind == "apart":
        wide, gap = np.zeros((3 * shape[0] + 40, 3 * shape[1] + 90), bool), shape
        far = wide.copy()
        wide[: gap[0], : gap[1]], far[-gap[0] :, -gap[1] :] = first, second
        first, second = wide, far
    return (second, first) if draw(st.booleans()) else (first, second)


@settings(max_examples=250, deadline=None)
@given(pair=pairs())
def test_dice_and_hd95_agree_with_monai(pair):
    scores = segmentation_scores(*pair)
    dice, hd95 = monai(*pair)
    assert scores.hd95 == pytest.approx(hd95, abs=TOLERANCE)
    assert scores.dice == pytest.approx(dice, abs=TOLERANCE)


@settings(max_examples=250, deadline=None)
@given(pair=pairs())
def test_pooled_hd95_agrees_with_medpys_definition(pair):
    found = hausdorff95(*pair, pooled=True)
    # both are float64: what differs is the order of a root and a line
    assert found == pytest.approx(medpys_definition(*pair), abs=1e-9)
    assert segmentation_scores(*pair, pooled=True).hd95 == found


@settings(max_examples=100, deadline=None)
@given(pair=pairs())
def test_pooled_hd95_agrees_with_medpy(pair):
    binary = pytest.importorskip("medpy.metric.binary", reason="MedPy is not installed: pip install -e .[dev]")
    assert hausdorff95(*pair, pooled=True) == pytest.approx(binary.hd95(*pair), abs=TOLERANCE)


@pytest.mark.parametrize("seed", range(3))
def test_at_the_evaluation_size_too(seed):
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(3, 384, 384)), (0, 25, 25))
    label = noise[0] > noise[0].std()
    prediction = noise[0] + 0.3 * noise[1] > 0.9 * noise[0].std()
    assert segmentation_scores(prediction, label).hd95 == pytest.approx(monai(prediction, label)[1], abs=TOLERANCE)
    assert hausdorff95(prediction, label, pooled=True) == pytest.approx(medpys_definition(prediction, label))
