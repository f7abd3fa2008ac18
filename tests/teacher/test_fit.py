"""A teacher's fit: what it changes, what it writes, how it goes on after a kill."""

from __future__ import annotations

import time
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Events
from monai.bundle import ConfigParser
from monai.engines import SupervisedTrainer
from monai.handlers import StatsHandler
from monai.losses import DiceCELoss

from samfed_monai.config.bundles import packaged_bundle
from samfed_monai.core.errors import Refused
from samfed_monai.core.io import read_json, safe_load, sha256_file
from samfed_monai.networks import Teacher
from samfed_monai.networks.sam.adapter import read_header
from samfed_monai.networks.sam.build import SAM_BUILDERS, build_sam, vit_encoder
from samfed_monai.teacher import TeacherFit, public_hash
from samfed_monai.teacher import training as room
from samfed_monai.teacher.training import TRAINER, TrainedSam, mask_loss
from tests.networks.fakes import fake_records

from .steps import steps

SIZE = 64  # of SAM's input: the least that it takes
BASE = "vit_b"


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return fake_records(tmp_path_factory.mktemp("public"), 4)


@pytest.fixture(scope="module")
def small_sam(tmp_path_factory):
    """Weights of a ViT-B that has two blocks of width 16 here."""
    encoder, path = partial(vit_encoder, width=16, depth=2, heads=2, global_blocks=(1,)), tmp_path_factory.mktemp("sam")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SAM_BUILDERS._entries, BASE, encoder)
        torch.manual_seed(0)
        torch.save(build_sam(BASE, size=SIZE).state_dict(), path / "sam_vit_b_01ec64.pth")
        yield path / "sam_vit_b_01ec64.pth"


@pytest.fixture
def fit(records, small_sam, tmp_path):
    def make(name: str = "adapter.safetensors", **settings) -> TeacherFit:
        views = steps(size=SIZE)
        settings = {
            "base": BASE,
            "checkpoint": small_sam,
            "transform": views,
            "adapt": "decoder",
            "epochs": 2,
            "cached_views": 2,
            "batch_size": 2,
            "progress": False,
        } | settings
        return TeacherFit(
            train_records=records[:3],
            held_out_records=records[3:],
            output=tmp_path / name,
            size=SIZE,
            **settings,
        )

    return make


