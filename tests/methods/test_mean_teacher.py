"""Mean Teacher: the loss by hand, and training steps with the moving average."""

from __future__ import annotations

import math
from copy import deepcopy

import pytest
import torch
from monai.engines.utils import IterationEvents

from samfed_monai.handlers import EmaGuide, UnlabelledStream
from samfed_monai.losses import StructureLoss
from samfed_monai.methods.mean_teacher import ConsistencyTerm, consistency_mse
from tests.handlers.toy import next_round, toy_loader, toy_network, toy_trainer


def test_mse_is_averaged_over_classes() -> None:
    logits = torch.zeros(1, 4, 1, 1)
    guide = torch.tensor([1.0, 0.0, 0.0, 0.0]).view(1, 4, 1, 1)
    assert consistency_mse(logits, guide).item() == pytest.approx((0.75**2 + 3 * 0.25**2) / 4)


def test_steps_match_published_training() -> None:
    network, seen = toy_network(), []
    stream = UnlabelledStream(loader=toy_loader(seed=1), guides=[EmaGuide(decay=0.75)])
    trainer = toy_trainer([stream, ConsistencyTerm(weight=9.0)], network=network)
    trainer.add_event_handler(
        IterationEvents.LOSS_COMPLETED, lambda engine: seen.append((engine.state.batch, engine.state.guidance.batch))
    )
    student, average = deepcopy(network), deepcopy(network).eval()
    next_round(trainer, 1, 5)  # half of the ramp
    optimizer = torch.optim.SGD(student.parameters(), lr=0.01)
    for labelled, own in seen:
        target = average(own["image"]).sigmoid().detach()
        loss = StructureLoss(kernel_size=3)(student(labelled["image"]), labelled["label"])
        distance = (student(own["image_strong"]).sigmoid() - target).square().mean()
        optimizer.zero_grad()
        (loss + 9 * math.exp(-5 * 0.5**2) * distance).backward()
        optimizer.step()
        for old, new in zip(average.state_dict().values(), student.state_dict().values(), strict=True):
            old.copy_(0.75 * old + 0.25 * new)
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(tensor, student.state_dict()[name], atol=1e-6, rtol=0)
