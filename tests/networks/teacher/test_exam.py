from __future__ import annotations

import pytest
import torch

from samfed_monai.networks.sam.build import assemble, vit_encoder
from samfed_monai.networks.sam.teacher import Teacher
from samfed_monai.teacher import exam as room
from samfed_monai.teacher.exam import Exam, as_good_as, dice_score, mean, read_pair
from tests.networks.fakes import fake_records


def test_dice_by_hand():
    mask = torch.tensor([[[[1, 1, 0, 0]]]])
    assert dice_score(torch.tensor([[[[0.9, 0.1, 0.9, 0.1]]]]), mask) == pytest.approx(2 * 1 / 4)
    assert dice_score(torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 1, 4)) == 1.0
    assert dice_score(torch.ones(1, 1, 1, 4), torch.zeros(1, 1, 1, 4)) == 0.0


def test_kept_embeddings_give_the_same_dice_and_encode_once(tmp_path, monkeypatch):
    torch.manual_seed(0)
    sam = assemble(vit_encoder(256, width=16, depth=1, heads=2, global_blocks=(0,)), 256)
    teacher = Teacher(sam, sha256="x", size=256, bf16=False)
    sets = {"a": fake_records(tmp_path, 2)}
    plain = Exam(teacher)(sets)
    exam, calls = Exam(teacher, keep_embeddings=True), []
    embed = teacher.embed
    monkeypatch.setattr(teacher, "embed", lambda image: (calls.append(1), embed(image))[1])
    # float16 embeddings: a pixel at the threshold may flip
    assert exam(sets)["a"] == pytest.approx(plain["a"], abs=0.01)
    assert len(plain["a"]) == 2
    exam(sets)
    assert len(calls) == 2
    assert set(exam(sets, views=2)) == {"a"}
    assert teacher.views == 1


def test_what_is_seen_again_and_again_is_read_once(tmp_path, monkeypatch):
    torch.manual_seed(0)
    sam = assemble(vit_encoder(64, width=16, depth=1, heads=2, global_blocks=(0,)), 64)
    exam = Exam(Teacher(sam, sha256="x", size=64, bf16=False))
    sets = {"a": fake_records(tmp_path, 2, (96, 128))}
    read = []
    monkeypatch.setattr(room, "read_pair", lambda record: read.append(record["id"]) or read_pair(record))
    once = exam(sets)
    kept = [exam(sets, keep=True) for _ in range(3)]
    assert read == ["0", "1"] * 2
    assert kept[0] == kept[1] == kept[2]
    assert kept[0]["a"] == pytest.approx(once["a"], abs=0.01)  # intensities are rounded: a pixel may flip


def test_a_refiner_is_asked_for_one_exam_and_gone_afterwards(tmp_path):
    torch.manual_seed(0)
    sam = assemble(vit_encoder(256, width=16, depth=1, heads=2, global_blocks=(0,)), 256)
    teacher = Teacher(sam, sha256="x", size=256, bf16=False)
    sets = {"a": fake_records(tmp_path, 2)}

    class Empty(torch.nn.Module):
        def forward(self, images, first):
            return torch.zeros_like(first)

    exam = Exam(teacher, keep_embeddings=True)
    assert exam(sets, refiner=Empty())["a"] == [0.0, 0.0]
    assert teacher.refiner is None
    exam(sets, peak=0.4)
    assert teacher.peak is None
    assert exam(sets)["a"] == pytest.approx(Exam(teacher)(sets)["a"], abs=0.01)


@pytest.mark.parametrize(
    ("scores", "best", "kept"),
    [
        ([0.9, 0.8], [0.8, 0.8], True),
        ([0.8, 0.8], [0.8, 0.8], True),
        # one image of three lost 0.3: mean loss 0.1, standard error 0.1
        ([0.9, 0.9, 0.6], [0.9, 0.9, 0.9], True),
        # every image lost 0.1, so that it is no accident
        ([0.8, 0.81, 0.79], [0.9, 0.9, 0.9], False),
        ([0.7], [0.8], False),
        ([0.8], [0.8], True),
    ],
)
def test_one_unlucky_image_is_forgiven_and_a_loss_on_all_is_not(scores, best, kept):
    assert as_good_as(scores, best) is kept


def test_mean():
    assert mean([0.5, 1.0]) == 0.75
