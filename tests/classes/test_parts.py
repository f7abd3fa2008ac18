"""Several classes in each part: network, views, loss, rules, teacher, adapter, scores, messages, masks."""

from __future__ import annotations

import shutil
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.transforms import AsDiscreted, Compose
from PIL import Image
from torch.utils.data import default_collate

from samfed_monai.config.check import check_bundle
from samfed_monai.core.errors import Refused
from samfed_monai.core.io import save_tensors, write_json
from samfed_monai.core.model_file import run_settings, setting_differences, settings_of
from samfed_monai.data.classes import COLOURS, planes_of
from samfed_monai.federation.exchange_object import metrics_of_parts, sendable
from samfed_monai.federation.server import site_scores
from samfed_monai.handlers.evaluation import ScoreHandler
from samfed_monai.handlers.mask_writer import MaskWriter
from samfed_monai.losses import agree
from samfed_monai.metrics.scores import pool_volumes
from samfed_monai.networks import client_network
from samfed_monai.networks.inferer import logits_of
from samfed_monai.networks.sam.adapter import Adapt, Adapter, adapted_tensors, load_adapter, prepare, save_adapter
from samfed_monai.networks.sam.build import assemble, vit_encoder
from samfed_monai.networks.sam.teacher import Teacher
from samfed_monai.privacy.allowed import withhold_small
from samfed_monai.protocol import Kind, Message
from samfed_monai.reports.overlays import draw_classes, outlined
from samfed_monai.teacher.evaluation import dice_score
from samfed_monai.teacher.training import mask_loss
from samfed_monai.transforms import InvertResized, ResizeWithLabeld, WeakViewd
from tests.bundles.conftest import REPOSITORY

ORGANS = ["kidney", "spleen"]
SKIN = REPOSITORY / "bundles" / "samfed_skin"


def planes(label) -> torch.Tensor:
    return torch.from_numpy(planes_of(np.asarray(label), 2)).float()


@pytest.mark.parametrize(("classes", "channels"), [(["lesion"], 1), (ORGANS, 3)])
def test_network_has_logits_for_classes_and_background(classes, channels):
    network = client_network("basic_unet", classes=classes).eval()
    with torch.no_grad():
        assert network(torch.rand(2, 3, 32, 32)).shape == (2, channels, 32, 32)


def test_empty_class_list_is_refused_by_network():
    with pytest.raises(Refused, match=r"train.json -> classes: expected a list of 1 to 14 names, found \[\]"):
        client_network("basic_unet", classes=[])


