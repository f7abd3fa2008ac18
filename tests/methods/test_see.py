"""SEE: scores, selection and weights by hand, the store of labels, prompts, and repeated rounds."""

from __future__ import annotations

import copy
import stat
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import avg_pool2d, binary_cross_entropy_with_logits

from samfed_monai.core.errors import Refused
from samfed_monai.handlers import Guidance
from samfed_monai.losses import StructureLoss
from samfed_monai.methods import see
from samfed_monai.networks.sam.build import assemble, embed, vit_encoder
from tests.federation.test_job import job
from tests.methods import engine_of
from tests.networks.sam.tiny import tiny_sam

ONE, TWO = "1" * 64, "2" * 64


def label(unsure: int, foreground: int) -> torch.Tensor:
    """10 x 10 pixels, some of 0.5 and some of 1."""
    flat = torch.zeros(100)
    flat[:unsure] = 0.5
    flat[100 - foreground :] = 1.0
    return flat.view(1, 10, 10)


def published(label: np.ndarray, previous: np.ndarray) -> tuple[float, float, float]:
    """Ua, Ur and Ud of the public code (`compute_uncertainty_metrics`), in numpy."""

    def bits(p: np.ndarray) -> np.ndarray:
        return -p * np.log2(p + 1e-10) - (1 - p) * np.log2(1 - p + 1e-10)

    high, low = (bits(label) > 0.9).sum(), (bits(label) <= 0.9).sum()
    return high / label.size, high / (low + 1e-10), bits(np.abs(label - previous)).mean()


@pytest.mark.parametrize("seed", range(4))
def test_scores_and_selection_match_public_code(seed):
    random = torch.Generator().manual_seed(seed)
    labels = [torch.sigmoid((6 - seed) * torch.randn(1, 17, 13, generator=random)) for _ in range(2)]
    found, expected = see.label_scores(*labels), published(*(label.double().numpy() for label in labels))
    assert found == pytest.approx(expected, abs=1e-6)
    assert 0.05 < found.absolute < 0.4, "some pixels are unsure, and not all of them"
    assert found.sure(absolute=0.1, relative=0.5) == (expected[0] < 0.1 and expected[1] < 0.5)


def test_scores_match_hand_computed_values():
    pseudo = label(9, 40)
    assert see.label_scores(pseudo, pseudo) == pytest.approx((0.09, 9 / 91, 0.0), abs=1e-5)
    assert see.label_scores(pseudo, 1 - pseudo).change == pytest.approx(0.0, abs=1e-5), "what has turned round is sure"
    assert see.label_scores(pseudo, 0.5 + 0 * pseudo).change == pytest.approx(0.91), "one half has changed by one half"
    assert see.label_scores(0.5 + 0 * pseudo, pseudo)[:2] == (1.0, pytest.approx(1e12)), "a number that can be stored"


OLD = see.Scores(0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("new", "taken"),
    [
        ((0.4, 0.4, 0.9), True),
        ((0.4, 0.9, 0.4), True),
        ((0.9, 0.4, 0.4), True),
        ((0.4, 0.4, 0.4), True),
        ((0.1, 0.5, 0.5), False),
        ((0.1, 0.6, 0.6), False),
        ((0.5, 0.5, 0.5), False),
    ],
)
def test_store_replaces_label_worse_in_two_scores(new, taken):
    store, better = see.PseudoLabelStore(), see.Scores(0.0, 0.0, 0.0)
    for value, scores in ((0.0, better), (0.2, OLD), (0.4, OLD)):
        assert store.offer(ONE, torch.full((1, 2, 2), value), scores)
    assert store.offer(TWO, torch.full((1, 2, 2), 0.2), OLD)
    assert store.offer(ONE, torch.ones(1, 2, 2), see.Scores(*new)) is taken
    assert [round(float(pseudo.mean()), 6) for pseudo, _ in store.get(ONE)] == [0.0, 1.0 if taken else 0.2, 0.4]
    assert [scores for _, scores in store.get(ONE)] == [better, see.Scores(*new) if taken else OLD, OLD]
    assert [each.tolist() for each, _ in store.get(TWO)] == [torch.full((1, 2, 2), 0.2).tolist()], "51 of 255"
    assert (store.get("3" * 64), len(store)) == ([], 2)


