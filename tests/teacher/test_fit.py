"""A teacher's fit: what it changes, what it writes, how it goes on after a kill."""

from __future__ import annotations

import shutil
import time
from functools import partial
from pathlib import Path
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
from samfed_monai.data import public_hash
from samfed_monai.networks import Teacher
from samfed_monai.networks.sam.adapter import read_header
from samfed_monai.networks.sam.build import SAM_BUILDERS, build_sam, vit_encoder
from samfed_monai.teacher import TeacherFit
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


@pytest.fixture(scope="module")
def make(records, small_sam):
    def fit(output: Path, **settings) -> TeacherFit:
        usual = {"base": BASE, "checkpoint": small_sam, "size": SIZE, "transform": steps(size=SIZE), "adapt": "decoder"}
        usual |= {"epochs": 2, "cached_views": 2, "batch_size": 2, "progress": False}
        return TeacherFit(train_records=records[:3], held_out_records=records[3:], output=output, **(usual | settings))

    return fit


@pytest.fixture(scope="module")
def plain(make, tmp_path_factory) -> tuple[Path, dict]:
    """An adapter of the usual settings, and what its fit returned."""
    path = tmp_path_factory.mktemp("plain") / "adapter.safetensors"
    return path, make(path).run()


@pytest.fixture
def fit(make, tmp_path):
    return lambda name="adapter.safetensors", **settings: make(tmp_path / name, **settings)


def hash_of(fit: TeacherFit) -> str:
    fit.base_sha256, fit.public_hash = "a", "b"
    return fit._fit_hash()


