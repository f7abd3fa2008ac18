"""Runs all benchmarks and writes docs/benchmarks.md from their recorded results.

Names select benchmarks: ``python benchmarks/run_all.py imports aggregation``. ``--compose`` runs none and only writes
the page. ``--try 40`` starts each benchmark in a copy of the repository, stops it after 40 seconds, and reports those
that failed. Use it after a change of the package, since tests do not run most benchmarks.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from common import RESULTS, short

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "benchmarks.md"
SCRIPTS = {
    "light": "Client networks and the teacher",
    "inference": "Images per second",
    "guided_iteration": "Cost of SAM's guidance",
    "teacher_precision": "The teacher in bfloat16",
    "encoder": "MobileSAM's encoder",
    "teacher_fit": "Fitting the teacher",
    "semi_supervised_iteration": "The whole iteration against the supervised step",
    "plain_loop": "A default step against a plain PyTorch loop",
    "federation_overhead": "The federation's share of a round",
    "whole_run": "A whole run against the first edition",
    "workers": "Sites in parallel processes",
    "public_images": "Public images of several sites in one process",
    "unread_average": "A step without the averaged student",
    "flare": "On NVIDIA FLARE",
    "sizing": "Memory of a FLARE server",
    "heterogeneous": "Mixed networks",
    "pfedsam": "SAM with LoRA and local experts",
    "sam_memory": "Checkpointing and bfloat16 for SAM",
    "aggregation": "Aggregation",
    "secure_sum": "Secure aggregation",
    "report": "The report of 100 rounds",
    "growth": "Growth with sites and rounds",
    "soak": "Soak test with faulty sites",
    "metrics": "Dice, IoU and HD95",
    "allocator": "Keeping freed memory",
    "spinning": "On a busy machine",
    "imports": "Imports",
}
HEAD = """# Speed and memory

For planning machines and for changing code. This command writes the page:

```bash
make bench
```

*A against B* is the ratio A / B. If a ratio has a middle half (its quartiles), it is the median over pairs that were
timed in turn, so other load affects both sides alike. Otherwise it is a ratio of single measurements or of medians.
Seconds are for orientation only. Bounds are this project's own.
"""


def number(figure: dict, value: float) -> str:
    return f"{short(value)} {figure['unit'] if figure['unit'] != 'x' else '×'}"


def section(name: str, title: str, content: dict) -> str:
    parts = list(content.get("parts", {"": content}).values())
    lines = [f"## {title}", "", "| | measured | middle half | bound | |", "| --- | --- | --- | --- | --- |"]
    for figure in (figure for part in parts for figure in part["figures"]):
        details = figure["details"]
        spread = f"{details['low']:.3g} to {details['high']:.3g}" if "low" in details else ""
        bound = (
            "" if figure["bound"] is None else f"{'≥' if figure['at_least'] else '≤'} {number(figure, figure['bound'])}"
        )
        verdict = {None: "", True: "holds", False: "**does not hold**"}[figure["holds"]]
        lines.append(f"| {figure['what']} | {number(figure, figure['value'])} | {spread} | {bound} | {verdict} |")
    return "\n".join([*lines, *(line for part in parts for line in ("", source(part))), ""])


def source(content: dict) -> str:
    machine = content["machine"]
    device = machine["cuda"] or f"{machine['processor']}, {machine['threads']} threads"
    return (
        f"`{content['command']}` · {content['date']} · {device} · Python {machine['python']}, torch {machine['torch']}"
    )


def current_sections() -> dict[str, str]:
    """Sections of the existing page, by title."""
    text = PAGE.read_text() if PAGE.is_file() else ""
    return {part.partition("\n")[0]: f"## {part.rstrip()}\n" for part in text.split("\n## ")[1:]}


def compose() -> None:
    """Writes the page; a benchmark without a recorded result keeps its section of the existing page."""
    parts, kept = [HEAD], current_sections()
    for name, title in SCRIPTS.items():
        path = RESULTS / f"{name}.json"
        if path.is_file():
            parts.append(section(name, title, json.loads(path.read_text())))
        elif title in kept:
            parts.append(kept[title])
    PAGE.write_text("\n".join(parts))
    print(f"written: {PAGE.relative_to(HERE.parent)}")


def failed_within(names: Iterable[str], seconds: float) -> list[str]:
    """Benchmarks that fail within ``seconds``, with the last line of their output; no result is recorded."""
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "repository"
        ignored = shutil.ignore_patterns(".*", "runs", "site", "__pycache__")
        shutil.copytree(HERE.parent, copy, ignore=ignored)
        for name in names:
            output = Path(folder) / f"{name}.log"
            with open(output, "w") as log:
                process = subprocess.Popen(
                    [sys.executable, copy / "benchmarks" / f"{name}.py"],
                    stdout=log,
                    stderr=log,
                    env={**os.environ, "PYTHONPATH": str(copy)},
                    start_new_session=True,
                )
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(seconds)
                if process.returncode:
                    failed.append(f"{name}: {(output.read_text().splitlines() or ['no output'])[-1]}")
                with contextlib.suppress(ProcessLookupError):  # with the processes that it started
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            print(f"{name}: {'failed' if process.returncode > 0 else 'did not fail'}", flush=True)
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*SCRIPTS, []], metavar="NAME", help=", ".join(SCRIPTS))
    parser.add_argument("--compose", action="store_true", help="only write the page from recorded results")
    parser.add_argument(
        "--try", dest="seconds", type=float, metavar="SECONDS", help="run each for at most SECONDS and report failures"
    )
    options = parser.parse_args()
    if options.seconds:
        failed = failed_within(options.names or SCRIPTS, options.seconds)
        print("\n".join(failed), file=sys.stderr)
        return bool(failed)
    failed = []
    for name in [] if options.compose else options.names or SCRIPTS:
        print(f"== {name}", flush=True)
        if subprocess.run([sys.executable, HERE / f"{name}.py"]).returncode:
            failed.append(name)
    compose()
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
