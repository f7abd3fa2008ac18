"""Imports and short commands against importing torch, or MONAI, alone; each in a fresh interpreter."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

from common import BUNDLE, Figure, record, side_by_side

TORCH = "import torch"
MONAI = "import monai"
SELDOM = f"from samfed_monai.core.own_process import set_up_process\nset_up_process()\n{MONAI}\n"
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
    """Runs code in an interpreter of its own; modules are compiled before what is timed, as an installed package's."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return lambda: subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def processor_seconds() -> float:
    """Seconds that the interpreters have taken of the processor so far."""
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
    times = side_by_side(interpreter(SELDOM), interpreter(MONAI), repeats=repeats, clock=processor_seconds)
    what = "`import monai`, a plain process against one of ours, time of the processor"
    figures.append(Figure(what, times["ratio"], details=times))
    times = side_by_side(interpreter(MONAI), interpreter(CHECK), repeats=repeats, clock=processor_seconds)
    what = f"`samfed check {BUNDLE.name}` against `import monai`, time of the processor"
    figures.append(Figure(what, times["ratio"], bound=1.5, details=times))
    record(__file__, figures)


if __name__ == "__main__":
    main()