def test_decoder_is_fitted_and_adapter_header_written(fit, records, checkpoint, tmp_path):
    mobile_sam = {"base": "vit_t", "checkpoint": checkpoint}
    result = fit(test_records={"site": records[:1]}, epochs=3, learning_rate=2e-3, **mobile_sam).run()
    assert set(result["after"]) == {"held_out", "site"}
    assert len(result["history"]) == 3
    assert 1 <= result["epoch"] <= 3
    header = read_header(result["output"])
    assert (header.base, header.rank, header.size) == ("vit_t", 0, SIZE)
    assert header.base_sha256 == sha256_file(checkpoint)
    assert header.public_hash == result["public_hash"] == public_hash(records, ordered=False)
    assert result["sha256"] == sha256_file(result["output"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter.fit.json", "adapter.safetensors"]
    assert read_json(tmp_path / "adapter.fit.json") == result
    teacher = Teacher.load("vit_t", checkpoint, result["output"], size=SIZE)
    assert teacher.probabilities(torch.rand(1, 3, 32, 32)).shape == (1, 1, 16, 16)


def test_lora_has_own_learning_rate(fit, monkeypatch):
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


def test_finished_fit_is_reused_and_other_fit_refused(make, plain, records, tmp_path):
    path, result = plain
    assert make(path).run() == result | {"reused": True}
    shutil.copy(path, tmp_path / path.name)
    wrong, corrected = (  # by the adapter as it is
        make(tmp_path / path.name, test_records={"a": [records[1] | {"label": label}]}).run()
        for label in (records[0]["label"], records[1]["label"])
    )
    assert (wrong["reused"], wrong["after"] != corrected["after"]) == (True, True), "a corrected mask is scored"
    file = path.name, "the adapter of another fit; .* or delete that file"
    for name, found in (file, ("", "a folder; choose another name$")):
        with pytest.raises(Refused, match=f"output: .* found .*, {found}"):
            make(tmp_path / name, epochs=1).run()
    assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_fit_hash_depends_on_lora_and_view_settings(fit):
    other = {"lora_learning_rate": 1e-3}
    wide, narrow = ({"transform": steps(size=SIZE, **{"weak_view#zoom": [1.0, zoom]})} for zoom in (2.0, 1.5))
    settings = [{}, other, wide, wide, narrow, {"adapt": "lora"}, {"adapt": "lora"} | other, {"seed": 1}]
    hashes = [hash_of(fit(**each)) for each in settings]
    assert [hashes.index(each) for each in hashes] == [0, 0, 2, 2, 4, 5, 6, 7]
    batches = fit(**wide)._batches(TrainedSam(build_sam(BASE, size=SIZE), bf16=False))
    assert batches.images.transform.transforms[3].zoom[1] == 2.0


def test_adapter_file_is_reproducible(fit):
    first = fit("a.safetensors", adapt="lora", rank=1, epochs=1).run()["sha256"]
    torch.rand(3)  # the process has moved on
    assert fit("b.safetensors", adapt="lora", rank=1, epochs=1).run()["sha256"] == first


class Watch:
    """A handler of a user: the steps that it saw, with losses, and what was trained."""

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


def test_custom_handlers_observe_monai_trainer(fit, plain):
    watch = Watch()
    result = fit("watched.safetensors", trainer=with_trainer(train_handlers=[watch])).run()
    assert [(epoch, step) for epoch, step, _ in watch._seen] == [(1, 1), (1, 2), (2, 3), (2, 4)]
    assert all(0 < loss < 2 for *_, loss in watch._seen)
    assert watch._modes == {False}, "SAM is trained as it is examined"
    assert [result[name] for name in ("history", "after")] == [plain[1][name] for name in ("history", "after")]


def test_fit_hash_depends_on_loss_optimizer_and_handlers(fit):
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
    hashes = [hash_of(fit(trainer=trainer)) for trainer in trainers]
    assert [hashes.index(each) for each in hashes] == [0, 0, 0, 3, 4, 5, 6, 7, 8, 0, 0]


def test_custom_loss_and_optimizer_are_used(fit, plain):
    loss, used = DiceCELoss(sigmoid=True), []
    sgd = partial(torch.optim.SGD, momentum=0.5)
    other = with_trainer(loss_function=lambda *pair: used.append(pair) or loss(*pair), optimizer=sgd)
    result = fit(trainer=other).run()
    assert len(used) == 4, "two steps in each of two epochs"
    assert {tensor.shape for tensor in used[0]} == {(2, 1, 16, 16)}
    assert result["sha256"] != plain[1]["sha256"]


def test_fault_52_killed_fit_resumes_to_same_weights(fit, plain, monkeypatch, caplog):
    parts, of = [], room.EmbeddedBatches.of
    monkeypatch.setattr(room.EmbeddedBatches, "of", lambda self, part: parts.append(part) or of(self, part))
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
    resumed, straight = fit().run(), plain[1]
    assert parts == [0, 1], "each epoch once, with views of its own"
    assert [resumed[name] for name in ("history", "after", "sha256")] == [
        straight[name] for name in ("history", "after", "sha256")
    ]
    assert not saved[0].exists()


def test_progress_is_saved_after_first_epoch_then_every_minute(fit, monkeypatch):
    saved, clock = [], iter(range(0, 1000, 25))
    monkeypatch.setattr(room, "save_state", lambda path, state, *more: saved.append(state.epoch))
    # asked before each epoch and after each saving
    monkeypatch.setattr(room, "time", SimpleNamespace(monotonic=lambda: next(clock), perf_counter=time.perf_counter))
    fit(epochs=7).run()
    # at 0 s, when 25 s are noted; 50 and 75 s are too early, 100 is not; 125 s are noted; 150 and 175 are too early
    assert saved == [1, 4, 7]


def test_invalid_progress_file_is_ignored(fit, tmp_path):
    (tmp_path / "adapter.safetensors.progress.safetensors").write_bytes(b"torn")
    assert len(fit(epochs=1).run()["history"]) == 1


def test_adapt_none_writes_original_decoder(fit, small_sam):
    result = fit(adapt="none").run()
    image = torch.rand(1, 3, 40, 40)
    bare = Teacher.load(BASE, small_sam, size=SIZE)
    adapted = Teacher.load(BASE, small_sam, result["output"], size=SIZE)
    assert torch.equal(bare.probabilities(image), adapted.probabilities(image))
    assert bare.sha256 != adapted.sha256


def test_invalid_arguments_are_reported_together(records, checkpoint, tmp_path):
    with pytest.raises(Refused, match="refused: 9 problems") as refused:
        TeacherFit(
            train_records=[{key: value for key, value in records[0].items() if key != "label"}],
            held_out_records=[],
            output=tmp_path / "a.safetensors",
            checkpoint=checkpoint,
            adapt="prompt",
            epochs=0,
            learning_rate=-1,
            lora_learning_rate="fast",
            views=0,
            bf16="yes",
            trainer=partial(SupervisedTrainer, loss_function=mask_loss),
        )
    message = str(refused.value)
    for problem in (
        "teacher -> adapt: expected one of ['lora', 'decoder', 'none'], found 'prompt'",
        "teacher -> epochs: expected a whole number >= 1, found 0",
        "teacher -> learning_rate: expected a number > 0, or null, found -1",
        "teacher -> lora_learning_rate: expected a number > 0, or null, found 'fast'",
        "teacher -> views: expected one of [1, 2, 4, 8], found 0",
        "teacher -> bf16: expected true, false or 'auto', found 'yes'",
        'teacher -> trainer: expected monai.engines.SupervisedTrainer with an "optimizer", both with',
        "public set, train part: expected labelled images, found 1 without a label",
        "public set, held-out part: expected labelled images, found no image",
    ):
        assert problem in message


def test_fault_28_missing_weights_and_start_adapter_are_refused(fit, records, tmp_path, monkeypatch):
    monkeypatch.setenv("SAMFED_WEIGHTS", str(tmp_path))
    with pytest.raises(Refused, match=r"(?s)2 problems.*-> size: .*run `samfed weights mobile_sam"):
        TeacherFit(train_records=records[:3], held_out_records=records[3:], output=tmp_path / "a.safetensors", size=1)
    with pytest.raises(Refused, match=r"none.safetensors: expected a teacher's adapter, found no such file"):
        fit(start_from=tmp_path / "none.safetensors")
    with pytest.raises(Refused, match=r"teacher -> rank: expected a whole number in \[1, 16\], found 17"):
        fit(adapt="lora", rank=17)


def test_fit_starts_from_adapter_and_records_start(fit, plain):
    settings = {"start_from": plain[0], "learning_rate": 1e-12, "epochs": 1}
    begun = fit("more.safetensors", **settings)
    result = begun.run()
    one, other = (safe_load(path) for path in (plain[0], begun.output))
    # at this rate nothing moves that a float of the decoder's size could show
    assert max(float((one[name] - other[name]).abs().max()) for name in one) < 1e-6
    assert result["start"] == "adapter.safetensors"
    assert fit("more.safetensors", **settings).run()["reused"]


@pytest.mark.parametrize(
    ("adapt", "problem"),
    [
        ("lora", r"(?s)adapter.safetensors with adapt decoder.*expected rank 4, found adapter.safetensors with rank 0"),
        ("none", "expected null with adapt none, which fits nothing, found 'adapter.safetensors'"),
    ],
)
def test_start_adapter_of_other_kind_is_refused(fit, plain, adapt, problem):
    with pytest.raises(Refused, match=problem):
        fit(start_from=plain[0], adapt=adapt)
