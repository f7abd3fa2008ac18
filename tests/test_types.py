"""Public names that are imported on first use are typed: a type checker finds a wrong argument."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

SNIPPET = """
import torch
from samfed_monai.config import find_bundle, known_variants
from samfed_monai.data import DataList, load_records
from samfed_monai.federation import Plan, RunFolder
from samfed_monai.handlers import Guidance, PseudoLabelTerm
from samfed_monai.losses import StructureLoss
from samfed_monai.methods.fedavg import FedAvg
from samfed_monai.metrics import segmentation_scores
from samfed_monai.protocol import Strategy

strategy: Strategy = FedAvg()
term = PseudoLabelTerm(teacher="sam", weight=1.0)
loss: torch.Tensor = StructureLoss(kernel_size=31)(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8))
names: list[str] = known_variants(find_bundle("samfed_skin"))
reveal_type(load_records)
StructureLoss(kernel_size="31")
"""
# Types of other packages are not checked, since reading torch takes longer than reading this package. Errors in the
# package's own files are not reported either: `make check` checks them completely.
CONFIG = """
[mypy]
ignore_missing_imports = True
[mypy-samfed_monai.*]
follow_imports = silent
[mypy-torch.*,torchvision.*,monai.*,ignite.*,numpy.*,PIL.*,timm.*,nvflare.*]
follow_imports = skip
"""


def public_names() -> list[str]:
    """Public names of the packages, each as ``samfed_monai.room.name``."""
    found = []
    for page in sorted((ROOT / "samfed_monai").glob("*/__init__.pyi")):
        imports = (node for node in ast.parse(page.read_text()).body if isinstance(node, ast.ImportFrom))
        found += [f"samfed_monai.{page.parent.name}.{alias.name}" for node in imports for alias in node.names]
    return found


def test_public_names_are_typed(tmp_path):
    script, names = tmp_path / "script.py", public_names()
    imports = "".join(f"import {room}\n" for room in sorted({name.rpartition(".")[0] for name in names}))
    script.write_text(SNIPPET + imports + "".join(f"reveal_type({name})\n" for name in names))
    (tmp_path / "mypy.ini").write_text(CONFIG)
    command = [sys.executable, "-m", "mypy", "--config-file", str(tmp_path / "mypy.ini"), str(script)]
    command += ["--cache-dir", str(ROOT / ".mypy_cache" / "doors")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    errors = [line for line in done.stdout.splitlines() if ": error:" in line]
    assert len(errors) == 1, done.stdout + done.stderr
    assert 'Argument "kernel_size" to "StructureLoss" has incompatible type "str"; expected "int"' in errors[0]
    assert 'note: Revealed type is "def (datalist: ' in done.stdout
    revealed = [line.partition("Revealed type is ")[2] for line in done.stdout.splitlines() if "Revealed type" in line]
    assert [name for name, kind in zip(names, revealed[1:], strict=True) if kind == '"Any"'] == []