def test_saved_store_is_restored_and_private(tmp_path):
    store, path = see.PseudoLabelStore(), tmp_path / "labels" / "0000.safetensors"
    for scores in (see.Scores(1 / 3, 0.1, 0.7), OLD):
        store.offer(ONE, torch.rand(1, 5, 4), scores)
    store.previous(TWO, torch.full((1, 5, 4), 0.2))
    store.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    again = see.PseudoLabelStore()
    again.load(path)
    assert len(again) == len(store) == 1, "of the other image there is a prediction alone"
    for (found, scores), (pseudo, old) in zip(again.get(ONE), store.get(ONE), strict=True):
        assert torch.equal(found, pseudo)
        assert scores == old
    assert torch.equal(again.previous(TWO, torch.zeros(1, 5, 4)), torch.full((1, 5, 4), 0.2))
    again.load(None)
    assert len(again) == 0
    assert torch.equal(again.previous(TWO, torch.zeros(1, 5, 4)), torch.zeros(1, 5, 4))


SURE, DOUBTFUL = see.Scores(0.05, 0.05, 0.9), see.Scores(0.15, 0.2, 0.0)


def test_reader_copies_share_store_and_skip_unsure_labels():
    term = SimpleNamespace(store=see.PseudoLabelStore(), absolute=0.1, relative=0.5)
    reader = copy.deepcopy(see.LoadPseudoLabeld(term=term))  # type: ignore[arg-type]
    for unsure, scores in ((0, SURE), (60, DOUBTFUL), (5, SURE)):
        term.store.offer(ONE, label(unsure, 40), scores)
    term.store.offer(TWO, label(60, 40), DOUBTFUL)
    image = torch.zeros(3, 10, 10)
    found = reader({"image": image, "image_sha256": ONE})["teacher"]
    assert torch.equal(found[0], label(0, 40)[0])
    assert see.uncertainty(found[None, 1:2]).min() == 1, "one half, without weight"
    torch.testing.assert_close(found[2], label(5, 40)[0], atol=1 / 255, rtol=0)
    for key in (TWO, "3" * 64):
        found = reader({"image": image, "image_sha256": key})["teacher"]
        assert torch.equal(found, torch.full((3, 10, 10), 0.5))
    assert reader({"image": torch.zeros(3, 5, 5), "image_sha256": ONE})["teacher"].shape == (3, 5, 5)


@pytest.mark.parametrize(
    ("absolute", "relative", "weighs"), [(0.15, 0.3, False), (0.16, 0.2, False), (0.16, 0.21, True)]
)
def test_both_thresholds_select_sure_labels(absolute, relative, weighs):
    term = SimpleNamespace(store=see.PseudoLabelStore(), absolute=absolute, relative=relative)
    term.store.offer(ONE, 0.9 * label(15, 40), DOUBTFUL)
    found = see.LoadPseudoLabeld(term=term)({"image": torch.zeros(3, 10, 10), "image_sha256": ONE})["teacher"]  # type: ignore[arg-type]
    assert bool((see.uncertainty(found[None, :1]) < 1).any()) is weighs


def test_prompt_points_match_hand_computed_values():
    part = torch.zeros(9, 9, dtype=torch.bool)
    part[0:3, 0:3] = True
    points, labels = see.part_points(part, ~part)
    assert labels.tolist() == [1, 0]
    assert points[0].tolist() == [1.0, 1.0]
    assert not part[int(points[1, 1]), int(points[1, 0])]
    assert see.part_points(torch.ones(3, 3, dtype=torch.bool), torch.zeros(3, 3, dtype=torch.bool))[1].tolist() == [1]
    corner = torch.zeros(3, 4, dtype=torch.bool)
    corner[2, 3] = True
    assert see.part_points(corner, ~corner)[0][0].tolist() == [3.0, 2.0], "in the last row and column"
    mask = torch.tensor([[True, False, True], [True, True, True]])
    assert see.spaced_pixels(mask, 9).tolist() == [[0, 0], [2, 0], [0, 1], [1, 1], [2, 1]], "x and y"
    assert see.spaced_pixels(mask, 3).tolist() == [[0, 0], [0, 1], [2, 1]]
    assert see.spaced_pixels(mask & False, 3).shape == (0, 2)


