"""ELCFS: mixed spectra, windows of other sites, the episode by hand, and a job of two sites."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import binary_dilation, binary_erosion
from torch import nn

from samfed_monai.core.errors import Refused
from samfed_monai.handlers import Guidance
from samfed_monai.losses import weighted_pseudo_label_loss
from samfed_monai.methods import elcfs
from samfed_monai.methods.fedavg import FedAvg
from samfed_monai.protocol import Kind, Message, MessageRefused, Server
from samfed_monai.protocol.statistics import split_statistics, with_statistics
from tests.federation.test_job import job
from tests.methods import engine_of, needs


def images(seed: int, batch: int = 2, height: int = 9, width: int = 12) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def spectra(image: torch.Tensor) -> torch.Tensor:
    return torch.fft.fft2(image.double())


def test_spectrum_windows_match_hand_computed_values():
    flat = torch.full((1, 3, 8, 8), 0.25)
    expected = torch.zeros(1, 3, 3, 3)
    expected[..., 1, 1] = 0.25
    torch.testing.assert_close(elcfs.spectrum_windows(flat, 1), expected)
    wave = torch.cos(2 * torch.pi * torch.arange(8) / 8).expand(1, 3, 8, 8)  # frequency 1 along the width, amplitude 1
    expected = torch.zeros(1, 3, 3, 3)
    expected[..., 1, 0] = expected[..., 1, 2] = 0.5
    torch.testing.assert_close(elcfs.spectrum_windows(wave, 1), expected)
    torch.testing.assert_close(elcfs.spectrum_windows(images(0), 0)[..., 0, 0], images(0).mean(dim=(2, 3)))


@given(st.integers(0, 1000), st.integers(0, 3), st.sampled_from([(8, 8), (9, 12), (11, 7)]))
def test_restyling_changes_only_low_frequency_amplitudes(seed, half, size):
    own, others = images(seed, 2, *size), elcfs.spectrum_windows(images(seed + 1, 2, *size), half)
    assert torch.equal(elcfs.restyled(own, others, torch.ones(2)), own)
    torch.testing.assert_close(elcfs.restyled(own, elcfs.spectrum_windows(own, half), torch.zeros(2)), own)
    keep = torch.tensor([0.0, 0.5])
    changed = elcfs.restyled(own, others, keep)
    assert changed.dtype == own.dtype, "real"
    before, after = spectra(own), spectra(changed)
    there = (before.abs() > 1e-3) & (after.abs() > 1e-3)
    turned = torch.polar(torch.ones(()).double(), after.angle() - before.angle())
    assert (turned[there] - 1).abs().max() < 1e-2, "float32 in between"
    expected = keep.view(-1, 1, 1, 1) * elcfs.spectrum_windows(own, half) + (1 - keep.view(-1, 1, 1, 1)) * others
    torch.testing.assert_close(elcfs.spectrum_windows(changed, half), expected, atol=1e-5, rtol=1e-4)
    rest = torch.fft.fftshift(after.abs() - before.abs(), dim=(-2, -1))
    row, column = size[0] // 2, size[1] // 2
    rest[..., row - half : row + half + 1, column - half : column + half + 1] = 0
    assert rest.abs().max() < 1e-3


def test_noisy_window_gives_symmetric_amplitudes():
    noisy = torch.randn(1, 3, 3, 3, generator=torch.Generator().manual_seed(3)) * 0.1
    found = elcfs.spectrum_windows(elcfs.restyled(images(5, 1, 8, 8), noisy, torch.zeros(1)), 1)
    torch.testing.assert_close(found, ((noisy + noisy.flip(-2, -1)) / 2).clamp(min=0), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("others", [torch.float16, torch.float32, torch.float64])
def test_restyled_constant_image_is_blended_in_own_dtype(dtype, others):
    own, other = torch.full((1, 3, 4, 4), 0.2, dtype=dtype), torch.full((1, 3, 4, 4), 0.6)
    changed = elcfs.restyled(own, elcfs.spectrum_windows(other, 0).to(others), torch.tensor([0.25], dtype=others))
    expected = torch.full((1, 3, 4, 4), 0.25 * 0.2 + 0.75 * 0.6, dtype=dtype)
    torch.testing.assert_close(changed, expected, atol=1e-3 if torch.float16 in (dtype, others) else 1e-6, rtol=0)


def answer(site: str, round: int, windows: float | None = None) -> Message:
    given = {} if windows is None else {"windows": torch.full((2, 3, 1, 1), windows)}
    tensors = with_statistics({"w": torch.full((2,), 1.0 if site == "a" else 5.0)}, given)
    return Message(Kind.WEIGHTS, site, round, 9, n=1 if site == "a" else 3, tensors=tensors)


def attach(strategy: Any = None) -> Any:
    strategy = strategy or elcfs.StyleExchange(entries=2, half=0)
    return strategy.attach(Server(["a", "b"], 9, weights={"w": torch.zeros(2)}))


def test_windows_are_requested_once_and_sent_to_other_sites():
    with pytest.raises(Refused, match="2 sites or more, for other sites' styles, found 1; choose the variant no_sam"):
        elcfs.StyleExchange().require_sites(["a"])
    strategy, plain = attach(), attach(FedAvg())
    messages = strategy.configure(0)
    assert {site: each.extra for site, each in messages.items()} == {s: {"statistics": "spectrum"} for s in "ab"}
    assert all(set(each.tensors) == {"w"} for each in messages.values())
    assert set(strategy.expected("a")) == {"w", "statistics.windows"}
    plain.configure(0)
    strategy.aggregate(0, {"a": answer("a", 0, 0.25), "b": answer("b", 0, 0.5)})
    plain.aggregate(0, {"a": answer("a", 0), "b": answer("b", 0)})
    assert torch.equal(strategy.global_weights["w"], plain.global_weights["w"])
    messages = strategy.configure(1)
    assert [(each.extra, each.round) for each in messages.values()] == [({}, 1), ({}, 1)]
    given = {site: split_statistics(each.tensors)[1]["windows"].unique().tolist() for site, each in messages.items()}
    assert given == {"a": [0.5], "b": [0.25]}
    assert set(strategy.expected("a")) == {"w"}


def windows_of(count: int, term: Any = None, half: int = 0, **options: Any) -> elcfs.SpectrumWindows:
    def transform(record: dict[str, int]) -> dict[str, torch.Tensor]:
        return {"image": torch.full((3, 6, 6), record["at"] / 100)}

    data = SimpleNamespace(records={"unlabelled": [{"at": at} for at in range(count)]}.__getitem__)
    return elcfs.SpectrumWindows(data=data, transform=transform, term=term, half=half, **options)  # type: ignore


def test_windows_are_means_of_disjoint_image_groups():
    statistic = windows_of(11, entries=4)
    found = statistic.measured(5)["windows"]
    assert found.shape == statistic.like()["windows"].shape == (4, 3, 1, 1)
    assert torch.equal(found[:2], found[2:]), "two groups of at least five, repeated"
    groups = found[:2, 0, 0, 0]
    torch.testing.assert_close(groups[0] * 6 + groups[1] * 5, torch.tensor(sum(range(11)) / 100))
    assert [statistic.images(least) for least in (1, 3, 5, 11, 12)] == [2, 3, 5, 11, 11]
    assert torch.equal(windows_of(11, entries=4).measured(5)["windows"], found)
    assert not torch.equal(windows_of(11, entries=4, site="b").measured(5)["windows"], found)
    assert not torch.equal(windows_of(11, entries=4, seed=1).measured(5)["windows"], found)

    statistic = windows_of(3, entries=4)
    found = statistic.measured(1)["windows"][:, 0, 0, 0]
    torch.testing.assert_close(found[:3].sort().values, torch.tensor([0.0, 0.01, 0.02]))
    assert found[3] == found[0]
    assert statistic.images(1) == 1
    defaults = elcfs.SpectrumWindows(data=None, transform=None, term=None)  # type: ignore[arg-type]
    assert (defaults.entries, defaults.half) == (4, 1), "as the strategy's"


def test_received_windows_are_validated_and_passed_to_term():
    term = SimpleNamespace(windows=None)
    statistic = windows_of(5, term)
    statistic.receive({"windows": torch.ones(6, 3, 1, 1)})
    assert len(term.windows) == 6
    statistic.receive({})
    assert term.windows is None
    message = r"message -> statistics: expected windows of shape \(N, 3, 1, 1\), found other tensors; give strategy"
    with pytest.raises(MessageRefused, match=message):
        statistic.receive({"windows": torch.ones(6, 3, 3, 3)})
    for others in ({"others": torch.ones(6, 3, 1, 1)}, dict.fromkeys(("windows", "others"), torch.ones(6, 3, 1, 1))):
        with pytest.raises(MessageRefused, match="found other tensors"):
            statistic.receive(others)
    with pytest.raises(MessageRefused, match="message -> statistics: expected finite values, found NaN or infinity"):
        statistic.receive({"windows": torch.full((1, 3, 1, 1), float("nan"))})


def test_boundary_bands_are_one_pixel_inside_and_five_outside():
    mask = torch.zeros(3, 1, 13, 13)
    mask[0, 0, 5:8, 5:8] = mask[1, 0, 6, 6] = mask[2, 0, :4, 2:9] = 1
    inside, outside = elcfs.boundary_bands(mask)
    ring = mask[0, 0].clone()
    ring[6, 6] = 0
    assert torch.equal(inside[0, 0], ring)
    for plane, inner, outer in zip(mask[:, 0].numpy(), inside[:, 0].numpy(), outside[:, 0].numpy(), strict=True):
        # the authors' code, but for the image's edge, where it erodes (border_value 0)
        assert ((plane - inner) == binary_erosion(plane, border_value=1)).all()
        assert ((plane + outer) == binary_dilation(plane, iterations=5)).all()
    assert not any(each.any() for each in elcfs.boundary_bands(torch.zeros(1, 1, 4, 4)))


def test_band_features_are_weighted_by_pixels_in_band():
    features = torch.tensor([[[[1.0, 5.0]], [[10.0, 20.0]]], [[[3.0, 7.0]], [[0.0, -1.0]]], [[[1.0, 1.0]]] * 2])
    bands = torch.zeros(3, 1, 2, 4)
    bands[0, 0, 0, :3] = bands[0, 0, 1, 0] = 1  # three pixels of the first feature, one of the second
    bands[1, 0, 1, 3] = 1
    means, there = elcfs.band_features(features, bands)
    assert means[:2].tolist() == [[0.75 * 1 + 0.25 * 5, 0.75 * 10 + 0.25 * 20], [7.0, -1.0]]
    assert there.tolist() == [True, True, False]


def test_boundary_contrast_matches_hand_computed_values():
    vectors = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 3.0]])
    labels = torch.tensor([True, True, False, False])
    # every pair of one class has a similarity of 1, all others of 0: log(e + 2) - 1 at a temperature of 1
    expected = torch.log(torch.e + torch.tensor(2.0)) - 1
    torch.testing.assert_close(elcfs.boundary_contrast(vectors, labels, 1.0), expected)
    assert elcfs.boundary_contrast(vectors, labels, 0.05) < 1e-7
    assert elcfs.boundary_contrast(vectors[:2], labels[:2], 0.05) == 0, "no other class"
    assert elcfs.boundary_contrast(vectors[[0, 2]], labels[[0, 2]], 0.05) == 0, "no pairs"
    vectors = torch.randn(5, 3, generator=torch.Generator().manual_seed(2)).double()
    unit, labels = vectors / vectors.norm(dim=1, keepdim=True), torch.tensor([True, True, True, False, False])
    near = (unit @ unit.T / 0.05).exp()
    pairs = [(a, p) for a in range(5) for p in range(5) if a != p and labels[a] == labels[p]]
    losses = [-(near[a, p] / (near[a, p] + near[a][labels != labels[a]].sum())).log() for a, p in pairs]
    torch.testing.assert_close(elcfs.boundary_contrast(vectors, labels, 0.05).double(), torch.stack(losses).mean())


class Tiny(nn.Module):
    """Two convolutions; the second is the head."""

    def __init__(self, outputs: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, outputs, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.first(image).relu())


LABEL = torch.zeros(2, 1, 8, 8)
LABEL[:, :, 2:6, 2:6] = 1
CLASSES = torch.zeros(2, 3, 8, 8)
CLASSES[:, 1, 1:4, 1:7] = CLASSES[:, 2, 4:7, 1:7] = 1
CLASSES[:, 0] = 1 - CLASSES.sum(1)


def run_term(
    term: elcfs.EpisodicTerm, network: nn.Module, guidance: Guidance | None = None, label: torch.Tensor = LABEL
) -> tuple[torch.Tensor, list]:
    """The term on two images, with the features of the first pass kept as an engine's events have it."""
    image = images(1, 2, 8, 8)
    seen: list[torch.Tensor] = []

    def infer(batch: torch.Tensor, callable_: Any) -> torch.Tensor:
        seen.append(batch)
        return callable_(batch)

    term._features.listen()
    output = {"image": image, "label": label, "pred": network(image)}
    network(images(2, 2, 8, 8))  # the student's pass over the site's own images
    engine = engine_of(network, output=output, round=2, rounds=5, batch={"image": image, "label": label})
    engine.inferer, engine.loss_function = infer, nn.BCEWithLogitsLoss()
    value = term.value(guidance, engine)
    term._features.stop()
    return value, seen


