"""SEE: scores, selection and weights by hand, a store keyed by image, prompts, rounds that go on to the same bits."""

from __future__ import annotations

import copy
import stat
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import avg_pool2d

from samfed_monai.core.errors import Refused
from samfed_monai.handlers import Guidance
from samfed_monai.losses import dice_of_labels, weighted_pseudo_label_loss
from samfed_monai.methods import see
from samfed_monai.methods.see import (
    LoadPseudoLabeld,
    PseudoLabelStore,
    RefinedLabelTerm,
    SamRefiner,
    Scores,
    is_kept,
    part_points,
    scored,
    spread,
    uncertainty,
)
from samfed_monai.networks import build_sam
from tests.networks.sam.tiny import tiny_sam

ONE, TWO = "1" * 64, "2" * 64


def test_uncertainty_by_hand():
    found = uncertainty(torch.tensor([0.0, 0.5, 1.0, 0.25]).view(1, 1, 1, 4)).flatten()
    torch.testing.assert_close(found, torch.tensor([0.0, 1.0, 0.0, 0.8112781]), atol=1e-5, rtol=0)


def label(unsure: int, foreground: int) -> torch.Tensor:
    """10 x 10 pixels, some of 0.5 and some of 1."""
    flat = torch.zeros(100)
    flat[:unsure] = 0.5
    flat[100 - foreground :] = 1.0
    return flat.view(1, 10, 10)


def test_images_are_chosen_by_unsure_pixels_of_all_and_of_the_foreground():
    assert is_kept(label(9, 40))
    assert not is_kept(label(10, 40)), "10 of 100 are not below 0.1"
    assert is_kept(label(9, 19))
    assert not is_kept(label(9, 18)), "9 of 18 are not below 0.5"
    assert is_kept(label(0, 0))
    assert not is_kept(label(1, 0))
    assert not is_kept(label(1, 0), relative=1.0)
    assert is_kept(label(60, 40), absolute=1.0, relative=1.0, unsure=1.0), "no entropy is above one bit"


@pytest.mark.parametrize(("probability", "kept"), [(0.3, True), (0.33, False), (0.67, False), (0.7, True)])
def test_a_pixel_is_unsure_above_nine_tenths_of_a_bit(probability, kept):
    found = label(0, 40)
    found[0, 0] = probability  # 10 of 100: of 0.3 and 0.7 the entropy is 0.881 bits, of 0.33 and 0.67 it is 0.915
    assert is_kept(found) is kept


def test_the_three_scores_by_hand():
    refined, coarse = torch.zeros(1, 2, 2), torch.zeros(1, 2, 2)
    refined[0, 0] = 1.0
    coarse[0, 0, 0] = coarse[0, 1, 0] = 1.0
    weak = torch.tensor([[[1.0, 255.0], [0.0, 255.0]]])
    assert scored(refined, coarse, weak, 0.3) == pytest.approx((1.0, 1 / 3, 1.0), abs=1e-5)
    assert scored(refined, coarse, 1 - weak.clamp(max=1) + 254 * (weak > 1), 0.3).fidelity == 0
    assert scored(refined, coarse, None, 0.3).fidelity == 0.3
    assert scored(refined, coarse, torch.full((1, 2, 2), 255.0), 0.3).fidelity == 0.3
    assert scored(refined, coarse, torch.tensor([[[1.0, 0.0], [0.0, 255.0]]]), 0.3).fidelity == 0.75
    half, empty = torch.full((1, 2, 2), 0.5), torch.zeros(1, 2, 2)
    assert (scored(half, coarse, None, 0.0).agreement, scored(refined, half, None, 0.0).agreement) == (0, 0)
    assert scored(empty, empty, None, 0.0).agreement == 1
    assert scored(half, coarse, None, 0.0).certainty == pytest.approx(0, abs=1e-6)


