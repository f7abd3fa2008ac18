"""pFedSAM: the balance of experts, its terms, its stages, and the record of where experts were used."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.engines.utils import IterationEvents
from monai.inferers import SimpleInferer

from samfed_monai.config.strict import strict_problems
from samfed_monai.core.errors import Refused
from samfed_monai.methods.pfedsam import (
    DecoupledStages,
    ExpertUsage,
    LoadBalanceTerm,
    MutualDistillationTerm,
    load_balance,
)
from samfed_monai.networks import SamNetwork, SamPath, sam_outputs
from samfed_monai.networks.sam.experts import Routing
from samfed_monai.networks.sam.network import SamOutputs
from tests.handlers.sam_toy import sam_trainer
from tests.handlers.toy import next_round, same, toy_network, toy_trainer, weights
from tests.networks.sam.tiny import tiny_network


def test_hand_computed_and_averaged_over_layers():
    share = torch.tensor([[0.5, 0.25, 0.25, 0.0], [0.25, 0.25, 0.25, 0.25]])
    probability = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.7, 0.1, 0.1, 0.1]])
    # 4 (0.2 + 0.075 + 0.05 + 0) = 1.3; even use is 1 whatever the probabilities
    torch.testing.assert_close(load_balance(share, probability), torch.tensor((1.3 + 1.0) / 2))


def test_the_gradient_flows_through_the_probabilities_alone():
    share = torch.tensor([[0.75, 0.25]], requires_grad=True)
    probability = torch.tensor([[0.6, 0.4]], requires_grad=True)
    load_balance(share, probability).backward()
    assert share.grad is None
    torch.testing.assert_close(probability.grad, torch.tensor([[1.5, 0.5]]))


def engine_of(routing: Routing | None) -> Any:
    prediction: Any = torch.zeros(1, 1, 2, 2)
    prediction.sam_outputs = SamOutputs(SamPath.PERSONAL, routing)
    output = {"pred": prediction, "loss": torch.tensor(2.0)}
    return SimpleNamespace(state=SimpleNamespace(round=0, rounds=1, iteration=1, output=output))


def test_it_adds_a_hundredth_of_the_mean_over_the_layers():
    share = torch.tensor([[0.5, 0.5, 0, 0], [0.25, 0.25, 0.25, 0.25]])
    engine = engine_of(Routing(share, share, (8, 8)))
    LoadBalanceTerm()(engine)
    assert engine.state.terms["load_balance"] == 1.5  # 4 x 0.5 and 4 x 0.25
    assert engine.state.output["loss"] == pytest.approx(2.015)


def test_on_the_global_path_it_leaves_no_trace():
    engine = engine_of(None)
    LoadBalanceTerm()(engine)
    assert engine.state.output["loss"] == 2
    assert not hasattr(engine.state, "terms")


def test_a_network_without_experts_is_refused():
    with pytest.raises(Refused, match=r"terms#load_balance: expected one with experts"):
        sam_trainer([LoadBalanceTerm()], network=tiny_network(experts=0)).run()


def kl(of: torch.Tensor, to: torch.Tensor, temperature: float) -> torch.Tensor:
    """``T^2 KL(of || to)`` of Bernoulli distributions, as it stands in a textbook."""
    p, q = (of / temperature).sigmoid(), (to / temperature).sigmoid()
    return temperature**2 * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()


@pytest.mark.parametrize("path", list(SamPath))
def test_the_other_path_teaches_the_one_that_is_trained(path):
    torch.manual_seed(0)
    logits = {SamPath.GLOBAL: torch.randn(2, 1, 4, 4), SamPath.PERSONAL: (4 * torch.randn(2, 1, 4, 4) + 2).clamp(-9, 9)}
    prediction: Any = logits[path].clone().requires_grad_()
    prediction.sam_outputs = SamOutputs(path, None)
    image, asked = torch.rand(2, 3, 4, 4), []

    def network(given: torch.Tensor, path: SamPath) -> torch.Tensor:
        asked.append((given is image, path, torch.is_grad_enabled()))
        return logits[path]

    engine: Any = SimpleNamespace(
        state=SimpleNamespace(output={"pred": prediction, "image": image}), network=network, inferer=SimpleInferer()
    )
    found = MutualDistillationTerm(temperature=3.0).value(None, engine)
    assert asked == [(True, path.other, False)]
    torch.testing.assert_close(found, kl(logits[path.other], logits[path], 3.0), rtol=1e-4, atol=1e-6)
    assert abs(kl(logits[path], logits[path.other], 3.0) - found) > 0.01 * found  # the directions differ
    found.backward()
    assert prediction.grad.any()


def test_paths_that_are_sure_and_agree_teach_each_other_nothing():
    logits = torch.tensor([[-15.0, 15.0], [9.3, -40.0]]).view(1, 1, 2, 2)
    prediction: Any = logits.clone().requires_grad_()
    prediction.sam_outputs = SamOutputs(SamPath.GLOBAL, None)
    state = SimpleNamespace(output={"pred": prediction, "image": torch.rand(1, 3, 2, 2)})
    engine: Any = SimpleNamespace(state=state, network=lambda image, path: logits, inferer=SimpleInferer())
    value = MutualDistillationTerm().value(None, engine)
    value.backward()
    assert value == 0
    assert not prediction.grad.any()


def test_networks_without_two_paths_are_refused_before_any_step():
    trainer = toy_trainer([MutualDistillationTerm()], network=toy_network())
    with pytest.raises(Refused, match=r"terms#mutual_kd: expected a SAM network with experts, found Sequential"):
        trainer.run()
    assert trainer.state.iteration == 0
    with pytest.raises(Refused, match=r"found a SAM network without experts; set network_def#experts to 4, or disable"):
        sam_trainer([MutualDistillationTerm()], network=tiny_network(experts=0)).run()


def halves(network: SamNetwork) -> dict[str, dict[str, torch.Tensor]]:
    state, split = weights(network), network.key_split()
    return {part: {name: state[name] for name in getattr(split, part)} for part in ("shared", "personal", "frozen")}


def moments(trainer: Any) -> dict[str, dict[str, torch.Tensor]]:
    found: dict[str, dict[str, torch.Tensor]] = {"shared": {}, "personal": {}}
    for group in trainer.optimizer.param_groups:
        for index, weight in enumerate(group["params"]):
            for name, value in trainer.optimizer.state.get(weight, {}).items():
                found[group["name"]][f"{index}.{name}"] = value.clone()
    return found


class Diary:
    """What each iteration did to the halves and their moments."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, SamPath, bool, bool, bool, bool]] = []

    def attach(self, engine: Any) -> None:
        engine.add_event_handler(Events.ITERATION_STARTED, self.before)
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self.after)

    def before(self, engine: Any) -> None:
        self.weights, self.moments = halves(engine.network), moments(engine)

    def after(self, engine: Any) -> None:
        now, new = halves(engine.network), moments(engine)
        assert same(self.weights["frozen"], now["frozen"])
        self.lines.append(
            (
                engine.state.stage,
                sam_outputs(engine.state.output["pred"]).path,
                not same(self.weights["shared"], now["shared"]),
                not same(self.weights["personal"], now["personal"]),
                new["shared"].keys() != self.moments["shared"].keys()
                or not same(self.moments["shared"], new["shared"]),
                new["personal"].keys() != self.moments["personal"].keys()
                or not same(self.moments["personal"], new["personal"]),
            )
        )


