"""Changes the code in small ways, in a copy of this repository, and tells of which changes no test takes notice.

``mutmut`` makes the changes (a number, an operator, an argument that is left out, a word) and runs, for each, the tests
that reach it. A change that survives is code that no test holds, or one that changes nothing; docs/mutation.md has
those that are known, with their reasons.
"""

from __future__ import annotations

import argparse
import collections
import configparser
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.delete_methods import copy_of  # noqa: E402


class Room(NamedTuple):
    """What is changed together.

    Args:
        code: files, or patterns of files.
        tests: what must take notice.
    """

    code: tuple[str, ...]
    tests: tuple[str, ...]


def _methods(*names: str, code: tuple[str, ...] = (), tests: tuple[str, ...] = ()) -> Room:
    """Methods, each with the test of its name if it has one, and what is changed beside them."""
    files = [f"samfed_monai/methods/{name}.py" for name in names]
    known = [f"tests/methods/test_{name}.py" for name in names if (ROOT / f"tests/methods/test_{name}.py").is_file()]
    return Room((*files, *code), (*known, *tests))


ROOMS = {
    "losses": Room(("samfed_monai/losses/*.py",), ("tests/losses", "tests/methods/test_hssf.py")),
    "messages": Room(
        tuple(f"samfed_monai/protocol/{name}.py" for name in ("message", "guard", "sent_once", "transport")),
        tuple(f"tests/protocol/test_{name}.py" for name in ("message", "guard", "sent_once", "transport")),
    ),
    "strategies": _methods(
        *("fedavg", "all_answers", "site_weights", "coordinate_median", "trimmed_mean", "krum", "norm_clipping"),
        code=("samfed_monai/protocol/strategy.py",),
        tests=("tests/protocol/test_strategy.py", "tests/methods/test_robust.py", "tests/methods/test_strategies.py"),
    ),
    "systems": _methods(
        *("clustered_sites", "cpss", "drflm", "elcfs", "fedca", "fedda", "fedgin", "fedicra", "fedsemidg", "mixup"),
        *("see", "weak_labels"),
        tests=tuple(f"tests/methods/test_{name}.py" for name in ("options", "published", "strategies", "terms")),
    ),
    "store": Room(
        tuple(f"samfed_monai/federation/{name}.py" for name in ("round_store", "run_folder", "run_models")),
        tuple(f"tests/federation/test_{name}.py" for name in ("round_store", "run_folder", "run_models")),
    ),
    "privacy": Room(
        ("samfed_monai/privacy/*.py",),
        tuple(
            f"tests/privacy/test_{name}.py"
            for name in (
                "accounting",
                "audit",
                "central",
                "network_check",
                "noise",
                "release",
                "rules",
                "secure_aggregation",
                "secure_sum",
                "statistics",
                "withholding",
            )
        ),
    ),
}
#: Run in a copy with names of changes: prints their outcomes, and the differences of those not killed, as JSON.
_TELL = """
import json, sys
from mutmut.__main__ import collect_source_file_mutation_data, status_by_exit_code
from mutmut.mutation.diff_apply import get_diff_for_mutant
outcomes, diffs = {}, {}
for path, data in collect_source_file_mutation_data(mutant_names=[])[1].items():
    for name, code in data.exit_code_by_key.items():
        if name in sys.argv[1:]:
            outcomes[name] = status_by_exit_code[code]
            if outcomes[name] != "killed":
                diffs[name] = get_diff_for_mutant(name, path=data.path)
print(json.dumps([outcomes, diffs]))
"""
#: Run in a copy: makes the changes without running a test, and prints their names as JSON.
_MAKE = """
import json, contextlib, sys
from mutmut import __main__ as mutmut
with contextlib.redirect_stdout(sys.stderr):
    mutmut.set_mutant_under_test("mutant_generation")
    mutmut.makedirs("mutants", exist_ok=True)
    mutmut.copy_src_dir(), mutmut.copy_also_copy_files(), mutmut.setup_source_paths()
    mutmut.store_lines_covered_by_tests(), mutmut.create_mutants(1)
    every = mutmut.collect_source_file_mutation_data(mutant_names=[])[0]
print(json.dumps({name: mutmut.status_by_exit_code[code] for _, name, code in every}))
"""
#: What mutmut says of a change that some test took notice of, one way or another.
NOTICED = {"killed", "timeout", "segfault", "caught by type check", "suspicious"}


