"""SAM as a teacher: what it says of an image, and foreground relative to the highest probability."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from samfed_monai.core.errors import Refused
from samfed_monai.core.io import sha256_file
from samfed_monai.networks.sam.build import assemble, vit_encoder
from samfed_monai.networks.sam.teacher import Teacher, check_peak, identity, relative_to_peak
from samfed_monai.networks.views import VIEWS


def masks(*rows):
    return torch.tensor(rows, dtype=torch.float32).view(len(rows), 1, 1, -1)


def test_the_threshold_is_a_part_of_each_image_s_own_peak():
    found = relative_to_peak(masks([0.1, 0.3, 0.5], [0.1, 0.3, 1.0]), 0.4)
    # odds of p over odds of the threshold, 0.2 and 0.4: 0.3 / 0.7 / (0.2 / 0.8) = 12 / 7, so 12 / 19
    torch.testing.assert_close(found[0].flatten(), torch.tensor([4 / 13, 12 / 19, 0.8]))
    assert (found > 0.5).flatten(1).tolist() == [[False, True, True], [False, False, True]]


def test_a_sure_image_at_one_half_is_left_as_it_is():
    sure = masks([0.2, 0.5, 1.0])
    torch.testing.assert_close(relative_to_peak(sure, 0.5), sure, atol=1e-5, rtol=0)


@given(st.lists(st.floats(0, 1, width=32), min_size=2, max_size=6), st.floats(0.01, 0.5))
def test_the_order_of_pixels_stays_and_the_peak_is_foreground(values, peak):
    before = masks(values)
    after = relative_to_peak(before, peak)
    assert torch.isfinite(after).all()
    assert after.min() >= 0
    assert after.max() <= 1
    assert (after.flatten()[before.flatten().argsort()].diff() >= -1e-6).all()
    if max(values) > 1e-5:
        assert after.flatten()[before.argmax()] > 0.5


@pytest.mark.parametrize("peak", [0, -0.1, 0.6, "0.4", True])
def test_a_part_out_of_its_range_is_refused(peak):
    with pytest.raises(Refused, match=r"teacher -> peak: expected a number in \(0, 0.5\], or null, found"):
        check_peak(peak)
    check_peak(None)


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(0)
    sam = assemble(vit_encoder(256, width=16, depth=1, heads=2, global_blocks=(0,)), 256)
    return Teacher(sam, sha256="x", size=256, bf16=False)


@pytest.mark.parametrize(("image", "mask"), [((40, 40), (64, 64)), ((30, 40), (48, 64)), ((300, 100), (64, 21))])
def test_probabilities_cover_exactly_the_image(teacher, image, mask):
    probabilities = teacher.probabilities(torch.rand(2, 3, *image))
    assert probabilities.shape == (2, 1, *mask)
    assert probabilities.dtype == torch.float32
    assert 0 <= probabilities.min() <= probabilities.max() <= 1
    assert not probabilities.requires_grad


def test_views_are_averaged_in_the_frame_of_the_image(teacher):
    image = torch.rand(1, 3, 30, 40)
    expected = torch.stack([view.undo(teacher.logits(view.apply(image)).sigmoid()) for view in VIEWS[4]]).mean(0)
    teacher.views = 4
    try:
        torch.testing.assert_close(teacher.probabilities(image), expected)
    finally:
        teacher.views = 1


def test_eight_views_make_the_teacher_equivariant_to_turns(teacher):
    image = torch.rand(1, 3, 32, 32)
    teacher.views = 8
    try:
        turned = teacher.probabilities(torch.rot90(image, 1, (-2, -1)))
        expected = torch.rot90(teacher.probabilities(image), 1, (-2, -1))
    finally:
        teacher.views = 1
    torch.testing.assert_close(turned, expected, rtol=1e-3, atol=1e-4)  # the same eight terms in another order


def test_bf16_moves_probabilities_little(teacher):
    image = torch.rand(1, 3, 64, 64)
    exact = teacher.probabilities(image)
    teacher.bf16 = True
    try:
        # 8 bits of mantissa: about 1 % (design/MEASURED.md)
        assert (teacher.probabilities(image) - exact).abs().max() < 0.02
    finally:
        teacher.bf16 = False


def test_load_knows_what_it_is(checkpoint):
    teacher = Teacher.load("vit_t", checkpoint, size=64, views=2)
    assert teacher.sha256 == identity(base_sha256=sha256_file(checkpoint), adapter_sha256="none", size=64, views=2)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not teacher.training


def test_identity_depends_on_everything_that_decides_the_masks():
    base = {"base_sha256": "a", "adapter_sha256": "none", "size": 512, "views": 1}
    changed = [
        base,
        base | {"base_sha256": "b"},
        base | {"adapter_sha256": "c"},
        base | {"size": 256},
        base | {"views": 8},
        base | {"peak": 0.4},
    ]
    assert len({identity(**arguments) for arguments in changed}) == 6


def test_the_peak_shifts_the_mean_of_the_views(checkpoint):
    image = torch.rand(1, 3, 40, 32)
    plain, relative = (Teacher.load("vit_t", checkpoint, size=64, views=2, bf16=False, peak=p) for p in (None, 0.4))
    expected = relative_to_peak(plain.probabilities(image), 0.4)
    torch.testing.assert_close(relative.probabilities(image), expected)


def test_fault_28_missing_weights_are_refused_with_the_command(monkeypatch, tmp_path):
    monkeypatch.setenv("SAMFED_WEIGHTS", str(tmp_path))
    with pytest.raises(Refused, match=r"run `samfed weights mobile_sam --from FILE\|URL\|registry`"):
        Teacher.load("vit_t")


def test_an_odd_number_of_views_is_refused(teacher):
    with pytest.raises(Refused, match=r"teacher -> views: expected one of \[1, 2, 4, 8\], found 3"):
        Teacher(teacher.sam, sha256="x", size=256, views=3)