G = ("global", SamPath.GLOBAL, True, False, True, False)
L = ("personal", SamPath.PERSONAL, False, True, False, True)


@pytest.mark.parametrize(("decoder", "checkpointing"), [("personal", False), ("shared", True)])
def test_the_half_at_rest_does_not_drift_in_any_round(decoder, checkpointing):
    diary, network = Diary(), tiny_network(decoder=decoder, checkpointing=checkpointing)
    terms = [MutualDistillationTerm(), LoadBalanceTerm()]
    trainer = sam_trainer([DecoupledStages(), *terms, diary], network=network, steps=3)
    for round in range(2):  # in the second one both halves have moments and gradients to drift by
        next_round(trainer, round, 2)
    assert diary.lines == [G, G, L] * 2


@pytest.mark.parametrize("decoder", ["personal", "shared"])
def test_what_belongs_to_both_stages_moves_in_both_and_the_rest_of_its_half_does_not(decoder):
    seen: list[tuple[str, set[str]]] = []
    network: Any = tiny_network(decoder=decoder)
    trainer = sam_trainer([DecoupledStages(both=["sam.mask_decoder.*"])], network=network, steps=2)
    before: dict[str, torch.Tensor] = {}
    trainer.add_event_handler(Events.ITERATION_STARTED, lambda engine: before.update(weights(engine.network)))
    trainer.add_event_handler(
        IterationEvents.MODEL_COMPLETED,
        lambda engine: seen.append(
            (engine.state.stage, {n for n, w in weights(engine.network).items() if not torch.equal(w, before[n])})
        ),
    )
    trainer.run()
    split = network.key_split()
    own = {name for name in split.personal if "mask_decoder" not in name}
    common = {name for name in split.shared if "mask_decoder" not in name}
    decoders = {name for name in (*split.shared, *split.personal) if "mask_decoder" in name}
    assert own
    assert common
    assert decoders
    assert seen == [("global", common | decoders), ("personal", own | decoders)]


