"""Refinement of masks with SAM's prompts, and the components that they are made of."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch

from samfed_monai.core.errors import Refused
from samfed_monai.core.io import canonical_hash
from samfed_monai.networks.sam import refine as components
from samfed_monai.networks.sam.build import assemble, build_sam, vit_encoder
from samfed_monai.networks.sam.geometry import embed
from samfed_monai.networks.sam.refine import BoxRefiner, Refinement, connected_components, make_refiner, prompts
from samfed_monai.networks.sam.teacher import Teacher, identity


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
    assert len(parts.numbers) == components.MOST == 8
    areas = [int((parts.labels == number).sum()) for number in parts.numbers]
    assert areas == [12, 12, 10, 10, 8, 8, 6, 6]


BOXES = Refinement("boxes")


@pytest.fixture(scope="module")
def sam():
    torch.manual_seed(0)
    return assemble(vit_encoder(256, width=16, depth=1, heads=2, global_blocks=(0,)), 256).eval()


class Scripted(torch.nn.Module):
    """A SAM whose answer to a box is 1 inside it and 0 outside, and which predicts the IoU it is told to."""

    def __init__(self, *ious: float, side: int = 64) -> None:
        super().__init__()
        self.side = side
        self.ious, self.boxes = torch.tensor(ious), torch.zeros(0, 4)
        self.register_buffer("pixel_mean", torch.zeros(1))

    def normalise(self, images):
        return images

    def encode(self, images):
        return images

    def decode_boxes(self, embedding, boxes):
        self.boxes = boxes
        logits = torch.full((len(boxes), 1, self.side, self.side), -20.0)
        for logit, (left, top, right, bottom) in zip(logits, (boxes + 0.5) / 4, strict=True):
            logit[:, round(float(top)) : round(float(bottom)), round(float(left)) : round(float(right))] = 20.0
        return logits, self.ious[: len(boxes)]


def two_parts() -> torch.Tensor:
    """Two blobs of 0.8 with a soft border of 0.4, on 64 x 64: the left one is larger."""
    first = torch.zeros(1, 1, 64, 64)
    first[..., 9:31, 9:31] = 0.4
    first[..., 10:30, 10:30] = 0.8
    first[..., 39:51, 39:51] = 0.4
    first[..., 40:50, 40:50] = 0.8
    return first


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
    _, iou, low = official.predict(box=box, multimask_output=False)
    tensor = torch.tensor(image).permute(2, 0, 1)[None].float() / 255
    embedding = embed(sam, tensor, 256, bf16=False)
    # the same arithmetic on intensities 0..255 and 0..1: float32 rounding
    torch.testing.assert_close(embedding, official.get_image_embedding(), rtol=1e-3, atol=1e-4)
    # the predictor takes pixel indices; as positions they are half a pixel further, as shares divided by the sides
    shares = (torch.tensor(box, dtype=torch.float32) + 0.5) / torch.tensor([width, height, width, height])
    with torch.no_grad():
        logits, predicted = sam.decode_boxes(embedding, prompts(shares[None], height, width, 256))
    assert logits.shape == (1, 1, 64, 64)
    torch.testing.assert_close(logits[0, 0], torch.tensor(low[0]), rtol=1e-3, atol=1e-4)
    assert float(predicted) == pytest.approx(float(iou[0]), abs=1e-4)


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


def test_boxes_replace_what_the_first_pass_saw():
    scripted = Scripted(0.9, 0.9)
    image, first = torch.rand(1, 3, 256, 256), two_parts()
    found = BoxRefiner(scripted, 256, BOXES)(image, first)
    # boxes of the parts with a twentieth of margin: 20 px wide gives 1 px, 10 px gives 0.5, in pixels of the input
    expected = [[9 * 4, 9 * 4, 31 * 4, 31 * 4], [39.5 * 4, 39.5 * 4, 50.5 * 4, 50.5 * 4]]
    torch.testing.assert_close(scripted.boxes + 0.5, torch.tensor(expected))
    filled = torch.zeros(64, 64, dtype=torch.bool)
    filled[9:31, 9:31] = True
    filled[40:50, 40:50] = True  # round(39.5) and round(50.5) are even
    assert torch.equal(found[0, 0] > 0.5, filled)
    assert set(found.unique().tolist()) <= {float(torch.tensor(-20.0).sigmoid()), 1.0}


def test_a_part_whose_predicted_iou_is_low_stays_as_it_was_seen():
    first = two_parts()
    refiner = BoxRefiner(Scripted(0.9, 0.5), 256, Refinement("boxes", refine_least_iou=0.7))
    found = refiner(torch.rand(1, 3, 256, 256), first)
    torch.testing.assert_close(found[..., 35:, 35:], first[..., 35:, 35:])  # soft border and all
    assert (found[..., 9:31, 9:31] > 0.99).all()


def test_an_answer_that_is_something_else_in_the_box_is_none():
    first = two_parts()
    first[..., 12:28, 12:28] = 0  # a thin ring: the whole box is less than half ring
    image = torch.rand(1, 3, 256, 256)
    # ring 400 - 256 = 144 of a box of 22 x 22: IoU 0.30; the other part 100 of 10 x 10 or more
    strict = BoxRefiner(Scripted(0.9, 0.9), 256, BOXES)(image, first)
    ring = (first[0, 0] > 0.5) & (torch.arange(64) < 35)
    assert torch.equal((strict[0, 0] > 0.5) & (torch.arange(64) < 35), ring)
    loose = BoxRefiner(Scripted(0.9, 0.9), 256, Refinement("boxes", refine_least_agreement=0.25))(image, first)
    assert (loose[..., 9:31, 9:31] > 0.99).all()


@pytest.mark.parametrize("answer", [0.9, 0.5])
def test_a_speck_is_dropped_whether_the_answer_counts_or_not(answer):
    image, first = torch.rand(1, 3, 256, 256), two_parts()
    first[..., 60, 60] = 0.9
    found = BoxRefiner(Scripted(answer, answer), 256, Refinement("boxes", refine_least_iou=0.7))(image, first)
    assert found[0, 0, 60, 60] < 0.01
    mean = BoxRefiner(Scripted(answer, answer), 256, Refinement("mean", refine_least_iou=0.7))(image, first)
    assert float(mean[0, 0, 60, 60]) == pytest.approx(0.45, abs=1e-3)


def test_answers_that_are_made_smaller_stay_probabilities():
    first = torch.zeros(1, 1, 107, 128)
    first[..., 10:100, 10:120] = 0.8
    found = BoxRefiner(Scripted(0.9, side=256), 1024, BOXES)(torch.rand(1, 3, 213, 256), first)
    assert (found > 0.99).any()
    assert 0 <= found.min() <= found.max() <= 1  # from 213 rows to 107, ones would become 1.00000012


def test_the_mean_is_that_of_both_passes():
    image, first = torch.rand(1, 3, 256, 256), two_parts()
    boxes = BoxRefiner(Scripted(0.9, 0.9), 256, BOXES)(image, first)
    mean = BoxRefiner(Scripted(0.9, 0.9), 256, Refinement("mean"))(image, first)
    torch.testing.assert_close(mean, (boxes + first) / 2)


def test_an_image_without_a_part_is_left_alone_and_images_do_not_mix():
    empty = torch.full((1, 1, 64, 64), 0.3)
    refiner = BoxRefiner(Scripted(0.9, 0.9), 256, BOXES)
    found = refiner(torch.rand(2, 3, 256, 256), torch.cat([empty, two_parts()]))
    assert torch.equal(found[:1], empty)
    assert torch.equal(found[1:], refiner(torch.rand(1, 3, 256, 256), two_parts()))


def test_a_second_pass_at_another_size_stays_in_register(sam):
    """A first mask of 128 px input, refined at 256 px: the answer covers the same image with the same pixels."""
    first = torch.zeros(1, 1, 24, 32)
    first[..., 8:16, 8:24] = 0.9
    found = BoxRefiner(Scripted(0.9), 256, BOXES)(torch.rand(1, 3, 96, 128), first)
    left, top, right, bottom = connected_components(first[0, 0] > 0.5).boxes[0].tolist()
    inside = found[0, 0] > 0.5
    rows, columns = torch.where(inside)
    # a pixel of the first mask is two of the second one
    assert rows.min() / 24 == pytest.approx(top, abs=1 / 48)
    assert (rows.max() + 1) / 24 == pytest.approx(bottom, abs=1 / 48)
    assert columns.min() / 32 == pytest.approx(left, abs=1 / 48)
    assert (columns.max() + 1) / 32 == pytest.approx(right, abs=1 / 48)


def test_the_teacher_refines_the_mean_of_its_views(sam):
    image = torch.rand(1, 3, 64, 64)
    plain = Teacher(sam, sha256="x", size=256, views=2, bf16=False)
    refiner = BoxRefiner(Scripted(*[0.9] * 8), 256, BOXES)
    refined = Teacher(sam, sha256="x", size=256, views=2, bf16=False, refiner=refiner)
    torch.testing.assert_close(refined.probabilities(image), refiner(image, plain.probabilities(image)))


def test_the_identity_knows_of_refinement_only_where_there_is_one():
    base = {"base_sha256": "a", "adapter_sha256": "none", "size": 512, "views": 1}
    assert identity(**base) == identity(**base, refinement=Refinement().content())
    # what it was before there was a refinement: stores that were filled then stay valid
    assert identity(**base) == canonical_hash({"base": "a", "adapter": "none", "size": 512, "views": 1})
    others = [
        Refinement("boxes"),
        Refinement("mean"),
        Refinement("boxes", "adapted"),
        Refinement("boxes", refine_size=512),
        Refinement("boxes", refine_least_iou=0.8),
        Refinement("boxes", refine_least_agreement=0.0),
    ]
    assert len({identity(**base, refinement=other.content()) for other in others} | {identity(**base)}) == 7
    assert Refinement("boxes").content() == Refinement("boxes", refine_size=1024).content()


def test_load_builds_the_sam_that_was_asked_for(checkpoint):
    plain = Teacher.load("vit_t", checkpoint, size=64)
    assert plain.refiner is None
    base = Teacher.load("vit_t", checkpoint, size=64, refine="boxes", refine_size=128)
    assert base.refiner is not None
    assert base.refiner.size == 128
    assert base.refiner.sam is not base.sam
    assert not any(parameter.requires_grad for parameter in base.parameters())
    adapted = Teacher.load("vit_t", checkpoint, size=64, refine="mean", refine_with="adapted")
    assert adapted.refiner is not None
    assert (adapted.refiner.sam, adapted.refiner.size) == (adapted.sam, 64)
    assert len({base.sha256, adapted.sha256, plain.sha256}) == 3
    assert adapted.probabilities(torch.rand(1, 3, 40, 50)).min() >= 0


def test_the_default_size_is_what_was_measured(sam, monkeypatch):
    asked = []
    monkeypatch.setattr(components, "build_sam", lambda *arguments: asked.append(arguments) or sam)
    make_refiner(BOXES, sam, 256, base="vit_t", checkpoint="w.pt", bf16=False)
    assert asked == [("vit_t", "w.pt", 1024)]


def test_everything_wrong_is_told_at_once():
    with pytest.raises(Refused, match="refused: 5 problems") as refused:
        Refinement("box", "sam", 300, 1.5, True)
    message = str(refused.value)
    assert "teacher -> refine: expected one of ['none', 'boxes', 'mean'], found 'box'" in message
    assert "teacher -> refine_with: expected one of ['base', 'adapted'], found 'sam'" in message
    assert "teacher -> refine_size: expected a multiple of 16 from 64 to 1024 pixels, or null, found 300" in message
    assert "teacher -> refine_least_iou: expected a number in [0, 1], found 1.5" in message
    assert "teacher -> refine_least_agreement: expected a number in [0, 1], found True" in message
    with pytest.raises(Refused, match="refine_size: expected null with refine_with 'adapted', found 512"):
        Refinement("boxes", "adapted", 512)


def test_a_real_mobile_sam_finds_a_polyp_in_its_box(samfed_data):
    """With the true mask as first pass, its box alone lets MobileSAM find the polyp again."""
    from samfed_monai.data import read_image, read_mask

    folder, size = samfed_data / "data", 256
    with open(folder / "tiny" / "manifest.csv", newline="") as stream:
        row = next(row for row in csv.DictReader(stream) if "kvasir" in row["site"])
    image = torch.tensor(read_image(folder / row["image"])).permute(2, 0, 1)[None].float() / 255
    mask = torch.tensor(read_mask(folder / row["mask"])).float()[None, None]
    truth = torch.nn.functional.interpolate(mask, (size // 4, size // 4), mode="area")
    refiner = BoxRefiner(build_sam("vit_t", samfed_data / "weights" / "mobile_sam.pt", size), size, BOXES)
    found = refiner(image, truth)
    overlap = 2 * float(((found > 0.5) & (truth > 0.5)).sum()) / float((found > 0.5).sum() + (truth > 0.5).sum())
    assert overlap > 0.8
