"""Imports and short commands against importing only torch, or only MONAI; each in a new interpreter."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

from common import BUNDLE, Figure, record, side_by_side

TORCH = "import torch"
MONAI = "import monai"
MONAI_AFTER_SETUP = f"from samfed_monai.core.process_setup import set_up_process\nset_up_process()\n{MONAI}\n"
PACKAGE = "import samfed_monai"
HELP = (
    "import contextlib, io\n"
    "from samfed_monai.cli.main import main\n"
    "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
    "    main(['--help'])\n"
)
CHECK = (
    "import contextlib, io, sys\n"
    "from samfed_monai.cli.main import main\n"
    f"sys.argv[1:] = ['check', {str(BUNDLE)!r}]\n"
    "with contextlib.redirect_stdout(io.StringIO()):\n"
    "    raise SystemExit(main())\n"
)


def interpreter(code: str):
    """Returns a call that runs code in a new interpreter, which may cache bytecode as for an installed package."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return lambda: subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def processor_seconds() -> float:
    """Processor seconds of all interpreters that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    repeats = parser.parse_args().repeats
    figures = []
    for what, code in (("`import samfed_monai`", PACKAGE), ("`samfed --help`", HELP)):
        times = side_by_side(interpreter(TORCH), interpreter(code), repeats=repeats)
        figures.append(Figure(f"{what} against `import torch`", times["ratio"], bound=1.2, details=times))
    times = side_by_side(interpreter(MONAI_AFTER_SETUP), interpreter(MONAI), repeats=repeats, clock=processor_seconds)
    what = "`import monai`, a plain process against one of samfed, processor time"
    figures.append(Figure(what, times["ratio"], details=times))
    times = side_by_side(interpreter(MONAI), interpreter(CHECK), repeats=repeats, clock=processor_seconds)
    what = f"`samfed check {BUNDLE.name}` against `import monai`, processor time"
    figures.append(Figure(what, times["ratio"], bound=1.5, details=times))
    record(__file__, figures)


if __name__ == "__main__":
    main()