class FakeSam(torch.nn.Module):
    """Records its prompts, and answers each box with its index."""

    def __init__(self) -> None:
        super().__init__()
        self.prompts: list[tuple] = []

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        return images

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return torch.zeros(1, 256, 4, 4)

    def decode(self, embedding, boxes, points=None, masks=None):
        self.prompts.append((boxes, points, masks))
        logits = torch.full((len(boxes), 1, 16, 16), -40.0)
        logits[0, 0, :8] = 40.0
        return logits


def test_refiner_prompts_sam_with_boxes_points_and_mask():
    sam, image = FakeSam(), torch.rand(3, 48, 32)  # 48 x 32 pixels become 64 x 44, and a quarter of that: 16 x 11
    mask, weak = torch.zeros(1, 48, 32), torch.full((1, 48, 32), 255.0)
    mask[0, 4:16, 4:12] = 1
    weak[0, 8, 6], weak[0, 46, 30], weak[0, 47, 31] = 1, 0, 0
    refined = see.SamRefiner(sam, 64)(image, mask, weak)  # type: ignore[arg-type]
    assert refined.shape == (1, 48, 32)
    assert refined[0, :22].min() > 1 - 1e-6
    assert refined[0, 26:].max() < 1e-9
    (boxes, none, no_mask), (_, points, _), (_, again, low) = sam.prompts
    # a box 5 % wider at either end, as indices of pixels
    expected = [3.6 * 44 / 32 - 0.5, 3.4 * 64 / 48 - 0.5, 12.4 * 44 / 32 - 0.5, 16.6 * 64 / 48 - 0.5]
    torch.testing.assert_close(boxes, torch.tensor([expected]))
    assert none is None
    assert no_mask is None
    assert points[1].tolist() == [[1, 0, 0]]
    middles = [((x + 0.5) * 44 / 32 - 0.5, (y + 0.5) * 64 / 48 - 0.5) for x, y in ((6, 8), (30, 46), (31, 47))]
    torch.testing.assert_close(points[0], torch.tensor([middles]), msg="the drawn pixels' middles")
    assert torch.equal(points[0], again[0])
    assert low.shape == (1, 1, 16, 16)
    assert low[0, 0, 3, 2] > 6
    assert low[0, 0, 15, 10] < -6
    assert low[..., 11:].max() < -6
    assert see.SamRefiner(sam, 64)(image, torch.zeros(1, 48, 32), weak) is None  # type: ignore[arg-type]
    see.SamRefiner(sam, 64)(image, mask, None)  # type: ignore[arg-type]
    assert sam.prompts[-1][1][1].tolist() == [[1, 0]], "the innermost pixel, and one far away"
    half = torch.full((1, 48, 32), 0.5)
    assert see.SamRefiner(sam, 64)(image, half, None) is None, "one half is no part"  # type: ignore[arg-type]


def test_refiner_pads_points_of_several_parts():
    mask = torch.zeros(1, 32, 32)
    mask[0, 2:8, 2:8] = mask[0, 20:30, 20:30] = 1
    weak = torch.full((1, 32, 32), 255.0)
    weak[0, 22, 22:26], weak[0, 0, 0] = 1, 0
    sam = FakeSam()
    see.SamRefiner(sam, 64)(torch.rand(3, 32, 32), mask, weak)  # type: ignore[arg-type]
    boxes, (points, kinds), low = sam.prompts[-1]
    assert len(boxes) == len(low) == 2
    assert kinds.tolist() == [[1, 1, 1, 1, 0], [1, 0, -1, -1, -1]]
    assert points[1, :2].tolist() == [[8.5, 8.5], [0.5, 0.5]], "nothing is drawn in the second: its innermost pixel"