OLD = Scores(0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("new", "taken"),
    [
        ((0.6, 0.6, 0.1), True),
        ((0.6, 0.1, 0.6), True),
        ((0.1, 0.6, 0.6), True),
        ((0.6, 0.6, 0.6), True),
        ((0.9, 0.5, 0.5), False),
        ((0.9, 0.4, 0.4), False),
        ((0.5, 0.5, 0.5), False),
    ],
)
def test_the_store_is_keyed_by_image_and_replaced_where_two_scores_are_better(new, taken):
    store = PseudoLabelStore()
    assert store.offer(ONE, torch.zeros(1, 2, 2), OLD)
    assert store.offer(TWO, torch.full((1, 2, 2), 0.2), OLD)
    assert store.offer(ONE, torch.ones(1, 2, 2), Scores(*new)) is taken
    assert store.get(ONE).mean() == float(taken)
    assert store.scores(ONE) == (Scores(*new) if taken else OLD)
    assert torch.equal(store.get(TWO), torch.full((1, 2, 2), 0.2)), "51 of 255"
    assert store.get("3" * 64) is None
    assert (ONE in store, "3" * 64 in store, len(store)) == (True, False, 2)


def test_what_is_saved_comes_back_for_its_owner_alone(tmp_path):
    store, path = PseudoLabelStore(), tmp_path / "labels" / "0000.safetensors"
    store.offer(ONE, torch.rand(1, 5, 4), Scores(1 / 3, 0.1, 0.7))
    store.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    again = PseudoLabelStore()
    again.load(path)
    assert torch.equal(again.get(ONE), store.get(ONE))
    assert again.scores(ONE) == store.scores(ONE) == (1 / 3, 0.1, 0.7)
    again.load(None)
    assert len(again) == 0


def test_a_copied_reader_reads_the_one_store_and_unsure_images_have_no_weight():
    term = SimpleNamespace(store=PseudoLabelStore(), absolute=0.1, relative=0.5)
    reader = copy.deepcopy(LoadPseudoLabeld(term=term))  # type: ignore[arg-type]
    term.store.offer(ONE, label(0, 40), OLD)
    term.store.offer(TWO, label(60, 40), OLD)
    image = torch.zeros(3, 10, 10)
    assert torch.equal(reader({"image": image, "image_sha256": ONE})["teacher"], label(0, 40))
    for key in (TWO, "3" * 64):
        found = reader({"image": image, "image_sha256": key})["teacher"]
        assert uncertainty(found[None]).min() == 1
    assert reader({"image": torch.zeros(3, 5, 5), "image_sha256": ONE})["teacher"].shape == (1, 5, 5)


@pytest.mark.parametrize(
    ("absolute", "relative", "pseudo", "weighs"),
    [(0.1, 0.5, (15, 40), False), (0.2, 0.5, (15, 40), True), (0.1, 0.5, (9, 10), False), (0.1, 1.0, (9, 10), True)],
)
def test_which_images_have_a_say_is_decided_by_the_terms_two_thresholds(absolute, relative, pseudo, weighs):
    term = SimpleNamespace(store=PseudoLabelStore(), absolute=absolute, relative=relative)
    term.store.offer(ONE, 0.9 * label(*pseudo), OLD)
    found = LoadPseudoLabeld(term=term)({"image": torch.zeros(3, 10, 10), "image_sha256": ONE})["teacher"]  # type: ignore[arg-type]
    assert bool((uncertainty(found[None]) < 1).any()) is weighs


def test_points_by_hand():
    part = torch.zeros(9, 9, dtype=torch.bool)
    part[0:3, 0:3] = True
    points, labels = part_points(part, ~part)
    assert labels.tolist() == [1, 0]
    assert points[0].tolist() == [1.0, 1.0]
    assert not part[int(points[1, 1]), int(points[1, 0])]
    assert part_points(torch.ones(3, 3, dtype=torch.bool), torch.zeros(3, 3, dtype=torch.bool))[1].tolist() == [1]
    corner = torch.zeros(3, 4, dtype=torch.bool)
    corner[2, 3] = True
    assert part_points(corner, ~corner)[0][0].tolist() == [3.0, 2.0], "in the last row and column"
    mask = torch.tensor([[True, False, True], [True, True, True]])
    assert spread(mask, 9).tolist() == [[0, 0], [2, 0], [0, 1], [1, 1], [2, 1]], "x and y"
    assert spread(mask, 3).tolist() == [[0, 0], [0, 1], [2, 1]]
    assert spread(mask & False, 3).shape == (0, 2)


