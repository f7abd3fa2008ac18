"""Soft masks of the public images: 8 bits, finite, and the identity of what they are of."""

from __future__ import annotations

import pytest
import torch
from monai.data import Dataset
from torch import nn

from samfed_monai.core.errors import Refused
from samfed_monai.handlers import PublicPredictor


def items(count: int = 3, size: int = 8) -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, 3, size, size, generator=generator)
    names = [f"{index:064d}" for index in range(count)]
    return [
        {"image": image, "label": (image[:1] > 0.5).float(), "image_sha256": name}
        for image, name in zip(images, names, strict=True)
    ]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), nn.BatchNorm2d(2), nn.Conv2d(2, 1, 1))


def test_eight_bits_are_wrong_by_at_most_one_in_510():
    net, data = network(), items()
    net[2].weight.data *= 20
    found = PublicPredictor(dataset=Dataset(data), mask_size=8, batch_size=2).masks(net)
    with torch.no_grad():
        true = net.eval()(torch.stack([item["image"] for item in data])).sigmoid()
    assert (found.dtype, found.shape) == (torch.uint8, (3, 1, 8, 8))
    assert (found / 255 - true).abs().max() <= 1 / 510 + 1e-6
    assert true.min() < 0.1 < 0.9 < true.max()


def test_a_mask_is_a_quarter_of_the_image_unless_told_otherwise():
    assert PublicPredictor(dataset=Dataset(items(size=16))).masks(network()).shape == (3, 1, 4, 4)
    assert PublicPredictor(dataset=Dataset(items(size=2))).masks(network()).shape == (3, 1, 1, 1)


def test_the_network_is_run_in_evaluation_and_left_as_it_was():
    net = network().train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    predictor = PublicPredictor(dataset=Dataset(items()))
    assert torch.equal(predictor.masks(net), predictor.masks(net))
    assert net.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_nan_is_refused():
    net = network()
    net[0].weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(Refused, match=r"soft masks: expected probabilities in .*, found NaN or infinity; lower the"):
        PublicPredictor(dataset=Dataset(items())).masks(net)


@pytest.mark.parametrize("options", [{"reliability": "iou"}, {"mask_size": 0}, {"mask_size": 4.0}])
def test_bad_options_are_refused_by_name(options):
    with pytest.raises(Refused, match=f"sharing#{next(iter(options))}: expected"):
        PublicPredictor(dataset=Dataset(items()), **options)


def test_the_hash_is_that_of_images_labels_and_their_order():
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


def test_reliability_is_measured_at_the_labels_size():
    label = torch.zeros(1, 4, 4)
    label[:, :2] = 1
    data = [{"image": torch.zeros(3, 4, 4), "label": label, "image_sha256": 64 * "0"}] * 2
    masks = torch.tensor([[[[255, 255], [0, 0]]], [[[255, 0], [0, 0]]]], dtype=torch.uint8)
    predictor = PublicPredictor(dataset=Dataset(data))
    # the second: columns of 1, 0.75, 0.25, 0 times rows of the same, 4 pixels above a half
    assert predictor.reliability(masks).tolist() == pytest.approx([1.0, 2 * 4 / (4 + 8)])
    accurate = PublicPredictor(dataset=Dataset(data), reliability="pixel_accuracy")
    assert accurate.reliability(masks).tolist() == pytest.approx([1.0, 12 / 16])
