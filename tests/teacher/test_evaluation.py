"""A fitted teacher in use: pairs of image and label, Dice on them, and the soft-mask store of a site."""

from __future__ import annotations

import pytest
import torch

from samfed_monai.data import SoftMaskStore
from samfed_monai.networks.sam.build import place
from samfed_monai.teacher import evaluation as room
from samfed_monai.teacher import fill_store
from samfed_monai.teacher.evaluation import TeacherEvaluation, dice_score, read_pair, shrunk, within_one_standard_error
from tests.networks.fakes import fake_records

from .conftest import SHA256


def test_pair_is_read_at_native_size(tmp_path):
    (record,) = fake_records(tmp_path, 1, (24, 40))
    image, mask = read_pair(record)
    assert (image.shape, mask.shape) == ((1, 3, 24, 40), (1, 1, 24, 40))
    assert 0.2 < image.float().mean() / 255 < 1
    assert set(mask.unique().tolist()) == {0, 1}


def test_large_image_is_shrunk_to_input_size(tmp_path):
    (record,) = fake_records(tmp_path, 1, (96, 160))
    native = read_pair(record).image
    small = shrunk(native, 64)
    assert small.shape == (1, 3, 40, 64)  # 38.4 rows, rounded to a multiple of 4
    assert small.dtype == torch.uint8
    torch.testing.assert_close(small / 255, place(native / 255, 64), rtol=0, atol=0.5 / 255 + 1e-6)
    assert shrunk(small, 64) is small, "it is at its place"
    assert shrunk(native, 512) is shrunk(native, 160) is native, "nothing is enlarged and kept"


def test_dice_matches_hand_calculation():
    mask = torch.tensor([[[[1, 1, 0, 0]]]])
    assert dice_score(torch.tensor([[[[0.9, 0.4, 0.5, 0.1]]]]), mask) == pytest.approx(2 * 1 / 4)
    assert dice_score(torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 1, 4)) == 1.0
    assert dice_score(torch.ones(1, 1, 1, 4), torch.zeros(1, 1, 1, 4)) == 0.0


def test_cached_embeddings_give_same_dice_and_encode_once(teacher, tmp_path, monkeypatch):
    sets = {"a": fake_records(tmp_path, 2)}
    plain = TeacherEvaluation(teacher)(sets)
    exam, calls = TeacherEvaluation(teacher, keep_embeddings=True), []
    embed = teacher.embed
    monkeypatch.setattr(teacher, "embed", lambda image: (calls.append(1), embed(image))[1])
    # float16 embeddings: a pixel at the threshold may flip
    assert exam(sets)["a"] == pytest.approx(plain["a"], abs=0.01)
    assert len(plain["a"]) == 2
    exam(sets)
    assert len(calls) == 2
    assert set(exam(sets, views=2)) == {"a"}
    assert teacher.views == 1


def test_kept_pairs_are_read_once(teacher, tmp_path, monkeypatch):
    exam = TeacherEvaluation(teacher)
    sets = {"a": fake_records(tmp_path, 2, (96, 128))}
    read = []
    monkeypatch.setattr(room, "read_pair", lambda record: read.append(record["id"]) or read_pair(record))
    once = exam(sets)
    kept = [exam(sets, keep=True) for _ in range(3)]
    assert read == ["0", "1"] * 2
    assert kept[0] == kept[1] == kept[2]
    assert kept[0]["a"] == pytest.approx(once["a"], abs=0.01)  # intensities are rounded: a pixel may flip


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
def test_as_good_as_tolerates_loss_within_standard_error(scores, best, kept):
    assert within_one_standard_error(scores, best) is kept


def store(folder) -> SoftMaskStore:
    return SoftMaskStore(folder, teacher_sha256=SHA256)


def test_fill_store_computes_only_missing_masks(teacher, tmp_path):
    records = fake_records(tmp_path, 3)
    for images, computed in ((records[:2], 2), (records, 1), (records, 0)):
        assert fill_store(teacher, images, store(tmp_path / "store")) == computed


def test_stored_masks_keep_aspect_ratio(teacher, tmp_path):
    records = []
    for name, size in {"a": (32, 32), "b": (24, 32)}.items():
        (tmp_path / name).mkdir()
        records += fake_records(tmp_path / name, 2, size)
    filled = store(tmp_path / "store")
    assert fill_store(teacher, records, filled) == len({record["image_sha256"] for record in records})
    for record in records:
        mask = filled.get(record["image_sha256"])
        assert mask.shape == ((1, 16, 16) if "/a/" in record["image"] else (1, 12, 16))


def test_progress_bar_names_owner_of_images(tmp_path, teacher, capsys):
    records = fake_records(tmp_path, 1)
    fill_store(teacher, records, store(tmp_path / "named"), owner="site-1 test")
    fill_store(teacher, records, store(tmp_path / "unnamed"))
    heads = [line.partition(":")[0] for line in capsys.readouterr().err.splitlines() if "100%" in line]
    assert heads == ["soft masks, site-1 test", "soft masks"]
