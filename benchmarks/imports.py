"""Import of the package and the help of its command, against importing torch alone; each in a fresh interpreter."""

from __future__ import annotations

import argparse
import subprocess
import sys

from common import Figure, record, side_by_side

TORCH = "import torch"
PACKAGE = "import samfed_monai"
HELP = (
    "import contextlib, io\n"
    "from samfed_monai.cli.main import main\n"
    "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
    "    main(['--help'])\n"
)


def interpreter(code: str):
    return lambda: subprocess.run([sys.executable, "-c", code], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    repeats = parser.parse_args().repeats
    figures = []
    for what, code in (("`import samfed_monai`", PACKAGE), ("`samfed --help`", HELP)):
        times = side_by_side(interpreter(TORCH), interpreter(code), repeats=repeats)
        figures.append(Figure(f"{what} against `import torch`", times["ratio"], bound=1.2, details=times))
    record(__file__, figures)


if __name__ == "__main__":
    main()