@pytest.mark.parametrize("drawn", [None, 0.0, 1.0])
def test_points_come_from_mask_without_both_drawn_classes(drawn):
    mask, weak = torch.zeros(1, 32, 32), torch.full((1, 32, 32), 255.0)
    mask[0, 2:8, 2:8] = 1
    if drawn is not None:
        weak[0, 3, 3] = drawn
    sam = FakeSam()
    see.SamRefiner(sam, 64)(torch.rand(3, 32, 32), mask, None if drawn is None else weak)  # type: ignore[arg-type]
    _, (points, kinds), _ = sam.prompts[-1]
    assert kinds.tolist() == [[1, 0]]
    # pixel 4 of the part is innermost; pixel 17 is 14.1 pixels from the part's corner and 15 from the border
    assert points[0].tolist() == [[8.5, 8.5], [34.5, 34.5]]


def test_term_builds_configured_sam(monkeypatch, tmp_path):
    calls: list[tuple] = []
    term, engine = refining_term(monkeypatch, tmp_path, [], {}, None, base="vit_b", sam_size=64)
    monkeypatch.setattr(see, "_shared_sam", lambda *given: calls.append(given) or nn.Identity())
    term._refine(engine)
    assert calls == [("vit_b", "x", 64)]


def test_sam_is_built_once_and_keeps_random_state(monkeypatch):
    built: list[tuple] = []
    monkeypatch.setattr(see, "build_sam", lambda *given: built.append(given) or nn.Linear(1, 1))
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    one, other = (see._shared_sam("vit_none", "x", 64) for _ in range(2))
    assert torch.equal(torch.rand(1), expected)
    assert one is other
    assert not one.weight.requires_grad
    assert built == [("vit_none", "x", 64)]


def test_refiner_runs_with_real_sam():
    sam = tiny_sam()
    mask = torch.zeros(1, 48, 32)
    mask[0, 4:24, 4:24] = 1
    refined = see.SamRefiner(sam, 64)(torch.rand(3, 48, 32), mask, None)
    assert refined.shape == (1, 48, 32)
    assert 0 <= refined.min() <= refined.max() <= 1


def published_loss(logits: torch.Tensor, labels: list[torch.Tensor]) -> torch.Tensor:
    """`compute_loss` and `structure_loss` of the public code for one image, without the term against one half.

    The weights (their mean scales a label's loss there) count inside of it as well, as in the paper.
    """
    whole = torch.zeros(())
    for pseudo in labels:
        bits = -(pseudo * pseudo.log2() + (1 - pseudo) * (1 - pseudo).log2())
        share = (1 + 5 * (avg_pool2d(pseudo, 31, 1, 15) - pseudo).abs()) * (1 - bits)
        entropy = binary_cross_entropy_with_logits(logits, pseudo, reduction="none")
        chances = logits.sigmoid()
        overlap, union = (share * chances * pseudo).sum(), (share * (chances + pseudo)).sum()
        loss = (share * entropy).sum() / share.sum() + 1 - (overlap + 1) / (union - overlap + 1)
        whole = whole + (1 - bits).mean() * loss
    return whole / 3


@pytest.mark.parametrize("count", [1, 2, 3])
def test_loss_matches_public_code(count):
    term = see.RefinedLabelTerm(data=None, transform=None)  # type: ignore[arg-type]
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 1, 20, 20, generator=random)
    batch = torch.full((2, 3, 20, 20), 0.5)
    batch[:, :count] = torch.sigmoid(4 * torch.randn(2, count, 20, 20, generator=random))
    engine = engine_of(batch={"teacher": batch}, output={"pred": logits})
    value = term.value(None, engine)
    each = [published_loss(logits[[i]], [batch[[i], [b]][None] for b in range(count)]) for i in range(2)]
    torch.testing.assert_close(value, torch.stack(each).mean(), atol=1e-6, rtol=0)
    weight = (1 - see.uncertainty(batch.flatten(0, 1)[:, None])).mean()
    torch.testing.assert_close(engine.state.terms["see_weight"], weight)
    assert engine.state.terms["see_labelled"] == 0, "before it has seen the site's images"


