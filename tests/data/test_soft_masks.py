"""The soft-mask store: quantisation, size, damage, crashes, privacy; masks of another size."""

from __future__ import annotations

import itertools
import multiprocessing
import re
import stat
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from samfed_monai.core.errors import Refused
from samfed_monai.data.soft_masks import SoftMaskStore, resize_probabilities

TEACHER = "a" * 64
IMAGE, OTHER = "0" * 64, "1" * 64


def a_store(folder: Path) -> SoftMaskStore:
    return SoftMaskStore(folder, teacher_sha256=TEACHER)


def the_file(store: SoftMaskStore, image: str = IMAGE) -> Path:
    return store.folder / store.teacher_sha256 / image[:2] / f"{image}.mask"


def test_mask_round_trip_and_missing_masks(tmp_path):
    store = a_store(tmp_path)
    mask = torch.tensor([[[0.0, 1.0, 0.2], [51 / 255, 0.4, 0.6]]])
    store.put(IMAGE, mask)
    assert IMAGE in store
    assert len(store) == 1
    assert store.missing([OTHER, IMAGE, OTHER]) == [OTHER]
    back = store.get(IMAGE)
    assert back.dtype == torch.float32
    assert torch.equal(back, mask)  # all are multiples of 1/255


def test_quantisation_error_reaches_exact_bound(tmp_path):
    store, bound = a_store(tmp_path), 1 / 510
    halves = (np.arange(255) + 0.5) / 255  # the worst case: half-way between two levels
    values = torch.from_numpy(np.concatenate([halves, np.linspace(0, 1, 4097)])).float().reshape(1, 17, -1)
    store.put(IMAGE, values)
    error = (store.get(IMAGE) - values).abs().max().item()
    assert 0.999 * bound < error <= bound + 2**-23  # two roundings of float32 in [0, 1]


@given(st.sampled_from([1, 3]), st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**31 - 1))
def test_random_mask_round_trip_is_within_bound(tmp_path_factory, planes, height, width, seed):
    store = a_store(tmp_path_factory.mktemp("store"))
    mask = torch.rand(planes, height, width, generator=torch.Generator().manual_seed(seed))
    store.put(IMAGE, mask)
    back = store.get(IMAGE)
    assert back.shape == mask.shape
    assert back.min() >= 0
    assert back.max() <= 1
    assert (back - mask).abs().max() <= 1 / 510 + 2**-23


def test_ten_thousand_masks_fit_in_one_gigabyte(tmp_path):
    store = a_store(tmp_path)
    store.put(IMAGE, torch.rand(1, 256, 256))  # the worst that a compressor could meet
    assert 10_000 * the_file(store).stat().st_size < 0.7e9


def test_masks_of_other_teacher_are_not_found(tmp_path):
    a_store(tmp_path).put(IMAGE, torch.zeros(1, 4, 4))
    other = SoftMaskStore(tmp_path, teacher_sha256="b" * 64)
    assert IMAGE not in other
    assert len(other) == 0
    with pytest.raises(Refused, match=r"by teacher bbbbbbbbbbbb….*it computes only what is missing; or set teach"):
        other.get(IMAGE)


@pytest.mark.parametrize("planes", [1, 3])
def test_damaged_mask_counts_as_missing_and_is_replaced(tmp_path, caplog, planes):
    store = a_store(tmp_path)
    mask = torch.full((planes, 16, 16), 0.6)
    store.put(IMAGE, mask)
    whole = the_file(store).read_bytes()
    damaged = {"empty": b"", "torn header": whole[:9], "short": whole[:-1]}
    damaged |= {"long": whole + b"x", "other": b"PK" + whole}
    for place in (0, 5, 7, 10, 14, 40, len(whole) - 1):
        damaged[f"bit at {place}"] = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
    for damage, content in damaged.items():
        the_file(store).write_bytes(content)
        caplog.clear()
        assert store.missing([IMAGE]) == [IMAGE], damage
        assert "is damaged: it counts as missing and will be computed again" in caplog.text
        with pytest.raises(Refused, match="run the same command again"):
            store.get(IMAGE)
    store.put(IMAGE, mask)
    assert torch.equal(store.get(IMAGE), mask)
    the_file(store, OTHER).parent.mkdir()
    the_file(store, OTHER).write_bytes(whole)
    assert OTHER not in store, "it was filed under another image"


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.zeros(4, 4), r"found shape \(4, 4\)"),
        (torch.zeros(2, 4, 4), r"expected shape \(1, h, w\), or of K classes \(K \+ 1, h, w\), found shape \(2, 4, 4"),
        (torch.zeros(1, 0, 4), r"found shape \(1, 0, 4\)"),
        (torch.full((1, 4, 4), 1.5), r"found values from 1\.5 to 1\.5"),
        (torch.full((1, 4, 4), 1 + 2**-23), r"found values from 1\.00000012"),
        (torch.full((1, 4, 4), -0.25), r"found values from -0\.25"),
        (torch.full((1, 4, 4), float("nan")), r"found values from nan"),
    ],
)
def test_invalid_probability_map_is_refused(tmp_path, mask, message):
    store = a_store(tmp_path)
    with pytest.raises(Refused, match=message):
        store.put(IMAGE, mask)
    assert len(store) == 0


