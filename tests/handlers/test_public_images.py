"""Soft masks of public images, and training steps on them."""

from __future__ import annotations

import pytest
import torch
from monai.data import Dataset, MetaTensor, set_track_meta
from monai.transforms import Compose
from torch import nn

from samfed_monai.core.errors import Refused
from samfed_monai.handlers import PublicPhase, PublicPredictor, RoundLearningRate
from samfed_monai.methods.heterogeneous import PublicDistillationTerm
from samfed_monai.transforms import LoadTargetd, PublicTargets, WeakViewd
from tests.handlers.toy import SIZE, same, toy_items, toy_network, weights


def items(count: int = 3, size: int = 8) -> list[dict]:
    images = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))
    names = [f"{index:064d}" for index in range(count)]
    return [
        {"image": image, "label": (image[:1] > 0.5).float(), "image_sha256": name}
        for image, name in zip(images, names, strict=True)
    ]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), nn.BatchNorm2d(2), nn.Conv2d(2, 1, 1))


def test_quantization_error_is_at_most_1_in_510():
    net, data = network(), items()
    net[2].weight.data *= 20
    found = PublicPredictor(dataset=Dataset(data), mask_size=8, batch_size=2).masks(net)
    with torch.no_grad():
        true = net.eval()(torch.stack([item["image"] for item in data])).sigmoid()
    assert (found.dtype, found.shape) == (torch.uint8, (3, 1, 8, 8))
    assert (found / 255 - true).abs().max() <= 1 / 510 + 1e-6
    assert true.min() < 0.1 < 0.9 < true.max()


def test_mask_size_defaults_to_quarter_of_image():
    assert PublicPredictor(dataset=Dataset(items(size=16))).masks(network()).shape == (3, 1, 4, 4)
    assert PublicPredictor(dataset=Dataset(items(size=2))).masks(network()).shape == (3, 1, 1, 1)


def test_prediction_keeps_network_unchanged_and_refuses_nan():
    net = network().train()
    before = weights(net)
    predictor = PublicPredictor(dataset=Dataset(items()))
    assert torch.equal(predictor.masks(net), predictor.masks(net))
    assert net.training
    assert same(before, net.state_dict())
    net[0].weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(Refused, match=r"soft masks: expected probabilities in .*, found NaN or infinity; lower the"):
        PublicPredictor(dataset=Dataset(items())).masks(net)


def test_masks_and_reliability_have_no_metadata():
    set_track_meta(True)  # another test may have turned it off
    tracked = [{**item, "image": MetaTensor(item["image"]), "label": MetaTensor(item["label"])} for item in items()]
    predictor = PublicPredictor(dataset=Dataset(tracked))
    masks = predictor.masks(network())
    assert {type(each) for each in (masks, predictor.labels, predictor.reliability(masks))} == {torch.Tensor}


@pytest.mark.parametrize("options", [{"reliability": "iou"}, {"mask_size": 0}, {"mask_size": 4.0}])
def test_invalid_options_are_refused_by_name(options):
    with pytest.raises(Refused, match=f"client_algorithm#{next(iter(options))}: expected"):
        PublicPredictor(dataset=Dataset(items()), **options)


def test_public_hash_depends_on_images_labels_and_order():
    def of(data: list[dict]) -> str:
        return PublicPredictor(dataset=Dataset(data), batch_size=2).public_hash

    relabelled, repainted = items(), items()
    relabelled[1]["label"][0, 0, 0] = 1 - relabelled[1]["label"][0, 0, 0]
    repainted[2]["image_sha256"] = 64 * "f"
    known = of(items())
    assert (len(known), known) == (64, of(items()))
    others = [of(data) for data in (items()[::-1], relabelled, repainted, items(2), items(size=4))]
    assert len({known, *others}) == 6
    assert PublicPredictor(dataset=Dataset(items()), batch_size=1).public_hash == known


def test_reliability_is_measured_at_label_size():
    label = torch.zeros(1, 4, 4)
    label[:, :2] = 1
    data = [{"image": torch.zeros(3, 4, 4), "label": label, "image_sha256": 64 * "0"}] * 2
    masks = torch.tensor([[[[255, 255], [0, 0]]], [[[255, 0], [0, 0]]]], dtype=torch.uint8)
    predictor = PublicPredictor(dataset=Dataset(data))
    # the second: columns of 1, 0.75, 0.25, 0 times rows of the same, 4 pixels above a half
    assert predictor.reliability(masks).tolist() == pytest.approx([1.0, 2 * 4 / (4 + 8)])
    accurate = PublicPredictor(dataset=Dataset(data), reliability="pixel_accuracy")
    assert accurate.reliability(masks).tolist() == pytest.approx([1.0, 12 / 16])


COUNT = 6