class FakeSam(torch.nn.Module):
    """Remembers its prompts, and answers each box with its index."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple] = []

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        return images

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return torch.zeros(1, 256, 4, 4)

    def decode_prompts(self, embedding, boxes, points=None, masks=None):
        self.asked.append((boxes, points, masks))
        logits = torch.full((len(boxes), 1, 16, 16), -40.0)
        logits[0, 0, :8] = 40.0
        return logits, torch.full((len(boxes),), 0.5 + 0.1 * len(self.asked))


def test_prompts_are_boxes_then_points_then_the_mask_and_answers_are_averaged():
    sam = FakeSam()
    mask = torch.zeros(1, 32, 32)
    mask[0, 4:16, 4:12] = 1
    weak = torch.full((1, 32, 32), 255.0)
    weak[0, 8, 6], weak[0, 30, 30], weak[0, 31, 31] = 1, 0, 0
    refined = SamRefiner(sam, 64)(torch.rand(3, 32, 32), mask, weak)  # type: ignore[arg-type]
    assert refined is not None
    assert refined.predicted_iou == pytest.approx((0.6 + 0.7 + 0.8) / 3)
    assert refined.probabilities[0, :15].min() == 1
    assert refined.probabilities[0, 17:].max() < 1e-9
    (boxes, none, no_mask), (_, points, _), (_, again, low) = sam.asked
    # 4 to 12 of 32 pixels, 5 % wider at either end, in an input of 64 pixels, as indices of pixels
    torch.testing.assert_close(boxes[0, [0, 2]], torch.tensor([(4 - 0.4) * 2 - 0.5, (12 + 0.4) * 2 - 0.5]))
    assert none is None
    assert no_mask is None
    assert points[1].tolist() == [[1, 0, 0]]
    assert points[0][0].tolist() == [[12.5, 16.5], [60.5, 60.5], [62.5, 62.5]], "the drawn pixels' middles"
    assert torch.equal(points[0], again[0])
    assert low.shape == (1, 1, 16, 16)
    assert low[0, 0, 4, 4] > 6
    assert low[0, 0, 15, 15] < -6
    assert SamRefiner(sam, 64)(torch.rand(3, 32, 32), torch.zeros(1, 32, 32), weak) is None  # type: ignore[arg-type]
    SamRefiner(sam, 64)(torch.rand(3, 32, 32), mask, None)  # type: ignore[arg-type]
    assert sam.asked[-1][1][1].tolist() == [[1, 0]], "the innermost pixel, and one far away"
    half = torch.full((1, 32, 32), 0.5)
    assert SamRefiner(sam, 64)(torch.rand(3, 32, 32), half, None) is None, "one half is no part"  # type: ignore[arg-type]


def test_prompts_of_an_image_that_is_not_square_lie_where_it_lies_in_sams_input():
    sam, weak = FakeSam(), torch.full((1, 48, 32), 255.0)
    weak[0, 20, 10], weak[0, 47, 31] = 1, 0
    refined = SamRefiner(sam, 64)(torch.rand(3, 48, 32), torch.ones(1, 48, 32), weak)  # type: ignore[arg-type]
    assert refined is not None
    assert refined.probabilities.shape == (1, 48, 32)
    assert refined.probabilities[0, :22].min() > 1 - 1e-6
    assert refined.probabilities[0, 26:].max() < 1e-9
    boxes, (points, _), low = sam.asked[-1]
    # 48 x 32 pixels become 64 x 44, and a quarter of that: 16 x 11
    assert boxes.tolist() == [[-0.5, -0.5, 43.5, 63.5]]
    expected = [[10.5 * 44 / 32 - 0.5, 20.5 * 64 / 48 - 0.5], [31.5 * 44 / 32 - 0.5, 47.5 * 64 / 48 - 0.5]]
    torch.testing.assert_close(points[0], torch.tensor(expected))
    assert low[..., :11].min() > 6
    assert low[..., 11:].max() < -6


def test_two_parts_have_a_box_each_and_padded_points_are_none():
    mask = torch.zeros(1, 32, 32)
    mask[0, 2:8, 2:8] = mask[0, 20:30, 20:30] = 1
    weak = torch.full((1, 32, 32), 255.0)
    weak[0, 22, 22:26], weak[0, 0, 0] = 1, 0
    sam = FakeSam()
    SamRefiner(sam, 64)(torch.rand(3, 32, 32), mask, weak)  # type: ignore[arg-type]
    boxes, (points, kinds), low = sam.asked[-1]
    assert len(boxes) == len(low) == 2
    assert kinds.tolist() == [[1, 1, 1, 1, 0], [1, 0, -1, -1, -1]]
    assert points[1, :2].tolist() == [[8.5, 8.5], [0.5, 0.5]], "nothing is drawn in the second: its innermost pixel"


@pytest.mark.parametrize("drawn", [None, 0.0, 1.0])
def test_where_not_both_classes_are_drawn_the_points_are_the_masks_own(drawn):
    mask, weak = torch.zeros(1, 32, 32), torch.full((1, 32, 32), 255.0)
    mask[0, 2:8, 2:8] = 1
    if drawn is not None:
        weak[0, 3, 3] = drawn
    sam = FakeSam()
    SamRefiner(sam, 64)(torch.rand(3, 32, 32), mask, None if drawn is None else weak)  # type: ignore[arg-type]
    _, (points, kinds), _ = sam.asked[-1]
    assert kinds.tolist() == [[1, 0]]
    # pixel 4 of the part is innermost; pixel 17 is 14.1 pixels from the part's corner and 15 from the border
    assert points[0].tolist() == [[8.5, 8.5], [34.5, 34.5]]


def test_the_sam_of_a_term_is_the_one_that_it_names(monkeypatch, tmp_path):
    asked: list[tuple] = []
    term, engine = refined_by(monkeypatch, tmp_path, [], {}, None, base="vit_b", sam_size=64)
    monkeypatch.setattr(see, "_sam", lambda *given: asked.append(given) or nn.Identity())
    term._refine(engine)
    assert asked == [("vit_b", "x", 64)]


def test_a_real_sam_takes_the_prompts():
    sam = tiny_sam()
    mask = torch.zeros(1, 48, 32)
    mask[0, 4:24, 4:24] = 1
    refined = SamRefiner(sam, 64)(torch.rand(3, 48, 32), mask, None)
    assert refined is not None
    assert refined.probabilities.shape == (1, 48, 32)
    assert 0 <= refined.probabilities.min() <= refined.probabilities.max() <= 1
    embedding, boxes = torch.rand(1, 256, 4, 4), torch.tensor([[4.0, 4.0, 40.0, 40.0]])
    with torch.no_grad():
        assert torch.equal(sam.decode_prompts(embedding, boxes)[0], sam.decode_boxes(embedding, boxes)[0])


def seen_by(mask: torch.Tensor, shift: int, blur: int) -> torch.Tensor:
    """What a network with few masks says: the mask (1, H, W), moved and smeared."""
    return avg_pool2d(torch.roll(mask, (shift, shift), (1, 2)), blur, 1, blur // 2).clamp(0, 1)


@pytest.mark.slow
def test_on_real_images_a_better_network_replaces_pseudo_labels_by_better_ones(samfed_data):
    """Every sixth of ClinicDB: what SAM makes of a network's rough masks, and then of finer ones."""
    folder = samfed_data / "data" / "polyp" / "cvc_clinicdb"
    paths = sorted((folder / "images").iterdir())[::105]
    images, masks = [], []
    for path in paths:
        mask = next((folder / "masks").glob(f"{path.stem}.*"))
        pixels = [
            np.array(Image.open(each).convert(mode).resize((224, 224))) for each, mode in ((path, "RGB"), (mask, "L"))
        ]
        images.append(torch.tensor(pixels[0]).permute(2, 0, 1).float() / 255)
        masks.append(torch.tensor(pixels[1] > 127)[None].float())
    sam = build_sam("vit_t", samfed_data / "weights" / "mobile_sam.pt", 256).requires_grad_(False)
    refiner, store = SamRefiner(sam, 256), PseudoLabelStore()

    def round_of(shift: int, blur: int) -> tuple[dict[str, float], set[str]]:
        """Dice of what is stored then, by image, and who has a new one."""
        taken = set()
        for number, (image, mask) in enumerate(zip(images, masks, strict=True)):
            coarse = seen_by(mask, shift, blur)
            refined = refiner(image, coarse, None)
            if refined is not None:
                scores = scored(refined.probabilities, coarse, None, refined.predicted_iou)
                taken |= {str(number)} if store.offer(str(number), refined.probabilities, scores) else set()
        labels = {str(number): store.get(str(number)) for number in range(len(masks))}
        dice = {
            number: float(dice_of_labels((label > 0.5)[None].long(), masks[int(number)][None].long()))
            for number, label in labels.items()
            if label is not None
        }
        return dice, taken

    before, _ = round_of(24, 31)
    after, taken = round_of(4, 9)
    replaced = taken & before.keys()
    assert len(replaced) >= 3
    gains = [after[image] - before[image] for image in replaced]
    assert min(gains) > -0.05, gains
    assert np.mean(gains) > 0.1, gains


