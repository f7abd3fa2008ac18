"""A site's own teacher: made once, from the site's images and the public ones, and kept at the site."""

from __future__ import annotations

import pytest
import torch

from samfed_monai.config import find_bundle
from samfed_monai.core.io import sha256_file
from samfed_monai.data import SoftMaskStore, load_records
from samfed_monai.federation.site_teacher import OwnTeacher, SiteMasks
from samfed_monai.federation.teacher import TeacherStage
from samfed_monai.networks import Teacher
from samfed_monai.networks.sam.adapter import Adapt, Adapter, prepare, read_header, save_adapter
from samfed_monai.networks.sam.build import build_sam
from samfed_monai.teacher import SelfTraining
from tests.networks.fakes import fake_checkpoint

RECIPE = SelfTraining(epochs=1, keep=1.0, progress=False)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A SAM with random weights and an adapter of it."""
    folder = tmp_path_factory.mktemp("sam")
    checkpoint = fake_checkpoint(folder / "mobile_sam.pt")
    sam = build_sam("vit_t", checkpoint, 256)
    prepare(sam, Adapt.LORA, 1)
    save_adapter(
        folder / "adapter.safetensors", sam, Adapter("vit_t", sha256_file(checkpoint), Adapt.LORA, 1, 256, "public")
    )
    return checkpoint, folder / "adapter.safetensors"


@pytest.fixture
def site(files, tmp_path, small_list, small_federation):
    """Makes ``site-1``'s part, whose store has the server's masks of the first ``found`` images; the rest is empty."""
    checkpoint, adapter = files
    teacher = Teacher.load("vit_t", checkpoint, adapter, size=256)

    def make(found: int = 2, recipe: SelfTraining = RECIPE) -> OwnTeacher:
        overrides = {"checkpoint": str(checkpoint), "size": 256, "views": 1}
        stage = TeacherStage(find_bundle("samfed_skin"), overrides, tmp_path / "cache")
        masks = SiteMasks(tmp_path / "cache", small_list.for_site("site-1"), small_federation)
        store = SoftMaskStore(masks.store_dir("site-1"), teacher_sha256=teacher.sha256)
        records = load_records(small_list, small_federation, split="unlabelled", site="site-1")
        for number, record in enumerate(records):
            mask = torch.zeros(1, 64, 64)
            mask[..., :20, :20] = 0.9 * (number < found)
            store.put(record["image_sha256"], mask)
        return OwnTeacher("site-1", recipe, stage, masks)

    return make, teacher, adapter


def test_it_is_another_teacher_of_the_same_kind_and_made_once(site, caplog):
    make, teacher, adapter = site
    with caplog.at_level("INFO"):
        own = make().of(teacher, adapter)
        again = make().of(teacher, adapter)
    assert own.sha256 == again.sha256 != teacher.sha256
    assert (own.size, own.views) == (teacher.size, teacher.views)
    lines = [record.message for record in caplog.records if "own teacher from" in record.message]
    assert lines == ["site-1: own teacher from 2 images", "site-1: own teacher from 2 images, reused"]
    store = make().masks.store_dir("site-1")
    (path,) = (store / "teachers").glob("*.safetensors")
    assert store.stat().st_mode & 0o077 == 0, "it has seen private images: only the owner may read it"
    header = read_header(path)
    assert (header.base, header.rank, header.size, header.public_hash) == ("vit_t", 1, 256, "public")
    assert header.fit["self_training"] == RECIPE.content()
    assert not list(path.parent.glob("*.progress.safetensors"))


def test_another_recipe_and_other_pseudo_labelled_images_are_another_teacher(site):
    make, teacher, adapter = site
    made = [
        make().of(teacher, adapter),
        make(recipe=SelfTraining(epochs=1, keep=1.0, learning_rate=1e-3, progress=False)).of(teacher, adapter),
        make(found=1).of(teacher, adapter),
    ]
    assert len({own.sha256 for own in made}) == 3


def test_the_next_generation_learns_from_the_masks_of_the_one_before(site, caplog):
    make, teacher, adapter = site
    first = make().of(teacher, adapter)
    store = SoftMaskStore(make().masks.store_dir("site-1"), teacher_sha256=first.sha256)
    images = load_records(make().masks.datalist, make().masks.data_root, split="unlabelled", site="site-1")
    for record in images:
        store.put(record["image_sha256"], torch.full((1, 64, 64), 0.8 * (record is images[0])))
    with caplog.at_level("INFO"):
        second = make(recipe=SelfTraining(epochs=1, generations=2, keep=1.0, progress=False)).of(teacher, adapter)
    lines = [record.message for record in caplog.records if "own teacher from" in record.message]
    assert lines == ["site-1: own teacher from 2 images, reused", "site-1: own teacher from 1 images"]
    assert len({teacher.sha256, first.sha256, second.sha256}) == 3


def test_where_the_servers_teacher_finds_nothing_it_stays(site, caplog):
    make, teacher, adapter = site
    assert make(found=0).of(teacher, adapter) is teacher
    assert "site-1: the teacher finds nothing in any image here; it is used as it is" in caplog.text
    caplog.clear()
    assert make(found=0, recipe=SelfTraining(epochs=1, generations=3, progress=False)).of(teacher, adapter) is teacher
    assert caplog.text.count("finds nothing") == 1