def after_step(image: torch.Tensor, label: torch.Tensor, clip: float) -> Tiny:
    """A fresh network after the look-ahead step: plain gradient descent at a rate of one half."""
    network = Tiny()
    nn.BCEWithLogitsLoss()(network(image), label).backward()
    assert max(float(weight.grad.abs().max()) for weight in network.parameters()) > 1e-3
    with torch.no_grad():
        for weight in network.parameters():
            weight -= 0.5 * weight.grad.clamp(-clip, clip)
    network.zero_grad()
    return network


@pytest.mark.parametrize("clip", [100.0, 1e-3])
def test_loss_gradient_is_first_order_after_clipped_step(clip):
    network, loss = Tiny(), nn.BCEWithLogitsLoss()
    term = elcfs.EpisodicTerm(network=network, inner=0.5, clip=clip, gamma=0.0)
    term.windows = elcfs.spectrum_windows(images(7, 1, 8, 8), 1)
    value, seen = run_term(term, network)
    assert not network.head._forward_pre_hooks
    ahead = after_step(images(1, 2, 8, 8), LABEL, clip)
    expected = loss(ahead(seen[0]), LABEL)
    torch.testing.assert_close(value, expected)
    assert not torch.equal(seen[0], images(1, 2, 8, 8))
    assert 0 <= seen[0].min() <= seen[0].max() <= 1
    value.backward()
    expected.backward()
    for weight, other in zip(network.parameters(), ahead.parameters(), strict=True):
        torch.testing.assert_close(weight.grad, other.grad)