def test_the_loss_is_that_of_the_label_with_one_minus_its_entropy():
    term = RefinedLabelTerm(data=None, transform=None)  # type: ignore[arg-type]
    pseudo, logits = torch.tensor([[[[0.75, 0.5]]]]), torch.tensor([[[[0.3, 9.0]]]])
    state = SimpleNamespace(batch={"teacher": pseudo}, output={"pred": logits}, iteration=1)
    value = term.value(None, SimpleNamespace(state=state))
    weight = torch.tensor([[[[1 - 0.8112781, 0.0]]]])
    expected = weighted_pseudo_label_loss(logits, torch.tensor([[[[1, 0]]]]), weight)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(state.terms["see_weight"], weight.mean())
    assert state.terms["see_labelled"] == 0, "before it has seen the site's images"


def test_a_site_without_sam_is_refused_before_it_trains_without_a_path(monkeypatch, tmp_path):
    monkeypatch.setenv("SAMFED_WEIGHTS", str(tmp_path / "nothing"))
    monkeypatch.delenv("SAMFED_DATA", raising=False)
    told = (
        r"SAM vit_t: expected its weights, which terms#see refines pseudo-labels with, found none here; "
        r"run `samfed weights vit_t --from FILE\|URL` at this site$"
    )
    engine = SimpleNamespace(state=SimpleNamespace(guide_names=("weak",)), network=nn.Identity())
    with pytest.raises(Refused, match=told) as error:
        RefinedLabelTerm(data=None, transform=None).check(engine)  # type: ignore[arg-type]
    assert str(tmp_path) not in str(error.value)


