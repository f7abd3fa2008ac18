"""Stage G moves what is shared, stage L what is personal, and the half at rest does not move by a bit."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.engines.utils import IterationEvents

from samfed_monai.config.strict import strict_problems
from samfed_monai.core.errors import Refused
from samfed_monai.methods.pfedsam import DecoupledStages, LoadBalanceTerm, MutualDistillationTerm
from samfed_monai.networks import SamNetwork, SamPath, sam_outputs
from tests.handlers.sam_toy import sam_trainer
from tests.handlers.toy import next_round, same, toy_network, toy_trainer, weights
from tests.networks.sam.tiny import tiny_network


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


@pytest.mark.parametrize("decoder", ["personal", "shared"])
@pytest.mark.parametrize("checkpointing", [False, True])
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


def test_every_weight_of_a_stage_moves():
    trainer = sam_trainer([DecoupledStages()], steps=2)
    network: Any = trainer.network
    before = weights(network)
    trainer.run()
    split = network.key_split()
    after = weights(network)
    assert [name for name in (*split.shared, *split.personal) if torch.equal(before[name], after[name])] == []


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


def test_between_iterations_the_network_is_the_sites_own():
    seen = []
    trainer: Any = sam_trainer([DecoupledStages(share=1.0)], steps=1)
    trainer.add_event_handler(
        Events.EPOCH_COMPLETED,
        lambda engine: seen.append((engine.network.path, [p for p in engine.network.parameters() if p.requires_grad])),
    )
    trainer.run()
    ((path, trained),) = seen
    assert path is SamPath.PERSONAL
    assert len(trained) == sum(len(group["params"]) for group in trainer.network.parameter_groups())


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
    mend = json.loads(refused.value.problems[1].mend.removeprefix("let its params be "))
    assert mend == {"_target_": "samfed_monai.parts.parameters_of", "network": "@network"}
    assert strict_problems({"optimizer": {"params": mend}}, file=True) == []


@pytest.mark.parametrize("share", [-0.1, 1.5, "half", True])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(Refused, match=r"share: expected a part in \[0, 1\]"):
        DecoupledStages(share=share)


def test_an_epoch_of_unknown_length_is_refused():
    trainer = sam_trainer([], steps=2)
    trainer.state.epoch_length = None
    with pytest.raises(Refused, match=r"expected a number of steps, found an epoch of unknown length; set local_steps"):
        DecoupledStages().check(trainer)