def phase(network: nn.Module | None = None, *, augment: bool = True, **options) -> PublicPhase:
    network = toy_network() if network is None else network
    targets = PublicTargets()
    items = [{**item, "index": index} for index, item in enumerate(toy_items(COUNT, seed=1))]
    views = [LoadTargetd(targets), *([WeakViewd()] if augment else [])]
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    settings = {"batch_size": 4, "steps": 3, "seed": 5, "site": "a", "term": PublicDistillationTerm()}
    return PublicPhase(
        network=network,
        optimizer=optimizer,
        loss=nn.BCEWithLogitsLoss(),
        dataset=Dataset(items, Compose(views)),
        targets=targets,
        learning_rate=RoundLearningRate(optimizer=optimizer),
        **{**settings, **options},
    )


def after(one: PublicPhase, *run) -> dict[str, torch.Tensor]:
    one.run(*run)
    return weights(one.trainer.network)


def masks() -> torch.Tensor:
    return torch.full((COUNT, 1, SIZE, SIZE), 200, dtype=torch.uint8)


def test_phase_without_masks_is_supervised_training():
    network = toy_network()
    one = phase(network, augment=False, batch_size=COUNT, steps=4)
    items = toy_items(COUNT, seed=1)
    images, labels = (torch.stack([item[key] for item in items]) for key in ("image", "label"))
    network.train()
    plain = toy_network()
    plain.load_state_dict(network.state_dict())
    optimizer = torch.optim.SGD(plain.parameters(), 0.1, momentum=0.9)
    means = one.run(0, 1)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(plain(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    # batches hold all images in another order: sums differ in the last bits
    assert all(torch.allclose(network.state_dict()[k], v, atol=1e-5) for k, v in plain.state_dict().items())
    assert means == pytest.approx({"supervised": sum(losses) / 4}, abs=1e-6)


def test_closed_gates_change_no_weights():
    nothing = after(phase(), 0, 1)
    closed = after(phase(), 0, 1, masks(), torch.zeros(COUNT, dtype=torch.bool))
    opened = after(phase(), 0, 1, masks())
    some = after(phase(), 0, 1, masks(), torch.tensor([True] + [False] * (COUNT - 1)))
    assert same(nothing, closed)
    assert not same(nothing, opened)
    assert not same(opened, some)


def test_round_reports_terms_gates_and_scheduled_rate():
    one, gates = phase(steps=1, batch_size=COUNT, augment=False), torch.arange(COUNT) < 3
    first, second = (one.run(round, 2, masks(), gates) for round in range(2))
    assert first.keys() == {"supervised", "public_kd", "public_kd_gate"}
    assert first["public_kd_gate"] == 0.5
    assert second["supervised"] < first["supervised"]
    assert one.trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.05)  # cosine at one half


def test_zero_steps_change_nothing():
    network = toy_network()
    before = weights(network)
    one = phase(network, steps=0)
    assert one.run(0, 1, masks()) == {}
    assert same(weights(network), before)
    assert one.targets.masks is None


def test_steps_default_to_passes_over_public_images():
    assert [phase(steps=None, batch_size=batch).steps for batch in (4, 6, 8, 1)] == [2, 1, 1, 6]
    assert phase(steps=None, batch_size=4, passes=4).steps == 8
    one = phase(steps=3, passes=4)
    one.run(0, 1)
    assert (one.steps, one.trainer.state.iteration) == (3, 3)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        *(({"steps": steps}, "public_steps: expected a number of steps >= 0, or null") for steps in (-1, 2.0, "3")),
        ({"passes": 0}, "client_algorithm#passes: expected a number of passes >= 1, found 0"),
    ],
)
def test_invalid_steps_and_passes_are_refused(options, expected):
    with pytest.raises(Refused, match=expected):
        phase(**options)


def test_phase_depends_only_on_seed_site_and_round():
    known = after(phase(), 2, 9)
    torch.manual_seed(999)
    worn = phase()
    worn.run(1, 9)
    with torch.no_grad():
        for name, tensor in toy_network().state_dict().items():
            worn.trainer.network.state_dict()[name].copy_(tensor)
    worn.trainer.optimizer.state.clear()
    assert same(after(worn, 2, 9), known), "not of what ran before"
    for other in (phase(seed=6), phase(site="b")):
        assert not same(after(other, 2, 9), known)
    assert not same(after(phase(), 3, 9), known)


def test_targets_are_cleared_after_failed_round():
    one = phase(augment=False)

    class Broken(nn.Module):
        def forward(self, x):
            raise ValueError("broken")

    network, one.trainer.network = one.trainer.network, Broken()
    with pytest.raises(ValueError, match="broken"):
        one.run(0, 2, masks())
    assert (one.targets.masks, one.targets.gate) == (None, None)
    one.trainer.network = network
    assert same(after(one, 1, 2), after(phase(augment=False), 1, 2))
    assert one.trainer.state.iteration == 3