@pytest.mark.parametrize("name", ["../../../etc/passwd", "A" * 64, "0" * 63, "0" * 65, "", 1234])
def test_invalid_image_or_teacher_hash_is_refused(tmp_path, name):
    error = rf"{{}}: expected 64 lower-case hexadecimal digits, found {re.escape(repr(name))}; give the SHA-256 of {{}}"
    with pytest.raises(Refused, match=error.format("image_sha256", "the image file")):
        a_store(tmp_path).put(name, torch.zeros(1, 4, 4))
    with pytest.raises(Refused, match=error.format("teacher_sha256", "Teacher")):
        SoftMaskStore(tmp_path, teacher_sha256=name)


def test_fault_57_soft_masks_are_readable_by_owner_only(tmp_path):
    folder = tmp_path / "store"
    folder.mkdir(mode=0o755)
    store = a_store(folder)
    store.put(IMAGE, torch.zeros(1, 4, 4))
    assert stat.S_IMODE(the_file(store).stat().st_mode) == 0o600
    for parent in (store.folder, store.folder / TEACHER, the_file(store).parent):
        assert stat.S_IMODE(parent.stat().st_mode) == 0o700


def write_for_ever(folder: Path) -> None:
    store = a_store(folder)
    for number in itertools.count():
        store.put(f"{number % 50:064x}", torch.rand(1, 256, 256))


def test_killed_writer_keeps_only_complete_masks(tmp_path):
    writer = multiprocessing.get_context("fork").Process(target=write_for_ever, args=(tmp_path,), daemon=True)
    writer.start()
    store = a_store(tmp_path)
    deadline = time.monotonic() + 600
    while len(store) < 10 and time.monotonic() < deadline:
        time.sleep(0.02)
    writer.kill()
    writer.join()
    written = [path.stem for path in tmp_path.rglob("*.mask")]
    assert len(written) >= 10
    assert store.missing(written) == []


def test_resize_is_bilinear_within_0_and_1_or_returns_same_tensor():
    masks = torch.tensor([[[[0.0, 1.0]]]])
    assert resize_probabilities(masks, (1, 4)).tolist() == [[[[0.0, 0.25, 0.75, 1.0]]]]
    assert resize_probabilities(masks, (1, 2)) is masks
    ones = torch.ones(1, 1, 213, 8)
    plain = torch.nn.functional.interpolate(ones, (107, 8), mode="bilinear", align_corners=False, antialias=True)
    assert plain.max() > 1  # 1.00000012
    assert resize_probabilities(ones, (107, 8)).max() == 1


@pytest.mark.parametrize("upright", [True, False])
def test_shrinking_counts_every_pixel(upright):
    masks, size = torch.zeros(1, 1, 8, 8), (2, 8)
    masks[..., 3, :] = 1
    masks, size = (masks, size) if upright else (masks.mT.contiguous(), size[::-1])
    without = torch.nn.functional.interpolate(masks, size, mode="bilinear", align_corners=False)
    assert without.sum() == 0  # the line falls between those that are sampled
    first, second = resize_probabilities(masks, size)[0, 0].unique()
    assert second > first > 0


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
def test_resized_probabilities_stay_in_range(height, width, new_height, new_width):
    masks = torch.rand(1, 2, height, width, generator=torch.Generator().manual_seed(height * 41 + width))
    resized = resize_probabilities(masks, (new_height, new_width))
    assert resized.shape == (1, 2, new_height, new_width)
    # no new extremes: up to float32's rounding
    assert masks.min() - 1e-6 <= resized.min() <= resized.max() <= min(1, masks.max() + 1e-6)