@pytest.mark.parametrize(("split", "pseudo", "logit"), [("labelled", 0.1, -2.0), ("unlabelled", 0.8, 3.0)])
def test_pseudo_labels_are_learned_with_the_batch_that_they_belong_to(split, pseudo, logit):
    def plane(value: float) -> torch.Tensor:
        return torch.full((1, 1, 2, 2), value)

    term = RefinedLabelTerm(data=None, transform=None, split=split)  # type: ignore[arg-type]
    state = SimpleNamespace(batch={"teacher": plane(0.1)}, output={"pred": plane(-2.0)}, iteration=1)
    guidance = Guidance(student=plane(3.0), weak_view=plane(0.5), guides={}, batch={"teacher": plane(0.8)})
    value = term.value(guidance, SimpleNamespace(state=state))
    label, weight = (plane(pseudo) > 0.5).long(), 1 - uncertainty(plane(pseudo))
    torch.testing.assert_close(value, weighted_pseudo_label_loss(plane(logit), label, weight))
    if split == "unlabelled":
        guidance = Guidance(student=plane(3.0), weak_view=plane(0.5), guides={}, batch={"image": plane(0.0)})
        with pytest.raises(Refused, match="terms#see: expected the view 'teacher'"):
            term.value(guidance, SimpleNamespace(state=state))


def refined_by(monkeypatch, tmp_path, records, item, refine, **options) -> tuple[RefinedLabelTerm, Any]:
    """A term whose SAM is ``refine``, and an engine whose network says one half everywhere."""
    monkeypatch.setattr(see, "_sam", lambda *given: nn.Identity())
    monkeypatch.setattr(see, "SamRefiner", lambda sam, size: refine)
    data = SimpleNamespace(records=lambda split: [{"image_sha256": each} for each in records])
    given_: dict[str, Any] = {"data": data, "folder": tmp_path, "checkpoint": "x", "views": 1, **options}
    term = RefinedLabelTerm(transform=lambda record: item, **given_)
    state = SimpleNamespace(device="cpu", round=0, rounds=3)
    engine = SimpleNamespace(network=nn.Identity(), inferer=lambda images, network: 0 * images[:, :1], state=state)
    return term, engine


