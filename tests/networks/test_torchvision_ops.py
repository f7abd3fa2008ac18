"""torchvision is imported without its compiled operators; each case runs in a fork, since it works once a process."""

import subprocess
import sys

CASES = """
import os, sys
import torch
from samfed_monai.networks.torchvision_ops import declare_torchvision_operators

def own():
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor a, Tensor b, float c) -> Tensor")
    library.define("qnms(Tensor a, Tensor b, float c) -> Tensor")
    return library

def failed_before():
    try:
        import torchvision
    except RuntimeError:
        pass

def case(before):
    kept = before()
    first, second = declare_torchvision_operators(), declare_torchvision_operators()
    import torchvision.ops
    print(first, second, hasattr(torch.ops.torchvision, "nms"), flush=True)
    return first

for before in (lambda: None, failed_before, own):
    if (child := os.fork()) == 0:
        os._exit(0 if case(before) else 7)  # without the end of the parent's libraries
    loads = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    if before is failed_before and loads:  # torchvision's own: declared a second time, they end the process
        break
"""


def test_missing_torchvision_operators_are_declared_once():
    done = subprocess.run([sys.executable, "-c", CASES], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    cases = [line.split() for line in done.stdout.splitlines()]
    assert cases[0] in (["True", "True", "True"], ["False", "False", "True"])
    assert cases[1] == cases[0]
    assert cases[2:] == ([["False", "False", "True"]] if cases[0][0] == "True" else [])
