"""Guides against hand-computed numbers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from monai.inferers import SimpleInferer

from samfed_monai.core.errors import Refused
from samfed_monai.handlers import (
    BatchGuide,
    EmaGuide,
    GlobalDistillationTerm,
    GlobalGuide,
    PseudoLabelTerm,
    SamDistillationTerm,
    TermLogger,
    UnlabelledStream,
)
from samfed_monai.handlers.guide import NetworkCopy
from tests.handlers.toy import next_round, same, toy_loader, toy_network, toy_trainer, weights


def test_batch_without_guide_key_or_of_other_size_is_refused() -> None:
    message = (
        r"guides#sam \(BatchGuide\) -> key: expected the key 'teacher', found an unlabelled batch with \['image'\]; "
        r"fill the soft-mask store and give store_dir and teacher_sha256 .* or disable guides#sam"
    )
    with pytest.raises(Refused, match=message):
        BatchGuide()({"image": torch.zeros(1, 3, 4, 4)}, None)  # type: ignore[arg-type]
    batch = {"image": torch.zeros(1, 3, 8, 8), "teacher": torch.zeros(1, 1, 4, 4)}
    with pytest.raises(Refused, match=r"expected the image's \(8, 8\), found \(4, 4\) pixels; add 'teacher' to the"):
        BatchGuide()(batch, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("guide", [BatchGuide, GlobalGuide, EmaGuide])
def test_name_weak_is_reserved(guide: Any) -> None:
    with pytest.raises(Refused, match="expected a name other than 'weak'"):
        guide(name="weak")


@pytest.mark.parametrize("decay", [1.0, -0.1])
def test_ema_decay_out_of_range_is_refused(decay: float) -> None:
    with pytest.raises(Refused, match=r"guides#ema \(EmaGuide\) -> decay: expected a number in \[0, 1\)"):
        EmaGuide(decay=decay)


def test_network_copy_average_matches_hand_calculation() -> None:
    source = toy_network()
    copy = NetworkCopy()
    copy.sync(source)
    before = weights(source)
    with torch.no_grad():
        for tensor in [*source.parameters(), *source.buffers()]:
            tensor.add_(2)
    copy.average(source, decay=0.75)
    for name, tensor in copy.network.state_dict().items():
        step = 2 if tensor.dtype == torch.int64 else 0.5  # 0.75 w + 0.25 (w + 2) = w + 0.5; counters are copied
        torch.testing.assert_close(tensor, before[name] + step)


def test_sync_reuses_memory_of_copy() -> None:
    copy, source = NetworkCopy(), toy_network(0)
    copy.sync(source)
    memory = [tensor.data_ptr() for tensor in copy.network.state_dict().values()]
    copy.sync(toy_network(1))
    assert memory == [tensor.data_ptr() for tensor in copy.network.state_dict().values()]
    assert same(weights(copy.network), weights(toy_network(1)))
    assert not copy.network.training
    assert not any(parameter.requires_grad for parameter in copy.network.parameters())


def test_global_guide_keeps_weights_of_round_start() -> None:
    network, guide = toy_network(), GlobalGuide()
    trainer = toy_trainer([UnlabelledStream(loader=toy_loader(), guides=[guide])], network=network)
    start = weights(network)
    next_round(trainer, 0, 2, epochs=2)
    assert not same(start, weights(network))
    assert same(start, weights(guide._copy.network))
    start = weights(network)
    next_round(trainer, 1, 2)
    assert same(start, weights(guide._copy.network))


def test_standalone_global_guide_follows_epochs() -> None:
    network, guide, starts = toy_network(), GlobalGuide(), []
    trainer = toy_trainer([UnlabelledStream(loader=toy_loader(), guides=[guide])], network=network, epochs=2)
    from ignite.engine import Events

    trainer.add_event_handler(Events.EPOCH_STARTED, lambda engine: starts.append(weights(network)))
    trainer.run()
    assert not same(starts[0], starts[1])
    assert same(starts[1], weights(guide._copy.network))


def test_ema_starts_at_student_and_follows_with_decay() -> None:
    network, guide = toy_network(), EmaGuide(decay=0.75)  # not 0.5, which could be taken the wrong way round
    trainer = toy_trainer([UnlabelledStream(loader=toy_loader(), guides=[guide])], network=network, steps=1)
    start = weights(network)["0.weight"]
    next_round(trainer, 0, 2)
    expected = 0.75 * start + 0.25 * weights(network)["0.weight"]
    torch.testing.assert_close(weights(guide._copy.network)["0.weight"], expected)
    with torch.no_grad():
        network[0].weight.zero_()  # type: ignore[index]
    next_round(trainer, 1, 2)
    torch.testing.assert_close(weights(guide._copy.network)["0.weight"], weights(network)["0.weight"] / 4)


def test_guides_return_probabilities_without_gradient() -> None:
    engine = SimpleNamespace(network=toy_network(), inferer=SimpleInferer())
    for guide in (GlobalGuide(), EmaGuide()):
        guide._copy.sync(engine.network)
        found = guide({"image": torch.rand(2, 3, 16, 16)}, engine)
        assert found.shape == (2, 1, 16, 16)
        assert not found.requires_grad
        assert 0 <= found.min() <= found.max() <= 1


class CountedEma(EmaGuide):
    """Counts how often it is computed."""

    calls = 0

    def __call__(self, batch: Any, engine: Any) -> torch.Tensor:
        self.calls += 1
        return super().__call__(batch, engine)


def train_with(guides: list[Any], terms: list[Any]) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    trainer = toy_trainer([UnlabelledStream(loader=toy_loader(), guides=guides), *terms, TermLogger()])
    next_round(trainer, 0, 2)
    return weights(trainer.network)


def own_labels(**settings: Any) -> PseudoLabelTerm:
    return PseudoLabelTerm(**{"teacher": "weak", "rule": "student", "tau": 0.5, **settings})


def test_unread_guides_are_not_computed_and_weights_are_equal() -> None:
    unread, read, whole = CountedEma(), CountedEma(), GlobalGuide()
    without = train_with([unread, whole], [own_labels()])
    assert unread.calls == 0
    for guide in (unread, whole):
        with pytest.raises(RuntimeError, match="no weights were copied yet"):
            guide._copy.network  # noqa: B018
    term = own_labels()
    term.by_image = True  # as if the value depended on the reliability
    assert same(without, train_with([read], [term]))
    assert read.calls == 3


@pytest.mark.parametrize(
    ("term", "expected"),
    [
        (own_labels(), False),
        (own_labels(student="ema"), True),
        (own_labels(teacher="ema"), True),
        (own_labels(teacher="sam", rule="teacher", tau=0.9), False),
        (own_labels(teacher="sam", rule="confidence"), False),
        (SamDistillationTerm(), True),
        (SamDistillationTerm(adaptive=False), False),
        (GlobalDistillationTerm(), False),
    ],
)
def test_terms_declare_whether_ema_is_read(term: Any, expected: bool) -> None:
    assert ("ema" in term.reads) is expected


@pytest.mark.parametrize(("student", "predicted"), [("strong", False), ("weak", True)])
def test_weak_view_is_predicted_only_if_read(student: str, predicted: bool) -> None:
    stream = UnlabelledStream(loader=toy_loader(), guides=[])
    trainer = toy_trainer([stream, own_labels(student=student, teacher=student)])
    next_round(trainer, 0, 1)
    assert callable(trainer.state.guidance.weak_view) is not predicted


def test_every_guide_is_computed_without_terms() -> None:
    guide = CountedEma()
    train_with([guide], [])
    assert guide.calls == 3
