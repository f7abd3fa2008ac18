"""FedProto at the server: whose prototypes are averaged how."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from samfed_monai.core.errors import Refused
from samfed_monai.methods.fedproto import Prototypes
from samfed_monai.protocol import Envelope, Kind, Server


class Headed(nn.Module):
    """A network whose features have a width of choice."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body, self.segmentation_head = nn.Conv2d(3, width, 1), nn.Conv2d(width, 1, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.segmentation_head(self.body(images))


def strategy(**widths: int) -> Prototypes:
    networks = {site: lambda width=width: Headed(width) for site, width in widths.items()}
    return Prototypes().attach(Server(sorted(widths), 2, networks=networks))


def answer(site: str, means: list, counts: list) -> Envelope:
    tensors = {"prototypes": torch.tensor(means), "counts": torch.tensor(counts)}
    return Envelope(Kind.PROTOTYPES, site, 0, 2, n=1, tensors=tensors)


def test_the_mean_is_weighted_by_pixels_class_by_class():
    made = strategy(a=2, b=2)
    made.configure(0)
    made.aggregate(
        0,
        {
            "a": answer("a", [[1.0, 1.0], [8.0, 0.0]], [3.0, 1.0]),
            "b": answer("b", [[5.0, 1.0], [0.0, 0.0]], [1.0, 0.0]),
        },
    )
    assert made.means["prototypes"].tolist() == [[2.0, 1.0], [8.0, 0.0]]
    assert made.means["counts"].tolist() == [4.0, 1.0]


def test_the_first_round_says_nothing_and_the_second_sends_the_means():
    made = strategy(a=2, b=2)
    assert made.configure(0)["a"].tensors == {}
    made.aggregate(0, {"a": answer("a", [[1.0, 1.0], [2.0, 2.0]], [1.0, 1.0])})
    message = made.configure(1)["b"]
    assert (message.kind, message.extra["purpose"]) == (Kind.PROTOTYPES, "distil")
    assert message.tensors["prototypes"].tolist() == [[1.0, 1.0], [2.0, 2.0]]


def test_state_there_and_back():
    made, other = strategy(a=2, b=2), strategy(a=2, b=2)
    made.configure(0)
    made.aggregate(0, {"a": answer("a", [[1.0, 1.0], [2.0, 2.0]], [1.0, 1.0])})
    other.load_state_dict(made.global_weights, made.state_dict())
    assert torch.equal(other.configure(1)["a"].tensors["prototypes"], made.means["prototypes"])


def test_features_of_two_widths_are_refused_with_both_sites():
    with pytest.raises(Refused, match=r"sites: expected features of one width, found 2 channels at a, 3 at b"):
        strategy(a=2, b=3)