@pytest.mark.parametrize("named", [False, True])
def test_missing_sam_weights_are_refused_without_path(monkeypatch, tmp_path, named):
    monkeypatch.setenv("SAMFED_WEIGHTS", str(tmp_path / "nothing"))
    monkeypatch.delenv("SAMFED_DATA", raising=False)
    message = (
        r"SAM vit_t: expected its weights, with which terms#see refines pseudo-labels, found none here; "
        r"run `samfed weights vit_t --from FILE\|URL` at this site$"
    )
    engine = engine_of(nn.Identity(), guide_names=("weak",))
    options = {"site": "a", "checkpoint": tmp_path / "gone.pt" if named else None}
    with pytest.raises(Refused, match=message) as error:
        see.RefinedLabelTerm(data=None, transform=None, **options).check(engine)  # type: ignore[arg-type]
    assert str(tmp_path) not in str(error.value)


def test_run_without_sam_weights_is_refused_before_it_starts(small_federation, monkeypatch, tmp_path):
    monkeypatch.setenv("SAMFED_WEIGHTS", str(tmp_path / "nothing"))
    with pytest.raises(Refused, match=r"weights of mobile_sam: .*, found no such file; run `samfed weights mob"):
        job(small_federation, tmp_path / "run", variant="see").run()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("split", "pseudo", "logit"), [("labelled", 0.1, -2.0), ("unlabelled", 0.8, 3.0)])
def test_pseudo_labels_are_applied_to_own_split(split, pseudo, logit):
    def plane(value: float, planes: int = 1) -> torch.Tensor:
        return torch.full((1, planes, 2, 2), value)

    term = see.RefinedLabelTerm(data=None, transform=None, split=split)  # type: ignore[arg-type]
    engine = engine_of(batch={"teacher": plane(0.1, 3)}, output={"pred": plane(-2.0)})
    guidance = Guidance(student=plane(3.0), weak_view=plane(0.5), guides={}, batch={"teacher": plane(0.8, 3)})
    value = term.value(guidance, engine)
    weight = 1 - see.uncertainty(plane(pseudo))
    torch.testing.assert_close(value, weight.mean() * StructureLoss()(plane(logit), plane(pseudo), weight))


def refining_term(monkeypatch, tmp_path, records, item, refine, **options) -> tuple[see.RefinedLabelTerm, Any]:
    """A term with ``refine`` as SAM, and an engine with a network that predicts one half everywhere."""
    monkeypatch.setattr(see, "_shared_sam", lambda *given: nn.Identity())
    monkeypatch.setattr(see, "SamRefiner", lambda sam, size: refine)
    data = SimpleNamespace(records=lambda split: [{"image_sha256": each} for each in records])
    given_: dict[str, Any] = {"data": data, "folder": tmp_path, "checkpoint": "x", "views": 1, **options}
    term = see.RefinedLabelTerm(transform=lambda record: item, **given_)
    engine = engine_of(nn.Identity(), device="cpu", rounds=3)
    engine.inferer = lambda images, network: 0 * images[:, :1]
    return term, engine


