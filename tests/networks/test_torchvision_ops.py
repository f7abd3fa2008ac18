from __future__ import annotations

import subprocess
import sys
from functools import cache

PROBE = """
import sys
sys.modules["samfed_stand_in"] = sys
import torch
{before}
from samfed_monai.networks.torchvision_ops import declare_torchvision_operators
first, second = declare_torchvision_operators(), declare_torchvision_operators()
import torchvision.ops
print(first, second, hasattr(torch.ops.torchvision, "nms"))
"""
OWN = 'own = torch.library.Library("torchvision", "DEF")\nown.define("nms(Tensor a, Tensor b, float c) -> Tensor")\n'
OWN += 'own.define("qnms(Tensor a, Tensor b, float c) -> Tensor")'


@cache
def probe(before: str = "") -> list[str]:
    """In a process of its own: torchvision can be imported only once in each."""
    command = [sys.executable, "-c", PROBE.format(before=before)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_torchvision_can_be_imported_and_a_second_call_changes_nothing():
    first, second, exists = probe()
    assert exists == "True"
    assert first == second


def test_it_is_inactive_when_the_operators_exist():
    loads = probe()[0] == "False"  # torchvision's own: declared a second time, they end the process
    assert probe("" if loads else OWN) == ["False", "False", "True"]


def test_it_recovers_from_an_import_that_failed_before():
    swallowed = "try:\n    import torchvision\nexcept RuntimeError:\n    pass"
    assert probe(swallowed)[2] == "True"
