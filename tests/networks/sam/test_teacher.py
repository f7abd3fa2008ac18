"""SAM as a teacher: probabilities, views, precision and identity."""

import pytest
import torch

from samfed_monai.core.errors import Refused
from samfed_monai.core.io import sha256_file
from samfed_monai.networks.inferer import VIEWS
from samfed_monai.networks.sam.build import assemble, vit_encoder
from samfed_monai.networks.sam.teacher import Teacher, identity


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(0)
    sam = assemble(vit_encoder(256, width=16, depth=1, heads=2, global_blocks=(0,)), 256)
    return Teacher(sam, sha256="x", size=256, bf16=False)


@pytest.mark.parametrize(("image", "mask"), [((40, 40), (64, 64)), ((30, 40), (48, 64)), ((300, 100), (64, 21))])
def test_probabilities_cover_image(teacher, image, mask):
    probabilities = teacher.probabilities(torch.rand(2, 3, *image))
    assert probabilities.shape == (2, 1, *mask)
    assert probabilities.dtype == torch.float32
    assert 0 <= probabilities.min() <= probabilities.max() <= 1
    assert not probabilities.requires_grad


@pytest.mark.parametrize(("views", "size"), [(4, (30, 40)), (8, (300, 100))])
def test_views_are_averaged_in_image_frame(teacher, monkeypatch, views, size):
    """Several are looked at together; here each alone, scaled by itself."""
    images = torch.rand(2, 3, *size)
    turned = [(view, view.apply(images)) for view in VIEWS[views]]
    alone = [view.undo(teacher.decode(teacher.embed(each), *each.shape[-2:]).sigmoid()) for view, each in turned]
    monkeypatch.setattr(teacher, "views", views)
    torch.testing.assert_close(teacher.probabilities(images), torch.stack(alone).mean(0))


def test_bf16_probabilities_are_close_to_float32(teacher, monkeypatch):
    image = torch.rand(1, 3, 64, 64)
    exact = teacher.probabilities(image)
    monkeypatch.setattr(teacher, "bf16", True)
    # 8 bits of mantissa: about 1 % (design/MEASURED.md)
    assert (teacher.probabilities(image) - exact).abs().max() < 0.02


def test_loaded_teacher_is_frozen_and_identified(checkpoint):
    teacher = Teacher.load("vit_t", checkpoint, size=64, views=2)
    assert teacher.sha256 == identity(base_sha256=sha256_file(checkpoint), adapter_sha256="none", size=64, views=2)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not teacher.training


def test_identity_depends_on_weights_adapter_size_and_views():
    base = {"base_sha256": "a", "adapter_sha256": "none", "size": 512, "views": 1}
    changes = {"base_sha256": "b", "adapter_sha256": "c", "size": 256, "views": 8}
    assert len({identity(**base), *(identity(**base | {name: value}) for name, value in changes.items())}) == 5


def test_unsupported_number_of_views_is_refused(teacher):
    with pytest.raises(Refused, match=r"teacher -> views: expected one of \[1, 2, 4, 8\], found 3"):
        Teacher(teacher.sam, sha256="x", size=256, views=3)
