"""Runs every benchmark and composes docs/benchmarks.md from what they recorded.

``--compose`` only composes; names run a part: ``python benchmarks/run_all.py imports aggregation``. ``--try 40`` starts
each in a copy of the repository, ends it after so many seconds, and says which had failed by then: what they use of
the package changes, and no test looks at them.
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
    "light": "Client networks beside the teacher",
    "inference": "Images a second",
    "guided_iteration": "What the guidance costs, and what the store saves",
    "teacher_precision": "The teacher in bfloat16",
    "encoder": "MobileSAM's encoder",
    "teacher_fit": "A teacher's fit",
    "semi_supervised_iteration": "The whole iteration against the supervised step",
    "plain_loop": "A default step against a plain PyTorch loop",
    "federation_overhead": "The federation's share of a round",
    "whole_run": "A whole run against the first edition",
    "workers": "Sites in processes side by side",
    "public_images": "Public images at several sites of one process",
    "unread_average": "A step without the averaged student that no term reads",
    "flare": "On NVIDIA FLARE",
    "sizing": "A FLARE server's memory by sites",
    "heterogeneous": "Unlike networks",
    "pfedsam": "SAM with LoRA and local experts",
    "sam_memory": "Checkpointing and bfloat16 of that SAM",
    "aggregation": "Aggregation",
    "secure_sum": "Secure aggregation",
    "report": "The report of 100 rounds",
    "growth": "What grows with sites and with rounds",
    "soak": "A long run with sites that lie and go",
    "metrics": "Dice, IoU and HD95",
    "allocator": "Memory that is kept",
    "spinning": "Beside other work",
    "imports": "Imports",
}
HEAD = """# Speed and memory

For everyone who plans machines or changes code; written by the command below, not by hand.

```bash
make bench
```

A ratio with a middle half is the median over pairs timed in turn, so that other load affects both sides alike; one
without is of the medians of runs made one after the other. Seconds are for orientation only. Bounds are this project's
own.
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


def present() -> dict[str, str]:
    """Sections that the page has now, by title."""
    text = PAGE.read_text() if PAGE.is_file() else ""
    return {part.partition("\n")[0]: f"## {part.rstrip()}\n" for part in text.split("\n## ")[1:]}


def compose() -> None:
    """Writes the page; a part without a result here keeps the section that the page has."""
    parts, kept = [HEAD], present()
    for name, title in SCRIPTS.items():
        path = RESULTS / f"{name}.json"
        if path.is_file():
            parts.append(section(name, title, json.loads(path.read_text())))
        elif title in kept:
            parts.append(kept[title])
    PAGE.write_text("\n".join(parts))
    print(f"written: {PAGE.relative_to(HERE.parent)}")


def failed_within(names: Iterable[str], seconds: float) -> list[str]:
    """Benchmarks that fail within so many seconds, with the last line that each wrote; nothing is recorded here."""
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "repository"
        unwanted = shutil.ignore_patterns(".*", "runs", "site", "__pycache__")
        shutil.copytree(HERE.parent, copy, ignore=unwanted)
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
                    failed.append(f"{name}: {(output.read_text().splitlines() or ['nothing'])[-1]}")
                with contextlib.suppress(ProcessLookupError):  # and what it has started
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            print(f"{name}: {'failed' if process.returncode > 0 else 'no failure'}", flush=True)
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*SCRIPTS, []], metavar="NAME", help=", ".join(SCRIPTS))
    parser.add_argument("--compose", action="store_true", help="run nothing, write the page from recorded results")
    parser.add_argument("--try", dest="seconds", type=float, metavar="SECONDS", help="start each, for so long at most")
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
