"""A teacher without SAM, for whole runs in any process; as a module: the process of some sites, with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from samfed_monai.core.io import sha256_file
from samfed_monai.federation.site_process import main
from samfed_monai.federation.teacher import TeacherStage
from samfed_monai.networks.sam import adapter
from samfed_monai.networks.sam.adapter import Adapt
from samfed_monai.networks.sam.teacher import Teacher
from tests.federation.test_site_teacher import Half

SHA256 = "d" * 64
#: Stands for SAM's checkpoint and for the adapter: nobody reads more of it than its hash.
FILE = Path(__file__)


class LeftHalf(Half):
    """One whose masks are 1 on the left half and 0 on the right one, in 16 x 16 pixels."""

    def __init__(self) -> None:
        super().__init__(SHA256)
        self.size, self.views = 64, 1


def install(patch: Callable[[Any, str, Any], None] = setattr) -> Path:
    """Has every run of this process take it, whatever adapter it is given; returns one to give."""
    header = SimpleNamespace(adapt=Adapt.LORA, base_sha256=sha256_file(FILE))
    patch(Teacher, "load", lambda **given: LeftHalf())
    patch(adapter, "read_header", lambda path: header)
    patch(TeacherStage, "checkpoint", lambda self: FILE)
    return FILE


if __name__ == "__main__":
    install()
    main()