def test_transforms_keep_labels_one_hot():
    item = {"image": torch.rand(3, 8, 8), "label": planes(np.repeat(np.array([0, 1, 2, 1]), 16).reshape(8, 8))}
    resized = ResizeWithLabeld(["image", "label"], [4, 4], ["area", "area"])
    found = Compose([resized, AsDiscreted("label", threshold=0.5)])(dict(item))["label"]
    assert found.argmax(0)[:, 0].tolist() == [0, 1, 2, 1]
    moved = WeakViewd(["image", "label"], rotate=15, zoom=(0.8, 1.25)).set_random_state(0)(dict(item))["label"]
    assert set(moved.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(moved.sum(0), torch.ones(8, 8))


@pytest.mark.parametrize("rule", ["trusted_average", "teacher", "student", "label", "average"])
def test_agreement_rules_agree_where_both_name_class(rule):
    label = torch.tensor([[0, 1], [2, 1]])
    sure = logits_of(planes(label.numpy())[None] * 0.96 + 0.01).softmax(1)
    found = agree(sure, sure, rule=rule)
    assert torch.equal(found.label[0, 0], label)
    assert (found.weight > 0.9).all()
    assert found.soft_label.shape == (1, 3, 2, 2)


SIZE = 64


def sam(outputs: int = 1, seed: int = 0):
    torch.manual_seed(seed)
    network = assemble(vit_encoder(SIZE, width=16, depth=2, heads=2, global_blocks=(1,)), SIZE).eval()
    if outputs > 1:
        network.add_class_masks(outputs)
    return network


def test_class_outputs_start_equal_and_background_at_zero():
    embeddings = torch.randn(2, 256, 4, 4)
    with torch.no_grad():
        one = sam().decode(embeddings)
        three = sam(3).decode(embeddings)
    assert one.shape == (2, 1, 16, 16)
    assert three.shape == (2, 3, 16, 16)
    # with more tokens the transformer attends to other ones, so that they are like each other and not like the one
    assert torch.equal(three[:, :1], torch.zeros(2, 1, 16, 16))
    assert torch.allclose(three[:, 1], three[:, 2], atol=1e-5)
    assert three[:, 1].std() > 0


def test_multiclass_sam_refuses_prompts_and_two_outputs():
    with pytest.raises(ValueError, match="takes no prompts"):
        sam(3).decode(torch.randn(1, 256, 4, 4), torch.tensor([[0.0, 0.0, 8.0, 8.0]]))
    with pytest.raises(ValueError, match="expected 3 outputs or more"):
        sam().add_class_masks(2)


def test_mask_loss_pools_dice_over_batch_and_padding_is_background():
    held, nothing = planes([[0, 1], [2, 2]])[None], planes([[0, 0], [0, 0]])[None]
    both = torch.cat([held, nothing])
    unsure = torch.tensor([0.4, 0.3, 0.3]).log().view(1, 3, 1, 1).expand(1, 3, 2, 2)
    logits = torch.cat([logits_of(held * 0.98 + 0.01), unsure])
    given = mask_loss(logits, both)
    entropy = torch.nn.functional.cross_entropy(logits, both)
    p, true = logits.softmax(1)[:, 1:], both[:, 1:]
    dice = [(2 * (p[:, k] * true[:, k]).sum() + 1) / ((p[:, k] ** 2).sum() + true[:, k].sum() + 1) for k in (0, 1)]
    assert float(given) == pytest.approx(float(0.2 * entropy + 0.8 * (1 - sum(dice) / 2)), abs=1e-6)
    padded = both.clone()
    padded[:, 0] = 0  # of no class
    assert torch.equal(mask_loss(logits, padded), given)


def test_decoder_learns_two_organs_and_adapter_restores_them(tmp_path):
    network, embeddings, label = sam(3), torch.randn(1, 256, 4, 4), np.zeros((16, 16), int)
    prepare(network, Adapt.DECODER, 0)
    label[2:9, 2:9], label[9:15, 6:15] = 1, 2
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        losses.append(mask_loss(network.decode(embeddings), planes(label)[None]))
        losses[-1].backward()
        optimizer.step()
    assert losses[2] < losses[1] < losses[0]
    with torch.no_grad():
        fitted = network.decode(embeddings)
    assert not torch.allclose(fitted[:, 1], fitted[:, 2], atol=1e-3), "which begin alike"
    about = Adapter("vit_t", "ab" * 32, Adapt.DECODER, 0, SIZE, "cd" * 32, outputs=3)
    save_adapter(tmp_path / "a.safetensors", network, about)
    again = sam(seed=0)
    header = load_adapter(tmp_path / "a.safetensors", again, base="vit_t", base_sha256="ab" * 32, size=SIZE)
    assert header.outputs == again.outputs == 3
    with torch.no_grad():
        assert torch.equal(again.decode(embeddings), fitted)


def test_single_class_adapter_file_is_unchanged(tmp_path):
    network = sam()
    prepare(network, Adapt.DECODER, 0)
    save_adapter(tmp_path / "a.safetensors", network, Adapter("vit_t", "ab" * 32, Adapt.DECODER, 0, SIZE, "cd" * 32))
    assert b"outputs" not in (tmp_path / "a.safetensors").read_bytes()[:4000]
    assert adapted_tensors(network)["mask_decoder.mask_tokens.weight"].shape == (4, 256)


def test_teacher_class_probabilities_sum_to_one():
    found = Teacher(sam(3), sha256="x", size=SIZE, views=4).probabilities(torch.rand(1, 3, 40, 50))
    assert found.shape[1] == 3
    assert torch.allclose(found.sum(1), torch.ones_like(found[:, 0]), atol=1e-5)


def test_teacher_dice_is_mean_over_present_classes():
    label = planes([[1, 1], [0, 0]])[None]
    assert dice_score(label, label) == 1.0
    assert dice_score(planes([[1, 2], [0, 0]])[None], label) == pytest.approx((2 / 3 + 0) / 2)


def handler(tmp_path=None, **options) -> ScoreHandler:
    return ScoreHandler(classes=ORGANS, output_dir=tmp_path, **options)


def score(made: ScoreHandler, pairs):
    engine = Engine(lambda *_: None)
    made.attach(engine)
    engine.state.output = [{"pred": pred, "label": label} for pred, label in pairs]
    engine.state.batch = [{"id": f"image-{index}"} for index in range(len(pairs))]
    made.start()
    made(engine)
    made.finish(engine)
    return engine.state


def test_evaluation_has_class_scores_and_class_value_masks(tmp_path):
    label = planes([[0, 1, 1], [2, 2, 0]])
    half = planes([[0, 1, 0], [2, 2, 0]])
    nothing = planes(np.zeros((2, 3), int))
    state = score(handler(tmp_path), [(half * 5, label), (nothing, nothing)])
    assert state.scores[0]["classes"]["kidney"]["dice"] == pytest.approx(2 / 3)
    assert state.scores[0]["dice"] == pytest.approx((2 / 3 + 1) / 2)
    assert state.scores[1]["dice"] == 1.0
    assert state.score_summary["classes"]["kidney"]["n"] == state.score_summary["classes"]["spleen"]["n"] == 1
    assert state.score_summary["classes"]["spleen"]["dice"] == 1.0
    assert np.array_equal(np.array(Image.open(tmp_path / "masks/image-0.png")), [[0, 1, 0], [2, 2, 0]])
    head, first, second = (tmp_path / "scores.csv").read_text().splitlines()
    assert head == "id,dice,iou,hd95,sensitivity,precision,area,empty,estimate,mask," + ",".join(
        f"{s} {c}" for c in ORGANS for s in ("dice", "iou", "hd95")
    )
    assert second.endswith(",,,,,,")
    assert ",0.666" in first


def test_wrong_number_of_channels_is_refused():
    message = r"ScoreHandler, label: expected 3 channels .* found shape \(1, 2, 3\); give train"
    with pytest.raises(Refused, match=message):
        score(handler(), [(torch.zeros(3, 2, 3), torch.zeros(1, 2, 3))])
    with pytest.raises(Refused, match=r"ScoreHandler, pred: expected one channel \(1, H, W\), found shape \(3, 2, 3\)"):
        score(ScoreHandler(classes=["lesion"]), [(torch.zeros(3, 2, 3), torch.zeros(1, 2, 3))])


def test_mask_writer_refuses_threshold_with_several_classes():
    with pytest.raises(Refused, match=r"threshold: expected 0\.5 with several classes .* found 0\.3"):
        MaskWriter(output_dir="x", classes=ORGANS, threshold=0.3)


KIDNEY = {"dice": 0.5, "iou": 0.4, "hd95": 2.0, "n": 8}
SUMMARY = {"classes": {"kidney": KIDNEY, "spleen": {"dice": None, "iou": None, "hd95": None, "n": 0}}}


WHOLE = {"dice": 0.75, "hd95_mm": 4.0, "n": 20, "measured": 12}
ABSENT = {"dice": None, "hd95_mm": None, "n": 0, "measured": 0}
VOLUMES = {"volumes": {**WHOLE, "classes": {"kidney": WHOLE, "spleen": ABSENT}}}


def test_class_scores_are_sent_by_number_and_restored_by_name():
    metrics = metrics_of_parts({**SUMMARY, **VOLUMES})
    assert metrics == {
        **{"dice_class_1": 0.5, "iou_class_1": 0.4, "hd95_class_1": 2.0, "images_class_1": 8},
        **{f"volume_{key}{which}": value for which in ("", "_class_1") for key, value in WHOLE.items()},
        **{"images_class_2": 0, "volume_n_class_2": 0, "volume_measured_class_2": 0},
    }
    assert sendable(metrics) == metrics
    message = Message(Kind.METRICS, "a", 0, 1, n=100, metrics=metrics)
    message.check(up=True)
    found = site_scores(message, ORGANS)
    assert {key: found[key] for key in ("classes", "volumes")} == {**SUMMARY, **VOLUMES}
    assert "classes" not in site_scores(message, ["lesion"])
    assert "volumes" not in site_scores(Message(Kind.METRICS, "a", 0, 1, n=100), ORGANS)
    assert metrics_of_parts({}) == {}


@pytest.mark.parametrize(("volumes", "left"), [(4, {""}), (0, {"", "_class_1"}), (17, {""}), (20, {"", "_class_1"})])
def test_fault_59_class_scores_of_few_volumes_are_withheld(volumes, left):
    metrics = metrics_of_parts({"volumes": {**WHOLE, "classes": {"kidney": {**WHOLE, "n": volumes}}}})
    kept = withhold_small(Message(Kind.METRICS, "a", 0, 1, n=100, metrics=metrics), 5)
    assert set(kept.metrics) == {f"volume_{key}{which}" for key in WHOLE for which in left}
    found, sent = site_scores(kept, ORGANS)["volumes"], "_class_1" in left
    assert found["classes"]["kidney"]["n"] == (volumes if sent else None), "withheld is not absent"
    whole = pool_volumes([found, VOLUMES["volumes"]])["classes"]["kidney"]
    assert (whole["dice"], whole["n"]) == (0.75, volumes + WHOLE["n"] if sent else None)


@pytest.mark.parametrize(
    ("counts", "left"),
    [
        ({"n": 4}, set()),  # however many slices they have
        *(({"measured": count}, set(WHOLE)) for count in (0, 5, 15, 20)),
        *(({"measured": count}, {"dice", "n"}) for count in (1, 4, 16, 19)),  # so many have an HD95, or have none
    ],
)
def test_fault_59_scores_of_few_volumes_are_withheld(counts, left):
    metrics = metrics_of_parts({"volumes": {**WHOLE, **counts, "classes": {"kidney": {**WHOLE, **counts}}}})
    message = Message(Kind.METRICS, "a", 0, 1, n=100, metrics={"iou": 0.5, **metrics})
    kept = {f"volume_{key}{which}" for key in left for which in ("", "_class_1")}
    assert set(withhold_small(message, 5).metrics) == {"iou", *kept}


def record(volume: str, number: int, spacing: list[float]) -> dict[str, Any]:
    return {"id": f"{volume}-{number}", "volume": volume, "slice": number, "spacing": spacing, "native_size": (8, 4)}


def scored(records: Any, items: Any, *repeats: bool) -> dict[str, Any]:
    scores, engine = handler(), SimpleNamespace(state=SimpleNamespace(metrics={}, repeats=repeats))
    engine.state.batch, engine.state.output = records, items
    scores(engine)
    scores.finish(engine)
    return engine.state.score_summary


@pytest.mark.parametrize("collated", [False, True])
def test_volume_slices_are_scored_together_in_millimetres(collated):
    """Two slices of 8 x 4 pixels, scored at 4 x 4: a row is then 2 x 1 mm, a column 1.5 mm, a slice 5 mm."""
    label, lower = (planes(np.repeat([[row] for row in rows], 4, axis=1)) for rows in ([1, 1, 0, 0], [0, 1, 1, 0]))
    records = [record("v", 1, [1.0, 1.5, 5.0]), record("v", 2, [1.0, 1.5, 5.0]), record("", 0, [0.0, 0.0, 0.0])]
    items = [{"pred": 9 * each, "label": label} for each in (label, lower, label)]
    found = scored(*((default_collate(each) if collated else each) for each in (records, items)))["volumes"]
    # 16 pixels each, 12 of them common; the second slice is one row lower
    assert found["classes"]["kidney"] == {"dice": 0.75, "hd95_mm": 2.0, "n": 1, "measured": 1}
    assert found["classes"]["spleen"] == ABSENT


def test_repeated_slices_stay_in_their_volume_and_copies_of_volumes_do_not_count():
    """Volume v has the same image as slices 1 and 2, found and missed; w is a copy of it, x has only slice 1 of it."""
    label, records = planes([[1, 1, 0]]), [record(name, number, [1.0] * 3) for name in "vwx" for number in (1, 2)]
    items = [{"pred": pred, "label": label} for pred in (label, planes([[0, 0, 0]])) * 3]
    found = scored(records, items, False, True, True, True, True, False)
    assert (found["n"], found["volumes"]["classes"]["spleen"]) == (2, ABSENT)
    assert found["volumes"]["classes"]["kidney"] == {"dice": 2 / 3, "hd95_mm": 1.0, "n": 2, "measured": 2}


def test_mask_has_class_of_highest_probability(tmp_path):
    logits = torch.tensor([[[3.0, 0.0]], [[0.0, 2.0]], [[1.0, 2.5]]])
    writer = MaskWriter(output_dir=tmp_path, classes=ORGANS, probabilities=True)
    output = [{"pred": logits, "native_size": (1, 2)}]
    writer(SimpleNamespace(state=SimpleNamespace(batch=[{"id": "x"}], output=output)))
    writer.finish()
    assert np.array(Image.open(tmp_path / "x.png")).tolist() == [[0, 2]]
    some = np.array(Image.open(tmp_path / "x.probability.png")) / 255
    assert some[0] == pytest.approx(1 - logits.softmax(0)[0, 0].numpy(), abs=1 / 255)


def test_mask_writer_refuses_wrong_number_of_channels(tmp_path):
    writer = MaskWriter(output_dir=tmp_path, classes=["lesion"])
    output = [{"pred": torch.zeros(3, 1, 2), "native_size": (1, 2)}]
    with pytest.raises(Refused, match=r"MaskWriter, pred: expected 1 \(classes: one\), found 3 channels"):
        writer(SimpleNamespace(state=SimpleNamespace(batch=[{"id": "x"}], output=output)))


def test_inverted_multiclass_sigmoid_equals_softmax():
    from monai.data import MetaTensor

    logits = torch.randn(3, 4, 4)
    image = MetaTensor(torch.zeros(3, 4, 4), applied_operations=[{"class": "Resize", "orig_size": (4, 4)}])
    found = InvertResized("pred")({"pred": logits, "image": image})["pred"].sigmoid()
    assert torch.allclose(found, logits.softmax(0), atol=1e-5)


def test_outlines_and_overlays_have_one_colour_per_class():
    grey = np.full((8, 8, 3), 100, np.uint8)
    values = np.zeros((8, 8), np.uint8)
    values[1:4, 1:4], values[5:8, 5:8] = 1, 2
    drawn = outlined(grey, values)
    assert {tuple(drawn[1, 1]), tuple(drawn[6, 5])} == set(COLOURS[:2])
    shaded = draw_classes(grey, values, np.roll(values, 1, axis=1), 2)
    assert tuple(shaded[1, 1]) == COLOURS[0]  # the label's outline
    assert tuple(shaded[2, 4]) == tuple(round(0.5 * 100 + 0.5 * side) for side in COLOURS[0])  # predicted beside it
    assert (shaded[0] == 100).all()


def test_model_records_classes_and_other_count_is_refused(tmp_path):
    for name, classes in (("m", ORGANS), ("o", ["lesion"])):
        head = run_settings({"client": {"network_name": "basic_unet", "image_size": 64, "classes": classes}})
        save_tensors(tmp_path / f"{name}.safetensors", {"x": torch.zeros(1)}, head)
    assert settings_of(tmp_path / "m.safetensors")["classes"] == ORGANS
    (problem,) = setting_differences(tmp_path / "m.safetensors", {"classes": ["foreground"]})
    assert str(problem).endswith("found ['foreground']; give --classes \"['kidney', 'spleen']\"")
    assert "classes" not in settings_of(tmp_path / "o.safetensors")
    assert setting_differences(tmp_path / "o.safetensors", {"classes": ["foreground"]}) == []
    (problem,) = setting_differences(tmp_path / "o.safetensors", {"classes": ORGANS})
    assert "expected ['foreground'], as o.safetensors was trained" in str(problem)


@pytest.mark.parametrize("workflow", ["train", "federate"])
def test_single_class_method_refuses_several_classes(workflow):
    overrides = {"classes": ORGANS}
    problems = check_bundle(SKIN, workflow, variant="hssf_compat", overrides=overrides, ready=False)
    (text,) = [str(each) for each in problems if "'hssf_compat'" in str(each)]
    assert "'samfed'" in text
    assert "which learn 2 classes, found 'hssf_compat', which leaves out several classes: a label that even the" in text
    assert text.endswith("many among several; or use a data list with one class")
    fine = check_bundle(SKIN, workflow, variant="samfed", overrides=overrides, ready=False)
    assert not [each for each in fine if "classes" in str(each)]
    for wrong in (3, 0.5, True, "liver"):
        (only,) = check_bundle(SKIN, workflow, variant="hssf_compat", overrides={"classes": wrong}, ready=False)
        assert (only.where, only.expected) == ("command line -> classes", "a list or null")


def test_custom_variant_declares_class_support(tmp_path):
    bundle = tmp_path / "mine"
    shutil.copytree(SKIN, bundle, ignore=shutil.ignore_patterns("models"))
    (bundle / "configs" / "variants").mkdir()
    path = bundle / "configs" / "variants" / "own.json"
    for classes, refusals in ((None, 1), ("several", 0)):
        method = {"title": "Own", "base": "samfed", **({"classes": classes} if classes else {})}
        write_json(path, {"_method": method})
        found = check_bundle(bundle, "train", variant="own", overrides={"classes": ORGANS}, ready=False)
        assert sum("which learn 2 classes" in str(each) for each in found) == refusals
    write_json(path, {"_method": {"title": "Own", "base": "samfed", "classes": "many"}})
    (problem, *_) = check_bundle(bundle, "train", variant="own", ready=False)
    assert "own.json -> _method#classes: expected one of ['one', 'several'], found 'many'" in str(problem)
