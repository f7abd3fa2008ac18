"""Components of a mask and their boxes, as prompts of SAM."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from samfed_monai.methods import see
from samfed_monai.methods.see import connected_components, prompts
from samfed_monai.networks.sam.build import assemble, embed, vit_encoder


def test_parts_that_touch_at_a_corner_are_one_and_the_largest_comes_first():
    mask = torch.zeros(20, 40, dtype=torch.bool)
    mask[2:4, 2:4] = True
    mask[4:6, 4:6] = True  # touches the first at a corner: 8 pixels together
    mask[10:14, 20:30] = True  # 40 pixels
    parts = connected_components(mask)
    assert len(parts.numbers) == 2
    large, small = parts.numbers
    assert int((parts.labels == large).sum()) == 40
    assert int((parts.labels == small).sum()) == 8
    assert torch.equal(parts.labels > 0, mask)


def test_boxes_are_shares_of_the_image_with_a_margin_inside_it():
    mask = torch.zeros(20, 40, dtype=torch.bool)
    mask[10:14, 20:30] = True
    # 10 wide and 4 high, with a twentieth of that on either side
    expected = [19.5 / 40, 9.8 / 20, 30.5 / 40, 14.2 / 20]
    assert connected_components(mask).boxes[0].tolist() == pytest.approx(expected)
    assert connected_components(torch.ones(5, 7, dtype=torch.bool)).boxes.tolist() == [[0, 0, 1, 1]]


def test_specks_are_labelled_but_not_boxed():
    mask = torch.zeros(100, 100, dtype=torch.bool)
    mask[0, :4] = True  # 4 pixels of 10,000 are less than 5e-4
    mask[50, :5] = True
    parts = connected_components(mask)
    assert len(parts.numbers) == len(parts.boxes) == 1
    assert int((parts.labels > 0).sum()) == 9
    assert connected_components(torch.zeros(4, 4, dtype=torch.bool)).boxes.shape == (0, 4)


def test_only_the_largest_of_many_are_boxed():
    mask = torch.zeros(40, 40, dtype=torch.bool)
    for number in range(12):
        row, column = 10 * (number // 4), 10 * (number % 4)
        mask[row : row + 2, column : column + 1 + number // 2] = True
    parts = connected_components(mask)
    assert len(parts.numbers) == see.MOST_PARTS == 8
    areas = [int((parts.labels == number).sum()) for number in parts.numbers]
    assert areas == [12, 12, 10, 10, 8, 8, 6, 6]


@pytest.fixture(scope="module")
def sam():
    torch.manual_seed(0)
    return assemble(vit_encoder(256, width=16, depth=1, heads=2, global_blocks=(0,)), 256).eval()


def predictor(sam, size: int):
    """segment-anything's own predictor around the parts of ``sam``."""
    from segment_anything import SamPredictor
    from segment_anything.modeling import Sam

    mean, std = sam.pixel_mean.flatten() * 255, sam.pixel_std.flatten() * 255
    whole = Sam(sam.image_encoder, sam.prompt_encoder, sam.mask_decoder, mean.tolist(), std.tolist()).eval()
    whole.image_encoder.img_size = size
    return SamPredictor(whole)


@pytest.mark.parametrize(("height", "width"), [(256, 256), (192, 256), (256, 128)])
def test_images_of_sams_size_are_embedded_and_decoded_as_by_its_own_predictor(sam, height, width):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    box = np.array([20.0, 30.0, 90.0, 100.0])
    official = predictor(sam, 256)
    official.set_image(image)
    _, _, low = official.predict(box=box, multimask_output=False)
    tensor = torch.tensor(image).permute(2, 0, 1)[None].float() / 255
    embedding = embed(sam, tensor, 256, bf16=False)
    # the same arithmetic on intensities 0..255 and 0..1: float32 rounding
    torch.testing.assert_close(embedding, official.get_image_embedding(), rtol=1e-3, atol=1e-4)
    # the predictor takes pixel indices; as positions they are half a pixel further, as shares divided by the sides
    shares = (torch.tensor(box, dtype=torch.float32) + 0.5) / torch.tensor([width, height, width, height])
    with torch.no_grad():
        logits = sam.decode(embedding, prompts(shares[None], height, width, 256))
    assert logits.shape == (1, 1, 64, 64)
    torch.testing.assert_close(logits[0, 0], torch.tensor(low[0]), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("height", "width"), [(96, 128), (300, 400), (288, 384), (487, 531), (1000, 333)])
def test_prompts_are_those_of_sams_own_transform(height, width):
    from segment_anything.utils.transforms import ResizeLongestSide

    boxes = np.array([[0.0, 0.0, width, height], [width * 0.2, height * 0.3, width * 0.7, height * 0.9]])
    theirs = ResizeLongestSide(1024).apply_boxes(boxes, (height, width))
    shares = torch.tensor(boxes / [width, height, width, height], dtype=torch.float32)
    ours = prompts(shares, height, width, 1024) + 0.5
    # our inner size is a multiple of 4, theirs of 1: the ends differ by up to 2 pixels of 1,024
    assert np.abs(ours.numpy() - theirs).max() <= 2.0 + 1e-3
    assert np.abs(ours[:, [0, 2]].numpy() - theirs[:, [0, 2]]).max() <= (0 if width >= height else 2.0) + 1e-3
