"""A shell that asks is told commands, options, knobs, bundles and variants; nobody else pays for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("argcomplete", reason="argcomplete is not installed: pip install samfed-monai[complete]")

REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAM = "from samfed_monai.cli.main import main; main()"


def completions(line: str, answer: Path) -> set[str]:
    """What a shell would offer at the end of a line."""
    asked = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "PYTHONPATH": str(REPOSITORY),
    }
    subprocess.run([sys.executable, "-c", PROGRAM], env=os.environ | asked, cwd=answer.parent, capture_output=True)
    return set(answer.read_text().split("\n"))


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("samfed fed", {"federate"}),
        ("samfed federate samfed_p", {"samfed_polyp"}),
        ("samfed federate samfed_skin --out", {"--output-dir"}),
        ("samfed federate samfed_skin --learning", {"--learning_rate"}),
        ("samfed federate samfed_skin --variant no_sa", {"no_sam"}),
        ("samfed check samfed_skin --workflow fed", {"federate"}),
        ("samfed teach samfed_skin --adapt lo", {"lora"}),
    ],
)
def test_a_shell_is_offered_what_fits(line, offered, tmp_path):
    assert offered <= {each.strip() for each in completions(line, tmp_path / "answer")}


def test_nobody_who_did_not_ask_imports_it():
    code = "import sys; from samfed_monai.cli.main import main; main(['variants', '--path', 'no_sam']); "
    code += "print('argcomplete' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    told = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert told.stdout.splitlines()[-1] == "False"