def test_images_draw_random_window_and_mixing_share():
    term = elcfs.EpisodicTerm(network=Tiny())
    term.windows = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, 1, 1)  # black and white
    torch.manual_seed(0)
    found = term._restyled(torch.full((40, 3, 4, 4), 0.5))
    greys = found[:, 0, 0, 0]
    torch.testing.assert_close(found, greys.view(40, 1, 1, 1).expand(40, 3, 4, 4))
    assert 10 < (greys < 0.5).sum() < 30, "about half of them"
    kept = (1 - 2 * (greys - 0.5).abs()).sort().values
    assert kept[0] < 0.1
    assert kept[-1] > 0.9
    assert kept.diff().min() > 0, "each its own"


@pytest.mark.parametrize(
    ("label", "borders"), [(LABEL, [LABEL]), (CLASSES, [CLASSES[:, 1:2], CLASSES[:, 2:]])], ids=["one class", "two"]
)
def test_boundary_contrast_is_summed_over_classes_and_weighted(label, borders):
    network, values = Tiny(label.shape[1]), []
    for gamma in (0.0, 0.3):
        term = elcfs.EpisodicTerm(network=network, inner=0.0, gamma=gamma, temperature=0.5)
        term.windows = elcfs.spectrum_windows(images(7, 1, 8, 8), 1)
        torch.manual_seed(5)
        value, seen = run_term(term, network, label=label)
        values.append(value)
    features = [network.first(each).relu() for each in (images(1, 2, 8, 8), seen[0])]
    contrast = torch.zeros(())
    for border in borders:
        vectors = torch.cat(
            [elcfs.band_features(each, band)[0] for band in elcfs.boundary_bands(border) for each in features]
        )
        contrast = contrast + elcfs.boundary_contrast(vectors, torch.tensor([True] * 4 + [False] * 4), 0.5)
    assert contrast > 0.01
    torch.testing.assert_close(values[1] - values[0], 0.3 * contrast)


