"""The terms of HSSF's conventions, on its own network and on tensors of four pixels."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from monai.data import DataLoader, Dataset
from monai.engines.utils import IterationEvents
from monai.inferers import SimpleInferer
from monai.transforms import Compose

from samfed_monai.core.errors import Refused
from samfed_monai.handlers import EndlessSampler, Guidance, TermLogger, UnlabelledStream
from samfed_monai.losses import StructureLoss
from samfed_monai.methods.hssf import ConfidenceTerm, LsslTerm, NoiseViewd, confidence_loss, gated_loss, lssl_labels
from samfed_monai.networks import HssfNetwork, HssfOutputs, hssf_outputs
from tests.handlers.toy import toy_loader, toy_network, toy_trainer, weights

SIZE = 32


def a_network() -> HssfNetwork:
    torch.manual_seed(0)
    return HssfNetwork("resnet18")


def a_loader() -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    items = [
        {"image": torch.rand(3, SIZE, SIZE, generator=generator), "label": (torch.rand(1, SIZE, SIZE) > 0.5).float()}
        for _ in range(2)
    ]
    dataset = Dataset(items, Compose([NoiseViewd()]))
    return DataLoader(dataset, batch_size=2, sampler=EndlessSampler(dataset), num_workers=0)


def predicted(logits: torch.Tensor, confidence: torch.Tensor, dropped: torch.Tensor | None = None) -> torch.Tensor:
    pair = torch.cat([torch.zeros_like(logits), logits], dim=1)
    logits.hssf_outputs = HssfOutputs(pair, confidence, dropped)  # type: ignore[attr-defined]
    return logits


def tensors(count: int, *, batch: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(batch, 1, 2, 2, generator=generator) for _ in range(count)]


def engine_of(**state: Any) -> Any:
    return SimpleNamespace(state=SimpleNamespace(round=0, rounds=1, iteration=1, **state))


def test_confidence_is_added_four_times_and_needs_no_stream() -> None:
    logits, confidence = tensors(2)
    label = torch.ones(2, 1, 2, 2)
    output = {"loss": torch.tensor(2.0), "pred": predicted(logits, confidence), "label": label}
    engine = engine_of(output=output)
    term = ConfidenceTerm()
    term.check(engine)
    term(engine)
    value = confidence_loss(confidence, logits, label)
    torch.testing.assert_close(engine.state.output["loss"], 2 + 4 * value)
    torch.testing.assert_close(engine.state.terms["confidence"], value)
    torch.testing.assert_close(engine.state.terms["confidence_mean"], confidence.sigmoid().mean())


def test_a_prediction_without_confidence_is_refused() -> None:
    output = {"loss": torch.tensor(2.0), "pred": torch.zeros(1, 1, 2, 2), "label": torch.ones(1, 1, 2, 2)}
    with pytest.raises(Refused, match=r"found a prediction without confidence; set network_name to hssf_resnet18"):
        ConfidenceTerm()(engine_of(output=output))


@pytest.mark.parametrize("consistency", [0.0, 3.0])
def test_lssl_is_the_loss_of_both_views_plus_the_difference_of_two_passes(consistency: float) -> None:
    weak, weak_confidence, strong, strong_confidence = tensors(4)
    dropped = torch.cat([torch.zeros_like(weak), weak - 2], dim=1)  # differs from the pair by (0, 2)
    asked: list[float] = []

    def inferer(image: torch.Tensor, network: Any, feature_dropout: float) -> torch.Tensor:
        asked.append(feature_dropout)
        assert image is batch["image"]
        return predicted(weak, weak_confidence, dropped)

    batch = {"image": torch.zeros(2, 3, 2, 2)}
    guidance = Guidance(student=predicted(strong, strong_confidence), weak_view=weak, guides={}, batch=batch)
    engine = engine_of(guidance=guidance)
    engine.inferer, engine.network = inferer, None
    loss = StructureLoss(kernel_size=3)
    term = LsslTerm(loss=loss, least_mean=0.0, flip_below=0.6, consistency=consistency)
    found = term.value(guidance, engine)
    chosen = lssl_labels(weak, weak_confidence, strong, strong_confidence, flip_below=0.6, least_mean=0.0)
    assert 0 < chosen.flipped.float().mean() < 1  # the threshold is at work
    entropy = [F.binary_cross_entropy_with_logits(view, chosen.label.float()) for view in (weak, strong)]
    # a squared difference of 4 in the second of two channels, which holds the mean of its sigmoid of the image
    difference = 4 * (weak - 2).sigmoid().mean() / 2
    expected = loss(weak, chosen.label) + loss(strong, chosen.label) + sum(entropy) + consistency * difference
    torch.testing.assert_close(found, expected)
    assert asked == [0.5]
    assert engine.state.terms["lssl_counted"] == 1
    assert engine.state.terms["lssl_flipped"] == chosen.flipped.float().mean()


def test_cutmix_is_refused_because_the_views_would_not_lie_on_each_other() -> None:
    weak, strong = tensors(2)
    guidance = Guidance(student=strong, weak_view=weak, guides={}, batch={"image": weak}, mixed=True)
    with pytest.raises(Refused, match=r"stream#cutmix: expected 0 beside terms#lssl, found CutMix"):
        LsslTerm().value(guidance, engine_of(guidance=guidance))


def test_images_of_which_the_views_are_unsure_do_not_count() -> None:
    weak, strong = tensors(2)
    sure = torch.tensor([3.0, 0.0]).view(2, 1, 1, 1).expand(2, 1, 2, 2)  # 0.95 and 0.5
    guidance = Guidance(student=predicted(strong, sure), weak_view=weak, guides={}, batch={"image": weak})
    engine = engine_of(guidance=guidance)
    engine.inferer, engine.network = (lambda image, network, feature_dropout: predicted(weak, sure)), None
    loss = StructureLoss(kernel_size=3)
    found = LsslTerm(loss=loss, cross_entropy=0.0).value(guidance, engine)
    label, gate = (weak > 0).long(), torch.tensor([True, False])
    torch.testing.assert_close(found, gated_loss(loss, weak, label, gate) + gated_loss(loss, strong, label, gate))
    assert engine.state.terms["lssl_counted"] == 0.5


def test_one_step_of_monais_trainer_with_both_terms() -> None:
    network, seen = a_network(), {}

    def look(engine: Any) -> None:  # after the stream's passes, as the terms are
        seen["student"] = hssf_outputs(engine.state.guidance.student).confidence
        seen["pred"] = hssf_outputs(engine.state.output["pred"]).confidence

    terms = [ConfidenceTerm(), LsslTerm(least_mean=0.0)]
    trainer = toy_trainer(
        [UnlabelledStream(loader=a_loader()), *terms, TermLogger()], network=network, loader=a_loader(), steps=1
    )
    trainer.add_event_handler(IterationEvents.LOSS_COMPLETED, look)
    before = weights(network)
    trainer.run()
    means = trainer.state.term_means
    assert set(means) == {"supervised", "confidence", "confidence_mean", "lssl", "lssl_counted", "lssl_flipped"}
    assert means["lssl_counted"] == 1
    assert seen["student"] is not seen["pred"]
    # four passes in train mode (labelled, strong, weak through encoder and heads) and one more of the decoder
    after = weights(network)
    assert after["encoder.bn1.num_batches_tracked"] == 3
    assert after["head.0.1.num_batches_tracked"] == after["decoder.0.1.num_batches_tracked"] == 4
    for name in ("confidence_head.first.0.weight", "head.0.0.weight", "encoder.conv1.weight"):
        assert not torch.equal(after[name], before[name])


class Keeping(SimpleInferer):
    """Keeps the gradient of the last prediction with feature dropout, and of the last one without."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[bool, torch.Tensor] = {}

    def __call__(self, inputs: torch.Tensor, network: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        prediction = network(inputs, *args, **kwargs)
        if prediction.requires_grad:
            prediction.retain_grad()
            self.kept["feature_dropout" in kwargs] = prediction
        return prediction


def test_both_views_have_a_gradient() -> None:
    stream, term = UnlabelledStream(loader=a_loader()), LsslTerm(least_mean=0.0)
    trainer = toy_trainer([stream, term], network=a_network(), loader=a_loader(), steps=1)
    trainer.inferer = inferer = Keeping()
    trainer.run()
    for is_weak in (True, False):  # the last pass without feature dropout is the strong view
        gradient = inferer.kept[is_weak].grad
        assert gradient is not None
        assert bool(gradient.any())


def test_another_network_is_refused_before_any_step() -> None:
    trainer = toy_trainer([UnlabelledStream(loader=toy_loader()), LsslTerm()], network=toy_network())
    with pytest.raises(
        Refused, match=r"terms#lssl: expected a network that predicts its confidence, found Sequential; set network_nam"
    ):
        trainer.run()
    assert trainer.state.iteration == 0


def test_without_a_stream_it_is_refused() -> None:
    with pytest.raises(Refused, match=r"terms#lssl: expected an UnlabelledStream"):
        toy_trainer([LsslTerm()], network=a_network(), loader=a_loader()).run()


def test_bad_arguments_are_refused_together() -> None:
    with pytest.raises(Refused, match=r"(?s)2 problems.*terms#lssl#least_mean: .*1\.5.*terms#lssl#consistency: .*-1"):
        LsslTerm(least_mean=1.5, consistency=-1)