def test_a_pattern_of_both_that_matches_nothing_trained_is_refused():
    with pytest.raises(
        Refused, match=r"both: expected at least one, found no trained name like 'sam\.decoder\.\*'; corr"
    ):
        sam_trainer([DecoupledStages(both=["sam.decoder.*"])], steps=2).run()
    with pytest.raises(Refused, match=r"both: expected a list of patterns, found 'sam\.\*'; for instance"):
        DecoupledStages(both="sam.*")


@pytest.mark.parametrize(("share", "steps", "first"), [(0.5, 5, 3), (0.5, 4, 2), (0.0, 3, 0), (1.0, 3, 3), (0.1, 3, 1)])
def test_stage_g_is_the_first_part_of_an_epoch(share, steps, first):
    stages = DecoupledStages(share=share)
    assert [stages.stage(step, steps) for step in range(steps)] == [SamPath.GLOBAL] * first + [SamPath.PERSONAL] * (
        steps - first
    )


def test_a_trainer_without_rounds_has_both_stages_in_every_epoch():
    diary = Diary()
    sam_trainer([DecoupledStages(), diary], steps=2, epochs=2).run()
    assert diary.lines == [G, L, G, L]


def test_a_failed_step_is_told_and_leaves_the_network_the_sites_own():
    trainer: Any = sam_trainer([DecoupledStages()], steps=2)

    def fail(engine: Any) -> None:
        raise ValueError("no loss today")

    trainer.add_event_handler(IterationEvents.LOSS_COMPLETED, fail)
    with pytest.raises(ValueError, match="no loss today"):
        trainer.run()
    assert trainer.network.path is SamPath.PERSONAL
    assert all(p.requires_grad for group in trainer.network.parameter_groups() for p in group["params"])


def test_another_network_is_refused():
    with pytest.raises(
        Refused, match=r"DecoupledStages\): expected a network with a global and a personal path, found"
    ):
        toy_trainer([DecoupledStages()], network=toy_network()).run()


def test_all_else_that_is_wrong_is_refused_together():
    network = tiny_network(experts=0, decoder="shared")
    optimizer = torch.optim.SGD(network.parameter_groups()[0]["params"][:-1], 0.1)
    trainer = sam_trainer([DecoupledStages()], network=network, steps=1, optimizer=optimizer)
    with pytest.raises(Refused) as refused:
        trainer.run()
    found = [problem.found for problem in refused.value.problems]
    count = len(network.parameter_groups()[0]["params"])
    assert found == [
        "no personal weights",
        f"an optimizer without 1 of the {count} shared tensors",
        "1 steps with a share of 0.5",
    ]
    hint = json.loads(refused.value.problems[1].hint.removeprefix("let its params be "))
    assert hint == {"_target_": "samfed_monai.bundle.parameters_of", "network": "@network"}
    assert strict_problems({"optimizer": {"params": hint}}, file=True) == []


def test_an_epoch_of_unknown_length_is_refused():
    trainer = sam_trainer([], steps=2)
    trainer.state.epoch_length = None
    with pytest.raises(Refused, match=r"one step for each part, found an epoch of unknown length; set local_steps"):
        DecoupledStages().check(trainer)


def test_shares_are_weighed_by_tokens():
    usage = ExpertUsage()
    engine: Any = SimpleNamespace(state=SimpleNamespace())
    passes = [([[0.5, 0.5], [1, 0]], (30, 10)), (None, ()), ([[0.1, 0.9], [0, 1]], (10, 10))]
    for share, tokens in passes:
        prediction: Any = torch.zeros(1)
        routing = None if share is None else Routing(torch.tensor(share), torch.tensor(share), tokens)
        prediction.sam_outputs = SamOutputs(SamPath.PERSONAL, routing)
        engine.state.output = {"pred": prediction}
        usage(engine)
    usage._epoch_completed(engine)
    means = {"expert_1": 0.45, "expert_2": 0.55, "expert_least": 0.4}
    assert engine.state.term_means == {name: pytest.approx(mean) for name, mean in means.items()}


def test_every_round_counts_for_itself_and_without_stage_l_there_is_nothing_to_report():
    usage = ExpertUsage()
    trainer = sam_trainer([DecoupledStages(), usage], steps=2)
    for round in range(2):
        next_round(trainer, round, 2)
        assert usage._tokens.tolist() == [4 * 16] * len(trainer.network.expert_layers)  # one step of four images
        assert sum(trainer.state.term_means[f"expert_{number}"] for number in range(1, 5)) == pytest.approx(1)
    trainer = sam_trainer([DecoupledStages(share=1.0), ExpertUsage()], steps=1)
    trainer.run()
    assert not getattr(trainer.state, "term_means", None)


def test_usage_of_a_network_without_experts_is_refused():
    with pytest.raises(Refused, match=r"after#expert_usage \(ExpertUsage\): expected one with experts"):
        sam_trainer([ExpertUsage()], network=tiny_network(experts=0)).run()