def test_the_weak_label_overrules_what_the_network_says_of_its_pixels(monkeypatch, tmp_path):
    weak, asked = torch.tensor([[[1.0, 255.0], [0.0, 255.0]]]), []

    def refine(image, mask, label):
        asked.append((mask, label))
        return see.Refined(torch.tensor([[[1.0, 1.0], [0.0, 0.0]]]), 0.5)

    term, engine = refined_by(monkeypatch, tmp_path, [ONE], {"image": torch.rand(3, 2, 2), "label": weak}, refine)
    term._refine(engine)
    ((mask, label_),) = asked
    assert mask.tolist() == [[[1.0, 0.5], [0.0, 0.5]]]
    assert label_.tolist() == weak.tolist()
    assert term.store.scores(ONE) == pytest.approx((1.0, 0.5, 1.0), abs=1e-5), "of two pixels the network says one"
    assert term._labelled == 1.0


def test_the_network_is_asked_in_eval_mode_and_a_site_without_labels_reads_none(monkeypatch, tmp_path):
    asked, modes = [], []

    def refine(image, mask, label):
        asked.append((mask, label))

    item = {"image": torch.rand(3, 2, 2), "label": torch.ones(1, 2, 2)}
    term, engine = refined_by(monkeypatch, tmp_path, [ONE], item, refine, split="unlabelled")

    def inferer(images, network):
        modes.append(network.training)
        return 0 * images[:, :1]

    engine.inferer = inferer
    term._refine(engine)
    ((mask, label_),) = asked
    assert (mask.unique().tolist(), label_) == ([0.5], None)
    assert modes == [False]
    assert engine.network.training, "as it was before"


def rounds_of(monkeypatch, tmp_path, answers, better, **options):
    """A term whose SAM answers with these values in turn, and a function of a round to the mean of what it then has."""
    given_ = iter(answers)
    item = {"image": torch.rand(3, 2, 2), "label": torch.tensor([[[1.0, 255.0], [255.0, 255.0]]])}
    monkeypatch.setattr(Scores, "better", better)

    def refine(image, mask, label):
        return see.Refined(torch.full((1, 2, 2), next(given_)), 0.5)

    term, engine = refined_by(monkeypatch, tmp_path, [ONE], item, refine, **options)

    def after(number: int) -> float:
        engine.state.round = number
        term._refine(engine)
        assert term._labelled == 1.0
        return pytest.approx(term.store.get(ONE).mean().item(), abs=0.005)

    return term, after


def surer(self, other):
    return self.certainty > other.certainty


def test_a_round_that_is_repeated_begins_with_the_store_of_the_round_before(monkeypatch, tmp_path):
    # the second time round 1 is worse than the first time, but better than round 0
    _, after = rounds_of(monkeypatch, tmp_path, [0.6, 0.9, 0.8], surer)
    assert [after(number) for number in (0, 1, 1)] == [0.6, 0.9, 0.8]


def test_of_every_two_rounds_the_second_takes_nothing_and_goes_on_with_what_there_is(monkeypatch, tmp_path):
    term, after = rounds_of(monkeypatch, tmp_path, [0.6, 0.8], surer, every=2)
    assert [after(number) for number in range(4)] == [0.6, 0.6, 0.8, 0.8]
    assert [path.stem for path in term._saved()] == ["0001", "0002", "0003"], "stores of three rounds are kept"


@pytest.mark.parametrize("again", [1, 2])
def test_this_round_and_the_last_one_can_be_repeated(monkeypatch, tmp_path, again):
    # a site that had begun round 2 when the server found round 1 torn
    term, after = rounds_of(monkeypatch, tmp_path, [0.5, 0.6, 0.7, 0.8], lambda self, other: False)
    assert [after(number) for number in (0, 1, 2)] == [0.5] * 3
    term.store.load(None)  # another process
    term._round = None
    assert after(again) == 0.5, "none was better than the first"