def test_weak_label_overrides_prediction(monkeypatch, tmp_path):
    weak, calls = torch.tensor([[[1.0, 255.0], [0.0, 255.0]]]), []

    def refine(image, mask, label):
        calls.append((mask, label))
        return torch.tensor([[[1.0, 0.9], [0.6, 0.0]]])

    term, engine = refining_term(monkeypatch, tmp_path, [ONE], {"image": torch.rand(3, 2, 2), "label": weak}, refine)
    term._refine(engine)
    ((mask, label_),) = calls
    assert mask.tolist() == [[[1.0, 0.5], [0.0, 0.5]]]
    assert label_.tolist() == weak.tolist()
    ((_, scores),) = term.store.get(ONE)
    # the network says one half: of 1.0 and 0.0 that is a change of one bit, of 0.9 and 0.6 of 0.971 and 0.469
    assert scores == pytest.approx((0.25, 1 / 3, (1 + 0.9709506 + 0.4689956 + 1) / 4), abs=1e-5)
    assert term._labelled == 1.0


def test_unlabelled_split_ignores_labels_in_eval_mode(monkeypatch, tmp_path):
    calls, modes = [], []

    def refine(image, mask, label):
        calls.append((mask, label))

    item = {"image": torch.rand(3, 2, 2), "label": torch.ones(1, 2, 2)}
    term, engine = refining_term(monkeypatch, tmp_path, [ONE], item, refine, split="unlabelled")

    def inferer(images, network):
        modes.append(network.training)
        return 0 * images[:, :1]

    engine.inferer = inferer
    term._refine(engine)
    ((mask, label_),) = calls
    assert (mask.unique().tolist(), label_) == ([0.5], None)
    assert modes == [False]
    assert engine.network.training, "as it was before"


def rounds_of(monkeypatch, tmp_path, answers, **options):
    """A term with a SAM that returns these values in turn, and a function that gives its labels after a round."""
    given_ = iter(answers)
    item = {"image": torch.rand(3, 2, 2), "label": torch.tensor([[[1.0, 255.0], [255.0, 255.0]]])}

    def refine(image, mask, label):
        return torch.full((1, 2, 2), next(given_))

    term, engine = refining_term(monkeypatch, tmp_path, [ONE], item, refine, **options)

    def after(number: int) -> list[float]:
        engine.state.round = number
        term._refine(engine)
        assert term._labelled == 1.0
        return [round(float(pseudo.mean()), 1) for pseudo, _ in term.store.get(ONE)]

    return term, after


def test_refinement_runs_every_second_round(monkeypatch, tmp_path):
    term, after = rounds_of(monkeypatch, tmp_path, [0.6, 0.8], every=2)
    assert [after(number) for number in range(4)] == [[0.6], [0.6], [0.6, 0.8], [0.6, 0.8]]
    assert [path.stem for path in term._store_files()] == ["0001", "0002", "0003"], "stores of three rounds are kept"


@pytest.mark.parametrize(("again", "expected"), [(1, [0.5, 0.8]), (2, [0.5, 0.6, 0.8])])
def test_current_and_previous_round_can_be_repeated(monkeypatch, tmp_path, again, expected):
    # a site that had begun round 2 when the server found round 1 torn
    term, after = rounds_of(monkeypatch, tmp_path, [0.5, 0.6, 0.7, 0.8])
    assert [after(number) for number in (0, 1, 2)] == [[0.5], [0.5, 0.6], [0.5, 0.6, 0.7]]
    term.store.load(None)  # another process
    term._round = None
    assert after(again) == expected


def test_change_is_measured_against_previous_prediction(monkeypatch, tmp_path):
    term, engine = refining_term(monkeypatch, tmp_path, [ONE], {"image": torch.rand(3, 2, 2)}, None, split="unlabelled")
    monkeypatch.setattr(see, "SamRefiner", lambda sam, size: lambda image, mask, label: torch.ones(1, 2, 2))
    for number, chance in enumerate((0.2, 0.4, 0.6)):  # fifths, which eight bits hold exactly
        engine.state.round = number
        engine.inferer = lambda images, network, chance=chance: torch.full_like(images[:, :1], chance).logit()
        term._refine(engine)
    changes = [scores.change for _, scores in term.store.get(ONE)]
    # |1 - 0.2| of the first round's own, |1 - 0.2| of it again, |1 - 0.4|
    assert changes == pytest.approx([0.7219281, 0.7219281, 0.9709506], abs=1e-5)


