"""Jobs of methods that keep more than weights: killed in their second round, they go on to the same bits.

What a killed run would leave is copied while the run goes on, which so is the whole one, too.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from samfed_monai.core.io import read_json
from samfed_monai.protocol import Strategy
from tests.federation.test_job import CLIENT, job
from tests.methods import present

pytestmark = pytest.mark.slow

#: Variant to what makes it do something in two short rounds; ``elcfs``, ``fedca`` and ``see_few`` have tests of their
#: own, ``see`` keeps what ``see_few`` does.
CLIENTS: dict[str, dict[str, Any]] = {
    "cpss": {"agreement#tau": 0.5},
    "drflm": {"agreement#tau": 0.5, "strategy#step": 5.0},
    "fedda": {"terms#domain#weight": 1.0},
    "fedda_cyclic": {"terms#domain#weight": 1.0},
    "fedgin": {"agreement#tau": 0.5},
    "fedicra": {"sharing#after": 0, "sharing#batches": 1, "sharing#first_batches": 2, "before#parts#share": 0.5},
    "fedsemidg": {"after#gap#batches": 1},
    "spp_fgc": {"strategy#least": 1},
}


@pytest.mark.parametrize("variant", present(*CLIENTS))
def test_what_a_killed_run_leaves_goes_on_to_the_same_bits(small_federation, tmp_path, monkeypatch, variant) -> None:
    options = {"variant": variant, "train": {**CLIENT, **CLIENTS[variant]}, "cache_dir": tmp_path / "cache"}

    def files(run: Path) -> dict[str, str]:
        found: dict[str, str] = read_json(run / "rounds" / "001" / "round.json")["files"]
        return found

    take = Strategy.take

    def copied(self, round, site, update) -> None:
        if round == 1 and not (tmp_path / "cut").exists():
            shutil.copytree(tmp_path / "whole", tmp_path / "cut")
        take(self, round, site, update)

    with monkeypatch.context() as patched:
        patched.setattr(Strategy, "take", copied)
        job(small_federation, tmp_path / "whole", **options).run()
    assert (tmp_path / "cut" / "rounds" / "000").is_dir()
    assert not (tmp_path / "cut" / "rounds" / "001").exists()
    job(small_federation, tmp_path / "cut", **options).run()
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