def configure(copy: Path, room: Room) -> None:
    """Writes what is changed and what is run into ``setup.cfg`` of a copy."""
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(copy / "setup.cfg", encoding="utf-8")
    settings["mutmut"] = {
        "source_paths": "samfed_monai",
        "only_mutate": "\n".join(["", *room.code]),
        "also_copy": "\n".join(["", "tests", "bundles", "benchmarks", "docs", "study"]),
        "pytest_add_cli_args": "\n".join(["", "-p", "no:cacheprovider", "-m", "not slow"]),
        "pytest_add_cli_args_test_selection": "\n".join(["", *room.tests]),
    }
    with open(copy / "setup.cfg", "w", encoding="utf-8") as stream:
        settings.write(stream)


def wording(diff: str) -> bool:
    """Whether a change is one of letters in texts alone: mutmut puts XX around them, or changes their case."""
    parts = {sign: "".join(line[1:] for line in _changed(diff) if line[0] == sign) for sign in "+-"}
    return parts["+"].replace("XX", "").lower() == parts["-"].replace("XX", "").lower()


def mutate(name: str, room: Room, copy: Path, *, jobs: int, sample: int | None, seed: int) -> bool:
    """Changes one room's code and prints what survived; whether at least 95 % of what is more than wording was noticed.

    Args:
        name: of the room.
        room: its code and tests.
        copy: folder for the copy; one that is there already is brought up to date, and of its changes those that were
            noticed are not run again.
        jobs: processes.
        sample: how many changes; ``None`` is all.
        seed: which ones, together with the room's name.
    """
    log = copy.parent / f"{name}.log"
    copy_of(copy)
    configure(copy, room)
    (copy / "mutants" / "mutmut-stats.json").unlink(missing_ok=True)  # which test reaches what: tests are new
    made: dict[str, str] = json.loads(_in_copy(copy, log, "-c", _MAKE))
    drawn = sorted(made)
    if sample is not None and sample < len(drawn):
        drawn = sorted(random.Random(f"{name} {seed}").sample(drawn, sample))
    if todo := [mutant for mutant in drawn if made[mutant] not in NOTICED]:
        log.write_text(_in_copy(copy, log, "-m", "mutmut", "run", "--max-children", str(jobs), *todo))
    outcomes, diffs = json.loads(_in_copy(copy, log, "-c", _TELL, *drawn))
    left = {mutant: outcome for mutant, outcome in outcomes.items() if outcome not in NOTICED}
    texts = {mutant for mutant in left if wording(diffs[mutant])}
    noticed, more = len(outcomes) - len(left), len(outcomes) - len(texts)
    for mutant in sorted(left.keys() - texts):
        print(f"{mutant}: {left[mutant]}", *_changed(diffs[mutant]), sep="\n    ")
    counts = ", ".join(f"{count} {outcome}" for outcome, count in collections.Counter(outcomes.values()).most_common())
    of = f" of {len(made)}" if len(drawn) < len(made) else ""
    print(f"{name}: {len(drawn)}{of} changes: {counts}; {len(texts)} of them are wording that no test reads, not shown")
    print(f"{name}: {100 * noticed / max(1, more):.1f} % of the {more} others noticed", flush=True)
    return noticed >= 0.95 * more


def _in_copy(copy: Path, log: Path, *arguments: str) -> str:
    """What Python prints when run in the copy with these arguments; where it fails, the log has that and its errors."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    command = [sys.executable, *arguments]
    ran = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    if ran.returncode:
        log.write_text(ran.stdout + ran.stderr)
        raise SystemExit(f"mutmut failed, see {log}")
    return ran.stdout


def _changed(diff: str) -> list[str]:
    return [line for line in diff.splitlines() if line[:1] in {"+", "-"} and line[:3] not in {"+++", "---"}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rooms", default=",".join(ROOMS), help=f"of {', '.join(ROOMS)}")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--sample", type=int, help="so many changes of each room (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="which ones: the same seed draws the same of the same code")
    parser.add_argument("--keep", type=Path, help="folder for the copies, to look at survivors with mutmut browse")
    options = parser.parse_args()
    rooms = options.rooms.split(",")
    if unknown := sorted(set(rooms) - ROOMS.keys()):
        parser.error(f"--rooms: {', '.join(unknown)}; choose of {', '.join(ROOMS)}")
    with tempfile.TemporaryDirectory() as folder:
        place = (options.keep or Path(folder)).resolve()
        place.mkdir(parents=True, exist_ok=True)
        drawn = {"jobs": options.jobs, "sample": options.sample, "seed": options.seed}
        good = [mutate(room, ROOMS[room], place / room, **drawn) for room in rooms]
    sys.exit(0 if all(good) else 1)


if __name__ == "__main__":
    main()