def test_largest_components_are_boxed_and_joined_diagonally():
    mask = torch.zeros(20, 40, dtype=torch.bool)
    mask[2:4, 2:4] = True
    mask[4:6, 4:6] = True  # touches the first at a corner: 8 pixels together
    mask[10:14, 20:30] = True  # 40 pixels
    parts = see.connected_components(mask)
    assert len(parts.numbers) == 2
    large, small = parts.numbers
    assert int((parts.labels == large).sum()) == 40
    assert int((parts.labels == small).sum()) == 8
    assert torch.equal(parts.labels > 0, mask)
    # shares of the image: 10 wide and 4 high, with a twentieth of that on either side
    assert parts.boxes[0].tolist() == pytest.approx([19.5 / 40, 9.8 / 20, 30.5 / 40, 14.2 / 20])
    assert see.connected_components(torch.ones(5, 7, dtype=torch.bool)).boxes.tolist() == [[0, 0, 1, 1]]
    mask = torch.zeros(100, 100, dtype=torch.bool)
    mask[0, :4] = True  # 4 pixels of 10,000 are less than 5e-4
    mask[50, :5] = True
    parts = see.connected_components(mask)
    assert len(parts.numbers) == len(parts.boxes) == 1
    assert int((parts.labels > 0).sum()) == 9
    assert see.connected_components(torch.zeros(4, 4, dtype=torch.bool)).boxes.shape == (0, 4)
    mask = torch.zeros(40, 40, dtype=torch.bool)
    for number in range(12):
        row, column = 10 * (number // 4), 10 * (number % 4)
        mask[row : row + 2, column : column + 1 + number // 2] = True
    parts = see.connected_components(mask)
    assert len(parts.numbers) == see.MOST_PARTS == 8
    assert [int((parts.labels == number).sum()) for number in parts.numbers] == [12, 12, 10, 10, 8, 8, 6, 6]


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


@pytest.mark.parametrize(("height", "width"), [(192, 256), (256, 128)])
def test_embedding_and_decoding_match_segment_anything(sam, height, width):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    box = np.array([20.0, 30.0, 90.0, 100.0])
    official = predictor(sam, 256)
    official.set_image(image)
    _, _, low = official.predict(box=box, multimask_output=False)
    embedding = embed(sam, torch.tensor(image).permute(2, 0, 1)[None].float() / 255, 256, bf16=False)
    # the same arithmetic on intensities 0..255 and 0..1: float32 rounding
    torch.testing.assert_close(embedding, official.get_image_embedding(), rtol=1e-3, atol=1e-4)
    # the predictor takes pixel indices; as positions they are half a pixel further, as shares divided by the sides
    shares = (torch.tensor(box, dtype=torch.float32) + 0.5) / torch.tensor([width, height, width, height])
    with torch.no_grad():
        logits = sam.decode(embedding, see.prompts(shares[None], height, width, 256))
    assert logits.shape == (1, 1, 64, 64)
    torch.testing.assert_close(logits[0, 0], torch.tensor(low[0]), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("height", "width"), [(96, 128), (300, 400), (487, 531), (1000, 333)])
def test_box_prompts_match_segment_anything_transform(height, width):
    from segment_anything.utils.transforms import ResizeLongestSide

    boxes = np.array([[0.0, 0.0, width, height], [width * 0.2, height * 0.3, width * 0.7, height * 0.9]])
    theirs = ResizeLongestSide(1024).apply_boxes(boxes, (height, width))
    shares = torch.tensor(boxes / [width, height, width, height], dtype=torch.float32)
    ours = see.prompts(shares, height, width, 1024) + 0.5
    # our inner size is a multiple of 4, theirs of 1: the ends differ by up to 2 pixels of 1,024
    assert np.abs(ours.numpy() - theirs).max() <= 2.0 + 1e-3
    assert np.abs(ours[:, [0, 2]].numpy() - theirs[:, [0, 2]]).max() <= (0 if width >= height else 2.0) + 1e-3
