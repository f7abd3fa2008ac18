"""Self-training of a site's teacher: what it learns from, and that nothing but the adapter changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from samfed_monai.core.errors import Refused
from samfed_monai.data import SoftMaskStore
from samfed_monai.networks.sam.adapter import Adapt, adapted_tensors, prepare
from samfed_monai.networks.sam.build import build_sam
from samfed_monai.teacher import SelfTraining
from samfed_monai.teacher.self_training import MixedBatches, PseudoLabelled, confident, self_train
from samfed_monai.teacher.training import ImageBatches
from samfed_monai.transforms import LoadRGBd
from tests.networks.fakes import fake_records

from .steps import steps

KEY = "f" * 64


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return fake_records(tmp_path_factory.mktemp("images"), 4)


@pytest.fixture
def store(tmp_path):
    return SoftMaskStore(tmp_path / "store", teacher_sha256="a" * 64)


def show(store, record, *values: float) -> None:
    """A 2 x 2 mask of these probabilities."""
    store.put(record["image_sha256"], torch.tensor(values).reshape(1, 2, 2))


def test_the_surest_images_come_first_and_empty_masks_never(store, records):
    show(store, records[0], 0.6, 0.6, 0.0, 0.0)
    show(store, records[1], 1.0, 0.8, 0.1, 0.1)
    show(store, records[2], 0.45, 0.4, 0.4, 0.4)
    show(store, records[3], 1.0, 0.0, 0.0, 0.0)
    assert [r["id"] for r in confident(records, store, 1.0)] == ["3", "1", "0"]
    assert [r["id"] for r in confident(records, store, 0.5)] == ["3", "1"]
    assert [r["id"] for r in confident(records, store, 0.01)] == ["3"], "one image at least"
    assert confident(records[2:3], store, 1.0) == []


def test_a_pseudo_label_is_the_mask_at_the_images_own_size(tmp_path, store):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    record = {"image": str(tmp_path / "image.png"), "image_sha256": "b" * 64}
    show(store, record, 1.0, 0.0, 1.0, 0.0)
    pairs = PseudoLabelled([record], store)
    assert len(pairs) == 1
    item = pairs[0]
    assert torch.equal(item["image"] * 255, torch.tensor(pixels).permute(2, 0, 1).float())
    assert item["label"][0].tolist() == [[1, 1, 1, 0, 0, 0]] * 4


class Numbered:
    """Images that are their own numbers, with masks of the same, negative."""

    def __init__(self, first: int, count: int) -> None:
        self.first, self.count = first, count

    def __len__(self) -> int:
        return self.count

    def view(self, index, part):
        number = self.first + index
        return torch.tensor([number]), torch.full((1, 4, 4), -float(number))


class Noted(ImageBatches):
    """Batches that remember which views were asked for."""

    asked: tuple[str, ...] = ()

    def of(self, part):
        self.asked += (part,)
        return super().of(part)


def test_an_epoch_is_one_pass_over_the_sites_images_and_public_ones_never_run_out():
    public = Noted(Numbered(100, 2), batch_size=1, seed=0)
    batches = MixedBatches(Numbered(0, 5), public, batch_size=2, seed=0)
    batches.epoch = 3
    made = list(batches)
    assert len(batches) == len(made) == 3
    images = [batch["image"].flatten().tolist() for batch in made]
    assert [batch["label"].flatten().tolist() for batch in made] == [[-number for number in row] for row in images]
    assert [len(row) for row in images] == [3, 3, 2], "the last of five has only one of the site's"
    assert sorted(number for row in images for number in row[:-1]) == [0, 1, 2, 3, 4]
    assert {row[-1] for row in images[:2]} == {100, 101}
    assert public.asked == ("3.0", "3.1"), "each pass over the public images is another one"


@pytest.fixture
def sam():
    torch.manual_seed(0)
    sam = build_sam("vit_t", size=64)
    prepare(sam, Adapt.LORA, 1)
    return sam.requires_grad_(False)


def trained(sam, records, tmp_path, **settings):
    views = steps(size=64)
    recipe = SelfTraining(**{"epochs": 1, "batch_size": 3, "transform": views, "progress": False} | settings)
    own, progress = [LoadRGBd()(record) for record in records[:3]], tmp_path / "progress.safetensors"
    return self_train(sam, recipe, own, records[3:], size=64, progress_file=progress, fit_hash=KEY)


def test_a_copy_learns_and_only_its_adapter_changes(sam, records, tmp_path):
    before = {name: tensor.clone() for name, tensor in sam.state_dict().items()}
    after = trained(sam, records, tmp_path).state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in sam.state_dict().items()), "a copy, not itself"
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed
    assert changed <= set(adapted_tensors(sam))
    assert any(name.endswith("_b") for name in changed), "LoRA learns"
    assert any(name.startswith("mask_decoder.") for name in changed)


def test_a_killed_one_goes_on_after_its_last_epoch_to_the_same_weights(sam, records, tmp_path, monkeypatch):
    whole = trained(sam, records, tmp_path, epochs=2).state_dict()
    (tmp_path / "progress.safetensors").unlink()
    real = MixedBatches.of

    def killed(self, epoch):
        if epoch == 1:
            raise KeyboardInterrupt
        return real(self, epoch)

    with monkeypatch.context() as patch:
        patch.setattr(MixedBatches, "of", killed)
        with pytest.raises(KeyboardInterrupt):
            trained(sam, records, tmp_path, epochs=2)
    resumed = trained(sam, records, tmp_path, epochs=2).state_dict()
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


def test_numbers_out_of_range_are_refused_all_at_once():
    with pytest.raises(Refused) as caught:
        SelfTraining(epochs=-1, generations=0, batch_size=1, learning_rate=0, keep=1.5)
    text = str(caught.value)
    assert "teacher -> self_training -> epochs: expected a whole number >= 0, found -1" in text
    assert "self_training -> generations: expected a whole number >= 1, found 0" in text
    assert "self_training -> batch_size: expected a whole number >= 2, found 1" in text
    assert "self_training -> learning_rate: expected a number > 0, at most 1, found 0" in text
    assert "self_training -> keep: expected a number > 0, at most 1, found 1.5" in text


def test_the_processor_and_the_bar_are_no_part_of_what_it_is():
    assert SelfTraining(bf16=True, progress=False).content() == SelfTraining(bf16=False).content()
    assert SelfTraining(epochs=2).content() != SelfTraining().content()


def test_other_views_are_another_training():
    recipes = [SelfTraining(transform=steps(**{"weak_view#zoom": [1.0, zoom]})) for zoom in (1.5, 1.5, 2.0)]
    one, same, other = (recipe.content() for recipe in recipes)
    assert one == same != other
    assert recipes[2].steps(256).transforms[3].view.zoom[1] == 2.0
