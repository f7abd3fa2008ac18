"""A planted layer reveals images without the defence and is refused with it: alone, and at a site."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from samfed_monai.attacks.finding import psnr
from samfed_monai.attacks.planted import (
    RATE,
    attack_planted,
    images_of,
    one_round,
    planted_definition,
    planted_network,
    planted_weights,
)
from samfed_monai.config.strict import strict_problems
from samfed_monai.data import load_records
from samfed_monai.federation import Plan, Site
from samfed_monai.protocol import Kind, Message, MessageRefused, Task
from tests.attacks.toys import QUICK, scenes, target
from tests.federation.test_job import CLIENT
from tests.federation.wired import paths

SIZE = 32


def nearest(found: torch.Tensor, truth: torch.Tensor) -> float:
    """PSNR in dB of the best pair of a reconstruction and an image."""
    return max(float(psnr(each[None].expand_as(truth), truth).max()) for each in found)


def test_images_are_recovered_where_masks_do_not_overlap():
    images, _ = scenes(3, seed=1)
    masks = torch.zeros(3, 1, 16, 16)
    for index in range(3):
        masks[index, :, 5 * index : 5 * index + 4] = 1
    network = planted_network(16)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    after = one_round(network, torch.nn.BCEWithLogitsLoss(), images, masks, adam=False)
    found = images_of(before, after, (3, 16, 16), 3)
    assert all(nearest(found, image[None]) > 50 for image in images)


def test_findings_report_leaks_and_effective_defences():
    found = attack_planted(target(size=20), QUICK)
    rows = {row["defence"].partition(",")[0].partition(" (")[0]: row for row in found.rows}
    assert rows["none"]["psnr"] > 40 > 25 > rows["none"]["blank_psnr"]
    assert not rows["none"]["stopped"]
    assert rows["differential privacy"]["stopped"]
    assert not rows["strict check of what is sent"]["stopped"]
    assert rows["the site's network inspection"]["stopped"]
    assert "refuses the network before it sees any image" in found.verdict[1]
    assert found.verdict[1].endswith("strict check of what is sent (no class is forbidden).")


STILL = {
    "weak_view": {"_target_": "samfed_monai.transforms.WeakViewd", "flip": False, "quarter_turns": False, "rotate": 0.0,
                  "zoom": [1.0, 1.0], "shear": 0.0, "shift": 0.0},
    "strong_view#strength": 0.0,
}  # fmt: skip
SGD = {
    "_target_": "torch.optim.SGD", "lr": "@learning_rate",
    "params": {"_target_": "samfed_monai.bundle.parameters_of", "network": "@network", "groups": []},
}  # fmt: skip
PLAN = Plan(
    "samfed_skin",
    2,
    variant="oracle",
    train={
        **CLIENT,
        "local_steps": 1,
        "batch_size": 1,
        "learning_rate": RATE,
        "network_def": planted_definition(SIZE),
        "optimizer": SGD,
        **STILL,
    },
    sites={"site-1": {}, "site-2": {}},
    privacy={"least_images": 1},
)


@pytest.fixture
def node(small_federation, site_lists, tmp_path) -> Callable[[], Site]:
    """A site with images and masks that got the plan."""
    return lambda: Site("site-1", PLAN, paths(small_federation, site_lists["site-1"], tmp_path / "site-1"))


def weights_message(tensors: dict[str, torch.Tensor]) -> Message:
    return Message(Kind.WEIGHTS, "site-1", 0, 2, tensors=tensors)


WEIGHTS = planted_weights(planted_network(SIZE).state_dict())


def test_planted_network_is_refused_and_leaks_without_inspection(node, monkeypatch):
    assert strict_problems({"network_def": planted_definition(SIZE)}, "plan") == []
    with pytest.raises(MessageRefused, match="plan -> network_def: expected no layer with one weight per pixel"):
        node().answer(Task.PREPARE, weights_message(WEIGHTS))
    monkeypatch.setattr("samfed_monai.federation.site.require_plain_network", lambda client: None)
    open_site = node()
    open_site.answer(Task.PREPARE, weights_message(WEIGHTS))
    found = images_of(WEIGHTS, open_site.answer(Task.TRAIN, weights_message(WEIGHTS)).tensors, (3, SIZE, SIZE), 4)
    preprocessing = open_site.participants.config.value("validate#preprocessing")
    records = load_records(open_site.datalist, open_site.data_root, split="unlabelled", site="site-1")
    private = torch.stack([torch.as_tensor(preprocessing(dict(record))["image"]) for record in records])
    assert nearest(found, private) > 50
