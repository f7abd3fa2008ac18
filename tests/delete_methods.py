"""Deletes methods, one at a time or together, from a copy of this repository and runs tests there.

Nothing else may depend on them.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from samfed_monai.config.variants import PACKAGED, methods  # noqa: E402

METHODS, TESTS = PACKAGED.relative_to(ROOT), Path("tests") / "methods"

KEPT = {
    "samfed": "the method itself",
    "dp_only": "warm starts train it, and it is the floor of tables",
    "oracle": "the ceiling of tables",
    "pfedsam": "the method of the tables on labels of the sites' own",
    "local_only": "a reference of the tables of unlike networks",
}
"""Methods that code refers to, and why."""

ALWAYS = (
    *("tests/methods/test_declarations.py", "tests/methods/test_personal.py"),
    *("tests/core", "tests/config/test_variants.py", "tests/cli/test_compare.py"),
    *("tests/reports/test_rows.py", "tests/reports/test_compare.py"),
)
"""Tests of many methods, which run in every case if they exist, besides test files that name the deleted method."""

OUTCOME = re.compile(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", re.MULTILINE)


def bases() -> set[str]:
    """Methods that are bases of others."""
    return {method.base for method in methods().values() if method.base is not None}


def deletable() -> list[str]:
    """Names of methods that are neither bases of others nor needed by code."""
    return [name for name in methods() if name not in bases() | KEPT.keys()]


def needed_by(module: str, root: Path) -> list[str]:
    """Files in ``methods/``, except a method's own two, that import or name its module."""
    dotted = re.compile(rf"\bmethods(\.| import .*\b){module}\b")
    files = (path for path in sorted((root / METHODS).iterdir()) if path.suffix in {".py", ".json"})
    return [path.name for path in files if path.stem != module and dotted.search(path.read_text(encoding="utf-8"))]


def copy_of(to: Path) -> None:
    """Copies the files that git tracks, and new ones that it does not ignore, in their present state."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, to / name)


def delete(name: str, root: Path) -> list[str]:
    """Deletes a method's JSON, and its modules with their tests unless other methods use them.

    Returns:
        the deleted files.
    """
    content = (root / METHODS / f"{name}.json").read_text(encoding="utf-8")
    gone = _unlinked(root, METHODS / f"{name}.json")
    for module in dict.fromkeys([name, *re.findall(r"samfed_monai\.methods\.(\w+)\.", content)]):
        own = root / METHODS / f"{module}.json"
        named = own.is_file() and f"methods.{module}." in own.read_text(encoding="utf-8")
        if not named and not needed_by(module, root):
            gone += _unlinked(root, METHODS / f"{module}.py", TESTS / f"test_{module}.py")
    return gone


def _unlinked(root: Path, *paths: Path) -> list[str]:
    there = [path for path in paths if (root / path).is_file()]
    for path in there:
        (root / path).unlink()
    return [str(path) for path in there]


def naming(name: str, root: Path) -> list[str]:
    """Test files that name a method, and pages' tests if a page does."""
    word = re.compile(rf"\b{name}\b")
    pages = [root / "README.md", *(root / "docs").glob("*.md")]
    files = sorted((root / "tests").rglob("test_*.py"))
    found = [path.relative_to(root).as_posix() for path in files if word.search(path.read_text(encoding="utf-8"))]
    return found + ["tests/test_docs.py"] * any(word.search(page.read_text(encoding="utf-8")) for page in pages)


def pytest_in(root: Path, *arguments: str) -> tuple[int, str]:
    """Runs pytest in a copy, with the copy's package; returns its exit code and output."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=0", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def without(deleted: Sequence[str], tests: Sequence[str], *, slow: bool, verbose: bool) -> bool:
    """Whether the tests of a copy without these methods pass; prints the result in one line."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="without-") as folder:
        root = Path(folder)
        copy_of(root)
        gone = [path for name in deleted for path in delete(name, root)]
        modules = (Path(path) for path in gone if path.startswith(str(METHODS)) and path.endswith(".py"))
        names = {*deleted, *(module.stem for module in modules)}
        about = [path for each in sorted(names) for path in naming(each, root)]
        chosen = list(tests) or [path for path in (*ALWAYS, *about) if (root / path).exists()]
        code, output = pytest_in(root, "--collect-only", "tests")  # every test file can be imported
        if code == 0:
            code, output = pytest_in(root, *dict.fromkeys(chosen), *([] if slow else ["-m", "not slow"]))
    counted = re.findall(r"^(?:\d+ \w+, )*\d+ (?:passed|failed|errors?|deselected).* in .*$", output, re.MULTILINE)
    passed = code == 0
    print(f"{'passes' if passed else 'FAILS'} without {', '.join(Path(path).name for path in gone)}", end="; ")
    print(*(counted[-1:] or ["nothing ran"]), f"({time.monotonic() - begun:.0f} s)", flush=True)
    if not passed:
        print(output if verbose else "\n".join(f"    {line}" for line in outcome(output)), flush=True)
    return passed


def outcome(output: str) -> Iterable[str]:
    """The failed tests, or pytest's last lines if it names none."""
    return dict.fromkeys(OUTCOME.findall(output)) or output.splitlines()[-5:]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Without --tests: what goes through all methods, and every test file that names the deleted one.",
    )
    parser.add_argument("--methods", metavar="A,B", help="these alone; all that may be deleted otherwise")
    parser.add_argument("--together", action="store_true", help="delete them from one copy: one run, not many")
    parser.add_argument("--tests", nargs="+", default=[], metavar="PATH", help="run these instead, for instance: tests")
    parser.add_argument("--slow", action="store_true", help="run tests that are marked slow, too")
    parser.add_argument("--verbose", action="store_true", help="show pytest's whole output after a failure")
    parser.add_argument("--list", action="store_true", help="list which methods may be deleted, and why others may not")
    options = parser.parse_args()
    if options.list:
        for name in methods():
            why = KEPT.get(name) or ("others build on it" if name in bases() else "may be deleted")
            print(f"{name:<24}{why}")
        return 0
    known = deletable()
    names = options.methods.split(",") if options.methods else known
    unknown = [name for name in names if name not in known]
    if unknown:
        parser.error(f"{', '.join(unknown)}: expected some of {', '.join(known)}")
    runs = [names] if options.together else [[name] for name in names]
    passed = [without(each, options.tests, slow=options.slow, verbose=options.verbose) for each in runs]
    print(f"{sum(passed)} of {len(passed)} copies pass")
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