def test_own_images_use_sure_pseudo_labels():
    network = Tiny()
    term = elcfs.EpisodicTerm(network=network, inner=0.0, gamma=0.0, tau=0.75, fraction=0.8)
    term.windows = elcfs.spectrum_windows(images(7, 1, 8, 8), 1)
    own = images(9, 1, 8, 8)
    weak = torch.full((1, 1, 8, 8), 0.75)  # as sure as tau is not surer
    weak[..., :4] = 0.95
    guidance = Guidance(student=torch.zeros(1, 1, 8, 8), weak_view=weak, guides={}, batch={"image_strong": own})
    value, seen = run_term(term, network, guidance)
    assert len(seen[0]) == 3
    logits = network(seen[0])
    own_loss = weighted_pseudo_label_loss(logits[2:], (weak > 0.5).long(), (weak > 0.9).float())
    expected = math.exp(-1.25) * own_loss  # half-way up a ramp of four rounds
    torch.testing.assert_close(value, (nn.BCEWithLogitsLoss()(logits[:2], LABEL) + expected) / 2)
    guidance.batch = {}
    with pytest.raises(Refused, match="terms#episode: expected the view 'image_strong'"):
        run_term(term, network, guidance)


def test_unused_parameter_does_not_change_loss():
    network, plain = Tiny(), Tiny()
    network.unused = nn.Parameter(torch.ones(1))
    values = []
    for each in (network, plain):
        term = elcfs.EpisodicTerm(network=each, inner=0.5)
        term.windows = elcfs.spectrum_windows(images(7, 1, 8, 8), 1)
        torch.manual_seed(3)
        values.append(run_term(term, each)[0])
    assert torch.equal(*values)


@needs("elcfs")
def test_forbidden_statistic_is_refused_before_start(small_federation, tmp_path):
    settings_ = {"least_images": 2, "statistics": {"spectrum": None}}
    with pytest.raises(Refused, match=r"statistics#spectrum: expected a method that sends none.*choose a variant"):
        job(small_federation, tmp_path, variant="elcfs", privacy=settings_).run()
    assert not list(tmp_path.iterdir())
