"""HSSF: its network, its losses by hand, its terms and strong view, and the variant with its conventions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from monai.data.meta_tensor import MetaTensor
from torch import Tensor, nn

from samfed_monai.core.errors import Refused
from samfed_monai.core.io import read_json
from samfed_monai.data import DataList
from samfed_monai.federation.run import Run
from samfed_monai.federation.start import warm_start
from samfed_monai.handlers import Guidance
from samfed_monai.losses import StructureLoss, hssf_kl
from samfed_monai.methods import hssf
from samfed_monai.networks import AutocastInferer, client_network
from samfed_monai.networks.torchvision_ops import declare_torchvision_operators
from samfed_monai.results import validate_results
from tests.federation.test_job import job
from tests.methods import engine_of

PUBLISHED = {"resnet18": 21.4e6, "resnet34": 31.5e6, "resnet101": 65.7e6}  # HSSF, Ma et al., IEEE TMI 2024
CLASSIFIER = {"resnet18": 513_000, "resnet34": 513_000, "resnet101": 2_049_000}  # a ResNet's, for 1000 classes


def narrow_network(**kwargs) -> hssf.HssfNetwork:
    """A narrow one on ResNet-18."""
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hssf, "WIDTH", 16)
        return hssf.HssfNetwork("resnet18", **kwargs)


def random_images(batch: int = 2, height: int = 40, width: int = 52) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("encoder", sorted(PUBLISHED))
def test_parameter_count_matches_publication(encoder: str) -> None:
    with torch.device("meta"):
        network = client_network(f"hssf_{encoder}")
    count = sum(parameter.numel() for parameter in network.parameters())
    # published to 0.1 million, and by the same rounding or truncation at each encoder
    assert abs(count + CLASSIFIER[encoder] - PUBLISHED[encoder]) < 0.1e6
    assert network.low[0].out_channels == 48, "as in DeepLabV3+"


def test_prediction_is_logit_difference_and_keeps_outputs() -> None:
    prediction = narrow_network()(random_images())
    outputs = hssf.hssf_outputs(prediction)
    assert prediction.shape == outputs.confidence.shape == (2, 1, 40, 52)
    assert outputs.logits.shape == (2, 2, 40, 52)
    assert outputs.dropped is None
    torch.testing.assert_close(prediction.sigmoid(), outputs.logits.softmax(dim=1)[:, 1:])
    assert outputs.confidence.requires_grad
    network = narrow_network()
    first = network(random_images())
    confidence = hssf.hssf_outputs(first).confidence
    with torch.no_grad():
        network.eval()(random_images())
    network.train()(random_images() / 2)
    assert hssf.hssf_outputs(first).confidence is confidence


@pytest.mark.parametrize("enabled", [False, True])
def test_inferer_keeps_outputs_under_autocast(enabled: bool) -> None:
    prediction = AutocastInferer(enabled)(random_images(), narrow_network(), feature_dropout=0.5)
    outputs = hssf.hssf_outputs(prediction)
    assert outputs.dropped is not None
    assert {each.dtype for each in (prediction, outputs.logits, outputs.confidence, outputs.dropped)} == {torch.float32}


def test_feature_dropout_changes_only_second_pass() -> None:
    image = random_images()
    network, twin = narrow_network(), narrow_network()
    torch.manual_seed(1)  # the decoder has dropout of its own
    plain = network(image)
    torch.manual_seed(1)
    dropped = twin(image, feature_dropout=0.5)
    torch.testing.assert_close(dropped, plain)
    second = hssf.hssf_outputs(dropped).dropped
    assert second.shape == (2, 2, 40, 52)
    assert (second - hssf.hssf_outputs(plain).logits).abs().mean() > 0.01


def test_eval_mode_has_no_outputs_and_skips_confidence() -> None:
    network = narrow_network().eval()
    called = []
    network.confidence_head.register_forward_hook(lambda *_: called.append(1))
    with pytest.raises(Refused, match=r"expected the prediction of an hssf_resnet network in train mode, found .*"):
        hssf.hssf_outputs(network(random_images()))
    assert not called


def test_network_can_be_copied_after_prediction() -> None:
    network = narrow_network()
    network(random_images()).mean().backward()
    torch.testing.assert_close(deepcopy(network).eval()(random_images()), network.eval()(random_images()))


def test_logits_are_upsampled_without_aligned_corners() -> None:
    network = narrow_network().eval()
    low = []
    network.head.register_forward_hook(lambda _module, _inputs, output: low.append(output))
    with torch.no_grad():
        found = network(random_images(height=64, width=32))
    assert low[0].shape[-2:] == (16, 8)
    difference = low[0][:, 1:] - low[0][:, :1]
    # corners not aligned: the first of the four pixels of a logit at the border has that logit's value, as the second
    torch.testing.assert_close(found[:, :, 0, 0], difference[:, :, 0, 0])
    torch.testing.assert_close(found[:, :, 1, 1], difference[:, :, 0, 0])


def test_invalid_arguments_and_images_are_refused() -> None:
    with pytest.raises(Refused, match=r"network_def#out_channels: expected a whole number >= 1, found '?0"):
        narrow_network(out_channels=0)
    network = client_network("hssf_resnet18", out_channels=2)
    with torch.no_grad():
        assert network(random_images(height=33)).shape == (2, 2, 33, 52)
    with pytest.raises(Refused, match=r"image height: expected at least 32 pixels, found 16 pixels"):
        network(random_images(height=16))
    with pytest.raises(Refused, match=r"batch_size: expected at least 2.*, found 1; set batch_size to 2 or more"):
        network(random_images(batch=1))


def test_encoder_weights_are_loaded_from_file(tmp_path) -> None:
    from safetensors.torch import save_file

    source = narrow_network()
    save_file(dict(source.encoder.state_dict()), tmp_path / "resnet18.safetensors")
    network = client_network("hssf_resnet18", weights=tmp_path / "resnet18.safetensors")
    assert torch.equal(network.encoder.conv1.weight, source.encoder.conv1.weight)


def test_stress_matches_hand_computed_values() -> None:
    features = torch.tensor([[1.0, 3.0], [0.0, -1.0]]).view(1, 2, 1, 2)  # means 2 and -1/2
    assert hssf.scaled_by_mean(features).flatten().tolist() == [3.0, 9.0, 0.0, -0.5]


def test_confidence_branch_inputs_match_formula() -> None:
    torch.manual_seed(0)
    branch = hssf.ConfidenceBranch(classes=2).eval()
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for name in ("first", "second", "third", "last"):
        part = getattr(branch, name)
        part.register_forward_hook(lambda _m, given, out, name=name: seen.update({name: (given[0], out)}))
    features, logits = torch.randn(1, 256, 3, 3), torch.randn(1, 2, 3, 3)
    with torch.no_grad():
        branch(features, logits)
    first = hssf.scaled_by_mean(seen["first"][1])
    second = hssf.scaled_by_mean(first + seen["second"][1])
    expected = {
        "first": (features, logits),
        "second": (first, features),
        "third": (first, second),
        "last": (second + seen["third"][1], second),
    }
    for name, maps in expected.items():
        torch.testing.assert_close(seen[name][0], torch.cat(maps, dim=1))


def test_convolutions_are_initialised_by_fan_in() -> None:
    torch.manual_seed(0)
    part = hssf.he_initialised(hssf.block(64, 256, 3))
    convolution, norm = part[0], part[1]
    assert isinstance(convolution, nn.Conv2d)
    assert abs(convolution.weight.std().item() / (2 / (9 * 64)) ** 0.5 - 1) < 0.02  # of 147,456 numbers
    assert norm.weight.unique().tolist() == [1.0]


LN3 = math.log(3)  # the logit of 3/4


def pixels(*values: float) -> Tensor:
    """(1, 1, 2, n / 2)."""
    return torch.tensor(values, dtype=torch.float32).view(1, 1, 2, -1)


def test_confidence_loss_reweights_wrong_pixels() -> None:
    logits = pixels(2, 1, -1, -2, 3, -3)
    label = pixels(1, 1, 0, 0, 0, 1)  # four right, the last two wrong: weight 2
    confidence = pixels(LN3, LN3, 0, 0, LN3, -LN3)  # chances of being right: 3/4 3/4 1/2 1/2 3/4 1/4
    right = 2 * math.log(4 / 3) + 2 * math.log(2)
    wrong = 2 * (math.log(4) + math.log(4 / 3))
    assert hssf.confidence_loss(confidence, logits, label).item() == pytest.approx((right + wrong) / 6, rel=1e-6)
    # all right is the plain cross entropy, and all wrong is nothing
    confidence, label = pixels(LN3, LN3, LN3, 0, 0, 0), pixels(1, 1, 1, 1, 1, 1)
    plain = (3 * math.log(4 / 3) + 3 * math.log(2)) / 6
    assert hssf.confidence_loss(confidence, label, label).item() == pytest.approx(plain, rel=1e-6)
    assert hssf.confidence_loss(confidence, -label, label).item() == 0


def test_confidence_loss_has_no_gradient_for_prediction() -> None:
    logits = pixels(1, -1, 1, -1, 1, -1).requires_grad_()
    confidence = pixels(0, 0, 0, 0, 0, 0).requires_grad_()
    hssf.confidence_loss(confidence, logits, pixels(1, 1, 1, 0, 0, 0)).backward()
    assert logits.grad is None
    assert confidence.grad is not None
    # four right with weight 1, two wrong with weight 2; the gradient of a cross entropy at 0 is -1/2 and 1/2
    torch.testing.assert_close(confidence.grad, torch.tensor([-1, 2, -1, -1, 2, -1]).view(1, 1, 2, 3) / 12)


def test_kl_counts_closed_gate_as_zero() -> None:
    logits, target = torch.zeros(2, 1, 2, 3), torch.full((2, 1, 2, 3), 0.9)
    whole = hssf_kl(logits, target).item()
    assert hssf_kl(logits, target, torch.tensor([True, False])).item() == pytest.approx(whole / 2)
    assert hssf_kl(logits, target, torch.tensor([False, False])).item() == 0


def logit(*chances: float) -> Tensor:
    return torch.logit(pixels(*chances))


NUMBERS = {"flip_below": 0.3, "least_mean": 0.75}


def test_labels_come_from_surer_view_and_doubtful_are_flipped() -> None:
    weak, strong = pixels(1, 1, -1, -1, 1, -1), pixels(-1, -1, 1, 1, -1, 1)
    weak_confidence = logit(0.9, 0.4, 0.9, 0.2, 0.25, 0.5)
    chosen = hssf.lssl_labels(weak, weak_confidence, strong, logit(0.6, 0.8, 0.3, 0.9, 0.1, 0.5), **NUMBERS)
    #  weak says 1; strong says 0; weak says 0; strong says 1; weak says 1 but at 0.25: flipped; equal: weak says 0
    assert chosen.label.flatten().tolist() == [1, 0, 0, 1, 0, 0]
    assert chosen.flipped.flatten().tolist() == [False, False, False, False, True, False]
    assert chosen.gate.tolist() == [False]  # (0.9 + 0.8 + 0.9 + 0.9 + 0.25 + 0.5) / 6 = 0.708
    with pytest.raises(ValueError, match="expected one channel, found 3; a class has no opposite"):
        hssf.lssl_labels(*(torch.zeros(1, 3, 2, 3),) * 4, **NUMBERS)


def test_images_below_mean_confidence_are_gated() -> None:
    zeros = torch.zeros(2, 1, 2, 3)
    confidence = torch.cat([logit(0.9, 0.9, 0.9, 0.9, 0.9, 0.1), logit(0.7, 0.7, 0.7, 0.8, 0.7, 0.7)])
    unsure = torch.full_like(confidence, -9)
    for least_mean, gate in ((0.75, [True, False]), (0.7, [True, True])):  # means 0.767 and 0.717
        chosen = hssf.lssl_labels(zeros, confidence, zeros, unsure, flip_below=0.3, least_mean=least_mean)
        assert chosen.gate.tolist() == gate


def test_gated_loss_counts_excluded_images_as_zero() -> None:
    loss = StructureLoss(kernel_size=3)
    logits = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    label = (torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(1)) > 0.5).long()
    found = hssf.gated_loss(loss, logits, label, torch.tensor([True, False, True]))
    torch.testing.assert_close(found, (loss(logits[:1], label[:1]) + loss(logits[2:], label[2:])) / 3)
    nothing = hssf.gated_loss(loss, logits, label, torch.zeros(3, dtype=torch.bool))
    nothing.backward()
    assert nothing.item() == 0
    assert not logits.grad.any()


def test_dropout_consistency_matches_hand_computed_values() -> None:
    dropped = torch.tensor([0.0, LN3]).view(1, 2, 1, 1).expand(1, 2, 2, 2)  # softmax: 1/4 and 3/4
    logits = dropped + torch.tensor([2.0, 1.0]).view(1, 2, 1, 1)
    assert hssf.dropout_consistency(logits, dropped).item() == pytest.approx((4 / 4 + 1 * 3 / 4) / 2)
    assert hssf.dropout_consistency(dropped, dropped).item() == 0


def with_outputs(logits: torch.Tensor, confidence: torch.Tensor, dropped: torch.Tensor | None = None) -> torch.Tensor:
    pair = torch.cat([torch.zeros_like(logits), logits], dim=1)
    logits.hssf_outputs = hssf.HssfOutputs(pair, confidence, dropped)  # type: ignore[attr-defined]
    return logits


def tensors(count: int, *, batch: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(batch, 1, 2, 2, generator=generator) for _ in range(count)]


def test_confidence_loss_is_added_with_weight_four() -> None:
    logits, confidence = tensors(2)
    label = torch.ones(2, 1, 2, 2)
    output = {"loss": torch.tensor(2.0), "pred": with_outputs(logits, confidence), "label": label}
    engine = engine_of(output=output)
    term = hssf.ConfidenceTerm()
    term.check(engine)
    term(engine)
    value = hssf.confidence_loss(confidence, logits, label)
    torch.testing.assert_close(engine.state.output["loss"], 2 + 4 * value)
    torch.testing.assert_close(engine.state.terms["confidence"], value)
    torch.testing.assert_close(engine.state.terms["confidence_mean"], confidence.sigmoid().mean())


@pytest.mark.parametrize("consistency", [0.0, 3.0])
def test_lssl_loss_sums_both_views_and_consistency(consistency: float) -> None:
    weak, weak_confidence, strong, strong_confidence = (each.requires_grad_() for each in tensors(4))
    dropped = torch.cat([torch.zeros_like(weak), weak - 2], dim=1)  # differs from the pair by (0, 2)
    dropouts: list[float] = []

    def inferer(image: torch.Tensor, network: Any, feature_dropout: float) -> torch.Tensor:
        dropouts.append(feature_dropout)
        assert image is batch["image"]
        return with_outputs(weak, weak_confidence, dropped)

    batch = {"image": torch.zeros(2, 3, 2, 2)}
    guidance = Guidance(student=with_outputs(strong, strong_confidence), weak_view=weak, guides={}, batch=batch)
    engine = engine_of(guidance=guidance)
    engine.inferer = inferer
    loss = StructureLoss(kernel_size=3)
    found = hssf.LsslTerm(loss=loss, least_mean=0.0, flip_below=0.6, consistency=consistency).value(guidance, engine)
    chosen = hssf.lssl_labels(weak, weak_confidence, strong, strong_confidence, flip_below=0.6, least_mean=0.0)
    assert 0 < chosen.flipped.float().mean() < 1  # the threshold is at work
    entropy = [F.binary_cross_entropy_with_logits(view, chosen.label.float()) for view in (weak, strong)]
    # a squared difference of 4 in the second of two channels, which holds the mean of its sigmoid of the image
    difference = 4 * (weak - 2).sigmoid().mean() / 2
    expected = loss(weak, chosen.label) + loss(strong, chosen.label) + sum(entropy) + consistency * difference
    torch.testing.assert_close(found, expected)
    assert dropouts == [0.5]
    assert engine.state.terms["lssl_counted"] == 1
    assert engine.state.terms["lssl_flipped"] == chosen.flipped.float().mean()
    found.backward()
    assert bool(weak.grad.any() and strong.grad.any()), "both views learn"


def test_lssl_ignores_unsure_images() -> None:
    weak, strong = tensors(2)
    sure = torch.tensor([3.0, 0.0]).view(2, 1, 1, 1).expand(2, 1, 2, 2)  # 0.95 and 0.5
    guidance = Guidance(student=with_outputs(strong, sure), weak_view=weak, guides={}, batch={"image": weak})
    engine = engine_of(guidance=guidance)
    engine.inferer = lambda image, network, feature_dropout: with_outputs(weak, sure)
    loss = StructureLoss(kernel_size=3)
    found = hssf.LsslTerm(loss=loss, cross_entropy=0.0).value(guidance, engine)
    label, gate = (weak > 0).long(), torch.tensor([True, False])
    expected = hssf.gated_loss(loss, weak, label, gate) + hssf.gated_loss(loss, strong, label, gate)
    torch.testing.assert_close(found, expected)
    assert engine.state.terms["lssl_counted"] == 0.5


GREY = torch.full((3, 64, 64), 0.5)


def noise(view: hssf.NoiseViewd, image: torch.Tensor = GREY) -> torch.Tensor:
    return view({"image": image})["image_strong"] - image


def test_noise_is_bounded_and_drawn_per_image() -> None:
    view = hssf.NoiseViewd().set_random_state(0)
    for _ in range(3):
        added = noise(view)
        assert added.abs().max().item() == pytest.approx(0.1, abs=1e-6)  # 4.6 % of 12,288 draws lie beyond two sigma
        # a normal cut off (not redrawn) at two deviations has a deviation of 0.959; 12,288 draws are 1 % exact
        assert added.std().item() == pytest.approx(0.04797, rel=0.03)
        assert added.mean().abs().item() < 0.002
    assert not torch.equal(noise(view), added), "drawn anew for each image"
    assert torch.equal(noise(view.set_random_state(1)), noise(hssf.NoiseViewd().set_random_state(1)))
    for value in (0.0, 1.0):
        view = hssf.NoiseViewd(limit=1.0).set_random_state(0)
        found = view({"image": torch.full((3, 16, 16), value)})["image_strong"]
        assert 0 <= found.min() <= found.max() <= 1


def test_noise_view_keeps_input_and_returns_plain_tensor() -> None:
    before = GREY.clone()
    result = hssf.NoiseViewd()({"image": MetaTensor(GREY), "label": 1})
    assert torch.equal(GREY, before)
    assert type(result["image_strong"]) is torch.Tensor
    assert result["label"] == 1
    assert torch.equal(hssf.NoiseViewd(deviation=0.0)({"image": GREY})["image_strong"], GREY)


def test_noise_view_rejects_invalid_arguments() -> None:
    with pytest.raises(Refused, match=r"(?s)3 problems.*deviation: .*-0\.1.*limit: .*2.*output_key: .*2 names for 1"):
        hssf.NoiseViewd(output_key=("a", "b"), deviation=-0.1, limit=2)


@pytest.fixture
def small_network() -> Iterator[None]:
    """Whatever ResNet is asked for, one of half a million parameters, and a decoder of 16 channels."""
    declare_torchvision_operators()
    from segmentation_models_pytorch import encoders

    get_encoder = encoders.get_encoder
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hssf, "WIDTH", 16)
        small = "timm-mobilenetv3_small_minimal_100"
        patch.setattr(encoders, "get_encoder", lambda name, **options: get_encoder(small, **options))
        yield


def test_compat_variant_trains_with_published_conventions(small_network, build) -> None:
    workflow = build("hssf_compat", network_name="hssf_resnet18", batch_size=4, local_steps=2)
    parser = workflow.parser
    assert isinstance(parser.get_parsed_content("network"), hssf.HssfNetwork)
    views = parser.get_parsed_content("unlabelled#dataloader").dataset.transform.transforms
    assert isinstance(views[-1], hssf.NoiseViewd)
    weak, scores = views[-2], parser.get_parsed_content("validate#scores")
    assert (weak.flip, weak.quarter_turns, weak.zoom, weak.shear) == (True, False, (1.0, 1.0), 0.0)
    assert (scores.pooled, scores.skip_empty) == (True, True)
    workflow.run()
    assert set(workflow.trainer.state.term_means) == {"supervised", "lssl", "lssl_counted", "lssl_flipped"}
    algorithm = parser.get_parsed_content("client_algorithm")
    means = algorithm.run(0, 1, algorithm.own_masks())
    assert set(means) == {"supervised", "confidence", "confidence_mean", "public_kd", "public_kd_gate"}
    assert algorithm.predictor.reliability_measure == "pixel_accuracy"
    assert algorithm.steps == 4, "four passes over the four public images in batches of four"


@pytest.mark.slow
def test_federation_and_warm_start_use_compat_conventions(
    small_network, small_federation: Path, tmp_path: Path
) -> None:
    client = {"image_size": 32, "local_steps": 1, "server_network": "hssf_resnet18", "amp": False}
    made = job(small_federation, tmp_path / "run", variant="hssf_compat", rounds=1, train=client)
    results = made.run()
    assert validate_results(results) == []
    assert (results["exchange"], set(results["networks"].values())) == ("predictions", {"hssf_resnet18"})
    assert results["convention"] == {"hd95": "pooled", "empty": "skipped"}
    config, steps = Run(made.plan, made.paths).warm_start_config("hssf_resnet18")
    warm = config.parser()
    numbers = [warm[name] for name in ("optimizer#lr", "train#dataloader#batch_size", "loss#weighted_entropy")]
    assert (steps, numbers) == (2, [1e-4, 4, False])
    plan = replace(made.plan, train={**made.plan.train, "learning_rate": 0.5, "batch_size": 2})
    warm = Run(plan, made.paths).warm_start_config("hssf_resnet18")[0].parser()
    assert (warm["optimizer#lr"], warm["train#dataloader#batch_size"]) == (0.5, 2), "the run's own options go before it"
    listed = DataList.load(small_federation / "list.json")
    trained, untrained = (warm_start(config, datalist=listed, steps=n, seed=0, cache_dir=tmp_path)[0] for n in (2, 0))
    head = [name for name in trained if name.startswith("confidence") and name.endswith("weight")]
    assert head
    assert not any(torch.equal(trained[name], untrained[name]) for name in head), "the confidence is learned there, too"
    record = read_json(tmp_path / "run" / "rounds" / "000" / "round.json")["sites"]["site-1"]
    assert {"lssl", "public_supervised", "public_kd"} <= record["terms"].keys()
