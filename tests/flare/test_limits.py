"""A process does what its site file says; no limit of memory can be lifted again, so each has a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import os, resource, sys
from pathlib import Path
from samfed_monai.flare.site_file import limit
from samfed_monai.flare.site_file import SiteFile

limit(SiteFile(*[Path()] * 4, **eval(sys.argv[1])))
print(os.environ.get("SAMFED_WEIGHTS"), resource.getrlimit(resource.RLIMIT_DATA)[0], "torch" in sys.modules)
"""


@pytest.mark.parametrize(
    ("says", "said"),
    [
        ("{}", "None -1 False"),
        ("{'weights': Path('/w'), 'memory_limit_gib': 1.5}", f"/w {3 * 512 * 1024**2} False"),
    ],
)
def test_memory_and_the_folder_of_checkpoints_are_set_without_torch(says, said, monkeypatch):
    monkeypatch.delenv("SAMFED_WEIGHTS", raising=False)
    done = subprocess.run([sys.executable, "-c", SCRIPT, says], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == said