def test_the_decoder_learns_and_the_adapter_says_what_it_is(fit, records, checkpoint, tmp_path):
    mobile_sam = {"base": "vit_t", "checkpoint": checkpoint}
    result = fit(test_records={"site": records[:1]}, epochs=3, learning_rate=2e-3, **mobile_sam).run()
    assert set(result["after"]) == {"held_out", "site"}
    assert len(result["history"]) == 3
    assert 1 <= result["epoch"] <= 3
    header = read_header(result["output"])
    assert (header.base, header.rank, header.size) == ("vit_t", 0, SIZE)
    assert header.base_sha256 == sha256_file(checkpoint)
    assert header.public_hash == result["public_hash"] == public_hash(records)
    assert result["sha256"] == sha256_file(result["output"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter.fit.json", "adapter.safetensors"]
    assert read_json(tmp_path / "adapter.fit.json") == result
    teacher = Teacher.load("vit_t", checkpoint, result["output"], size=SIZE, public_hash=result["public_hash"])
    assert teacher.probabilities(torch.rand(1, 3, 32, 32)).shape == (1, 1, 16, 16)


def test_low_rank_matrices_have_a_rate_of_their_own(fit, monkeypatch):
    made, run = [], room.Training.run
    monkeypatch.setattr(room.Training, "run", lambda self: made.append(self.optimizer) or run(self))
    header = read_header(fit(adapt="lora", rank=1, epochs=2, learning_rate=2e-3).run()["output"])
    assert (header.adapt.value, header.rank) == ("lora", 1)
    (optimizer,) = made
    lora, decoder = optimizer.param_groups
    assert (lora["initial_lr"], decoder["initial_lr"]) == (5e-3, 2e-3)
    # four steps in all, of which the first warms up: before the last one two thirds of the decay are over
    assert (lora["lr"], decoder["lr"]) == (pytest.approx(5e-3 / 3**0.9), pytest.approx(2e-3 / 3**0.9))
    assert {min(weight.shape) for weight in lora["params"]} == {1}  # rank 1
    assert max(max(weight.shape) for weight in decoder["params"]) == 2048


def test_another_lora_is_another_fit_and_the_decoder_has_none(fit):
    other = {"lora_learning_rate": 1e-3}
    fits = [fit(adapt="lora"), fit(adapt="lora", **other), fit(), fit(**other)]
    for made in fits:
        made.base_sha256, made.public_hash = "a", "b"
    hashes = [made._fit_hash() for made in fits]
    assert len(set(hashes)) == 3
    assert hashes[2] == hashes[3]


def test_a_finished_fit_is_reused_and_another_one_is_not(fit):
    first = fit(epochs=1).run()
    second = fit(epochs=1).run()
    assert second == first | {"reused": True}
    assert not fit(epochs=1, seed=1).run()["reused"]


def test_other_views_are_another_fit(fit):
    views = [steps(size=SIZE, **{"weak_view#zoom": [1.0, zoom]}) for zoom in (1.5, 2.0, 2.0)]
    plain, narrow, wide, same = fit(), *(fit(transform=each) for each in views)
    for made in (plain, narrow, wide, same):
        made.base_sha256, made.public_hash = "a", "b"
    hashes = [made._fit_hash() for made in (plain, narrow, wide, same)]
    assert len(set(hashes)) == 3
    assert hashes[2] == hashes[3]
    batches = wide._batches(TrainedSam(build_sam(BASE, size=SIZE), bf16=False))
    assert batches.images.transform.transforms[3].zoom[1] == 2.0


def test_the_adapter_is_the_same_file_wherever_and_whenever_it_is_fitted(fit):
    first = fit("a.safetensors", adapt="lora", rank=1, epochs=1).run()["sha256"]
    torch.rand(3)  # the process has moved on
    assert fit("b.safetensors", adapt="lora", rank=1, epochs=1).run()["sha256"] == first


class Watch:
    """A handler of somebody's own: the steps that it saw, with losses, and what was trained."""

    def __init__(self) -> None:
        self._seen: list[tuple[int, int, float]] = []
        self._modes: set[bool] = set()

    def attach(self, engine):
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine):
        self._seen.append((engine.state.epoch, engine.state.iteration, float(engine.state.output["loss"])))
        self._modes |= {module.training for module in engine.network.sam.modules()}


def with_trainer(**keywords) -> partial:
    return partial(TRAINER, **keywords)


def test_handlers_of_ones_own_see_monais_trainer_at_work(fit):
    watch = Watch()
    result = fit("watched.safetensors", trainer=with_trainer(train_handlers=[watch])).run()
    assert [(epoch, step) for epoch, step, _ in watch._seen] == [(1, 1), (1, 2), (2, 3), (2, 4)]
    assert all(0 < loss < 2 for *_, loss in watch._seen)
    assert watch._modes == {False}, "SAM is trained as it is examined"
    plain = fit().run()
    assert [result[name] for name in ("history", "after")] == [plain[name] for name in ("history", "after")]


def test_another_loss_optimizer_or_handler_is_another_fit_and_the_bundles_are_not(fit):
    trainers = [
        TRAINER,
        with_trainer(),
        with_trainer(loss_function=mask_loss, train_handlers=[]),
        with_trainer(loss_function=DiceCELoss(sigmoid=True)),
        with_trainer(loss_function=DiceCELoss(sigmoid=True, squared_pred=True)),
        with_trainer(optimizer=partial(torch.optim.AdamW, weight_decay=0.0)),
        with_trainer(train_handlers=[Watch()]),
        with_trainer(train_handlers=[StatsHandler(name="a")]),
        with_trainer(train_handlers=[StatsHandler(name="b")]),
    ]
    for bundle in ("samfed_skin", "samfed_polyp"):
        parser = ConfigParser()
        parser.read_config(packaged_bundle(bundle) / "configs" / "teacher.json")
        trainers.append(parser.get_parsed_content("train#trainer"))
    hashes = []
    for trainer in trainers:
        made = fit(trainer=trainer)
        made.base_sha256, made.public_hash = "a", "b"
        hashes.append(made._fit_hash())
    same = [index for index, found in enumerate(hashes) if found == hashes[0]]
    assert same == [0, 1, 2, 9, 10]
    assert len(set(hashes)) == 7


def test_another_loss_and_optimizer_are_what_is_trained_with(fit):
    loss, used = DiceCELoss(sigmoid=True), []
    sgd = partial(torch.optim.SGD, momentum=0.5)
    other = with_trainer(loss_function=lambda *pair: used.append(pair) or loss(*pair), optimizer=sgd)
    result = fit(epochs=1, trainer=other).run()
    assert len(used) == 2, "two steps"
    assert {tensor.shape for tensor in used[0]} == {(2, 1, 16, 16)}
    assert result["sha256"] != fit("plain.safetensors", epochs=1).run()["sha256"]


def test_fault_52_a_killed_fit_goes_on_to_the_same_bits(fit, monkeypatch, caplog):
    parts, of = [], room.EmbeddedBatches.of
    monkeypatch.setattr(room.EmbeddedBatches, "of", lambda self, part: parts.append(part) or of(self, part))
    straight = fit("straight.safetensors").run()
    assert parts == [0, 1], "each epoch has views of its own"
    save_state, saved = room.save_state, []

    def killed(path, *arguments):
        save_state(path, *arguments)
        saved.append(path)
        raise KeyboardInterrupt

    monkeypatch.setattr(room, "save_state", killed)
    with pytest.raises(KeyboardInterrupt):
        fit().run()
    assert not [record for record in caplog.records if record.levelname == "ERROR"], "Ignite's own"
    monkeypatch.setattr(room, "save_state", save_state)
    assert saved[0].exists()
    parts.clear()
    resumed = fit().run()
    assert parts == [1]
    assert resumed["history"] == straight["history"]
    assert resumed["after"] == straight["after"]
    assert resumed["sha256"] == straight["sha256"]
    assert not saved[0].exists()


def test_progress_is_written_after_the_first_epoch_and_then_once_a_minute(fit, monkeypatch):
    saved, clock = [], iter(range(0, 1000, 25))
    monkeypatch.setattr(room, "save_state", lambda path, state, *more: saved.append(state.epoch))
    # asked before each epoch and after each saving
    monkeypatch.setattr(room, "time", SimpleNamespace(monotonic=lambda: next(clock), perf_counter=time.perf_counter))
    fit(epochs=7).run()
    # at 0 s, when 25 s are noted; 50 and 75 s are too early, 100 is not; 125 s are noted; 150 and 175 are too early
    assert saved == [1, 4, 7]


def test_progress_of_another_fit_is_ignored(fit, tmp_path):
    (tmp_path / "adapter.safetensors.progress.safetensors").write_bytes(b"torn")
    assert len(fit(epochs=1).run()["history"]) == 1


def test_none_writes_sams_own_decoder(fit, small_sam):
    result = fit(adapt="none").run()
    image = torch.rand(1, 3, 40, 40)
    bare = Teacher.load(BASE, small_sam, size=SIZE)
    adapted = Teacher.load(BASE, small_sam, result["output"], size=SIZE)
    assert torch.equal(bare.probabilities(image), adapted.probabilities(image))
    assert bare.sha256 != adapted.sha256


def test_everything_wrong_is_told_at_once(records, checkpoint, tmp_path):
    with pytest.raises(Refused, match="refused: 8 problems") as refused:
        TeacherFit(
            train_records=[{key: value for key, value in records[0].items() if key != "label"}],
            held_out_records=[],
            output=tmp_path / "a.safetensors",
            checkpoint=checkpoint,
            adapt="prompt",
            epochs=0,
            learning_rate=-1,
            lora_learning_rate="fast",
            bf16="yes",
            trainer=partial(SupervisedTrainer, loss_function=mask_loss),
        )
    message = str(refused.value)
    assert "teacher -> adapt: expected one of ['lora', 'decoder', 'none'], found 'prompt'" in message
    assert "teacher -> epochs: expected a whole number >= 1, found 0" in message
    assert "teacher -> learning_rate: expected a number > 0, or null, found -1" in message
    assert "teacher -> lora_learning_rate: expected a number > 0, or null, found 'fast'" in message
    assert "teacher -> bf16: expected true, false or 'auto', found 'yes'" in message
    assert 'teacher -> trainer: expected monai.engines.SupervisedTrainer with an "optimizer", both with' in message
    assert "public set, train part: expected labelled images, found 1 without a label" in message
    assert "public set, held-out part: expected labelled images, found no image" in message


def test_fault_28_missing_weights_are_refused_before_any_work(records, tmp_path, monkeypatch):
    monkeypatch.setenv("SAMFED_WEIGHTS", str(tmp_path))
    with pytest.raises(Refused, match="run `samfed weights mobile_sam"):
        TeacherFit(train_records=records[:3], held_out_records=records[3:], output=tmp_path / "a.safetensors")


def test_a_fit_goes_on_from_an_adapter_and_says_so(fit, tmp_path):
    first = fit(learning_rate=2e-3)
    first.run()
    begun = fit("more.safetensors", start_from=first.output, learning_rate=1e-12, epochs=1)
    result = begun.run()
    one, other = (safe_load(path) for path in (first.output, begun.output))
    # at this rate nothing moves that a float of the decoder's size could show
    assert max(float((one[name] - other[name]).abs().max()) for name in one) < 1e-6
    assert result["start"] == "adapter.safetensors"
    assert fit("more.safetensors", start_from=first.output, learning_rate=1e-12, epochs=1).run()["reused"]


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"adapt": "lora"}, "expected adapt lora, found adapter.safetensors with adapt decoder"),
        ({"adapt": "lora"}, "expected rank 4, found adapter.safetensors with rank 0"),
        ({"adapt": "none"}, "expected null where adapt is none: nothing is fitted, found 'adapter.safetensors'"),
    ],
)
def test_an_adapter_that_is_otherwise_is_no_start(fit, settings, problem):
    first = fit(epochs=1)
    first.run()
    with pytest.raises(Refused, match=problem):
        fit("more.safetensors", start_from=first.output, **settings)


def test_a_start_that_is_missing_is_refused(fit, tmp_path):
    with pytest.raises(Refused, match=r"none.safetensors: expected a teacher's adapter, found no such file"):
        fit(start_from=tmp_path / "none.safetensors")
