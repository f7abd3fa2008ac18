"""Changes single tokens of the package, one at a time in a copy, and prints the changes that no test notices.

A run of the suite under coverage records which tests reach which lines; each change is tried with the tests of its own
line. docs/mutation.md has the results, and the known survivors with reasons.
"""

from __future__ import annotations

import argparse
import ast
import compileall
import contextlib
import copy
import importlib
import itertools
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from py_compile import PycInvalidationMode
from typing import Any, NamedTuple, cast

import pytest
from coverage import CoverageData

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.delete_methods import copy_of  # noqa: E402

PACKAGE = "samfed_monai"
#: Processor time in seconds for all tests of one change, and for a single test, which is then regarded as hanging.
ALL_TESTS, ONE_TEST = 25, 60
#: Wall time in seconds after which the tests are regarded as hanging.
WAIT = 200
#: Modules that take long to import, and are not changed.
_LOADED = ("monai.bundle", "monai.engines", "monai.losses", "monai.networks.nets", "monai.transforms", "torch._dynamo")
#: Maximum number of tests for one change, and number of those that run first, which notice most changes.
TESTS, CLOSEST = 300, 30
#: Coverage file of the suite.
COVERAGE = Path("build") / "mutation.coverage"

_INSTEAD: dict[type[ast.AST], type[ast.AST]] = {
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq},
    **{ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And},
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult},
    **{ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.USub: ast.UAdd},
}
#: Arguments that are not left out: they only affect texts, or nothing on Linux.
_NOT_LEFT_OUT = {None, "strict", "encoding", "help", "metavar", "desc", "unit"}
#: Calls that are not changed: messages, types, and those for a type checker or ruff only.
_UNREAD = re.compile(r"(logger|logging|warnings)\.|\w*(Error|Problem|cast|TypeVar)$")


class Change(NamedTuple):
    """One change.

    Args:
        path: path of the file, relative to the repository.
        before: the original expression.
        after: the changed expression.
        body: first and last line of the body of the function that contains it, if any.
    """

    path: str
    before: ast.expr
    after: ast.expr
    body: tuple[int, int] | None = None

    def __str__(self) -> str:
        return f"{self.path}:{self.before.lineno}: {ast.unparse(self.before)}  ->  {ast.unparse(self.after)}"

    @property
    def room(self) -> str:
        """The file's folder in the package."""
        return Path(self.path).parts[1]

    @property
    def scopes(self) -> list[tuple[int, int]]:
        """Line ranges that tests must reach to notice the change: its own, or else those of its function."""
        if self.body is None:
            return []
        return [(self.before.lineno, self.before.end_lineno or self.before.lineno), self.body]

    def applied(self, source: bytes) -> bytes:
        """The file with the change."""
        lines = [0, *itertools.accumulate(map(len, source.splitlines(keepends=True)))]
        begin = lines[self.before.lineno - 1] + self.before.col_offset
        end = lines[(self.before.end_lineno or 0) - 1] + (self.before.end_col_offset or 0)
        return b"%s(%s)%s" % (source[:begin], ast.unparse(self.after).encode(), source[end:])


def changed(node: ast.AST) -> Iterator[ast.expr]:
    """Yields the expressions that differ from this one in a single token or argument."""
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield ast.Constant(node.value + 1)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield node.operand
    elif isinstance(node, ast.BoolOp | ast.BinOp | ast.UnaryOp) and type(node.op) in _INSTEAD:
        texts = [part for part in ast.walk(node) if isinstance(part, ast.JoinedStr)]
        texts += [part for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str)]
        if not isinstance(node, ast.BinOp) or not texts:
            yield _with(node, op=_INSTEAD[type(node.op)]())
    elif isinstance(node, ast.Compare) and len(node.ops) == 1:
        yield _with(node, ops=[_INSTEAD[type(node.ops[0])]()])
    elif isinstance(node, ast.Call):
        for gone in node.keywords:
            if gone.arg not in _NOT_LEFT_OUT:
                yield _with(node, keywords=[each for each in node.keywords if each is not gone])


def _with(node: Any, **fields: Any) -> Any:
    other = copy.copy(node)
    for name, value in fields.items():
        setattr(other, name, value)
    return other


def _read(node: ast.AST) -> Iterator[ast.AST]:
    """Yields a node and its descendants, without annotations, texts, error messages and log lines."""
    if isinstance(node, ast.JoinedStr | ast.Raise):
        return
    if isinstance(node, ast.Call) and _UNREAD.match(ast.unparse(node.func)):
        return
    yield node
    for name, value in ast.iter_fields(node):
        if name not in {"annotation", "returns", "decorator_list"}:
            for part in value if isinstance(value, list) else [value]:
                if isinstance(part, ast.AST):
                    yield from _read(part)


def changes_of(path: Path) -> Iterator[Change]:
    """Yields all changes of a file."""
    tree = ast.parse(path.read_bytes())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    bodies = [(node.body[0].lineno, node.end_lineno or 0) for node in functions]
    for node in _read(tree):
        for other in changed(node):
            line = cast(ast.expr, node).lineno
            body = max([body for body in bodies if body[0] <= line <= body[1]], default=None)  # the innermost
            yield Change(path.relative_to(ROOT).as_posix(), cast(ast.expr, node), other, body)


class Reached:
    """Tests by the lines that they reach, from a coverage file of the suite with a context for each test."""

    def __init__(self, coverage: Path) -> None:
        data = CoverageData(str(coverage))
        data.read()
        self.lines: dict[str, dict[int, set[str]]] = {}
        for file in sorted(data.measured_files()):
            by_line = {line: {_test(x) for x in names if x} for line, names in data.contexts_by_lineno(file).items()}
            self.lines[file[file.rindex(f"{PACKAGE}/") :]] = by_line
        #: Number of lines that a test reaches; a test with few lines is more specific.
        self.width = Counter(test for lines in self.lines.values() for tests in lines.values() for test in tests)

    def tests(self, change: Change) -> list[str]:
        """Tests that reach a change, and whole files if a shared fixture reaches it, the closest first.

        For a line that is executed on import (a constant, a default) or that no test reaches in this process, all tests
        of its function or file are used.
        """
        lines = self.lines.get(change.path, {})
        for first, last in change.scopes:
            found = set().union(*(tests for line, tests in lines.items() if first <= line <= last))
            if found:
                break
        else:
            found = {test for tests in lines.values() for test in tests}
        module = Path(change.path)

        def distance(test: str) -> tuple[bool, bool, int]:
            file = Path(test.partition("::")[0])
            return file.stem != f"test_{module.stem}", file.parts[1] != module.parts[1], self.width[test]

        return sorted(found, key=distance)[:TESTS]


def _test(context: str) -> str:
    """The test of a context; its file if a fixture was running, since other tests may share its result."""
    test, _, phase = context.rpartition("|")
    test = re.sub(r"@(\w+|/.*\.py)$", "", test)  # the group that xdist adds
    return test if phase == "run" else test.partition("::")[0]


class _Tests:
    """Runs tests in the given order, those marked slow last, and stops hanging tests and long runs.

    Args:
        tests: ids of tests, and files to run as a whole.
        failed: queue for the ids of failed tests.
    """

    def __init__(self, tests: list[str], failed: Any) -> None:
        self.place = {test: place for place, test in enumerate(tests)}
        self.failed = failed
        self.end = time.process_time() + ALL_TESTS

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        def places(item: pytest.Item) -> list[int]:
            names = (item.nodeid, item.nodeid.partition("::")[0])
            return [self.place[name] for name in names if name in self.place]

        chosen = [item for item in items if places(item)]
        items[:] = sorted(chosen, key=lambda item: (item.get_closest_marker("slow") is not None, min(places(item))))

    def pytest_runtest_logstart(self) -> None:
        signal.setitimer(signal.ITIMER_PROF, ONE_TEST)  # its signal ends the process

    def pytest_runtest_logreport(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.failed:
            self.failed.put(report.nodeid)

    pytest_collectreport = pytest_runtest_logreport

    @pytest.hookimpl(tryfirst=True)  # before pytest's own, which runs the test and ends the call
    def pytest_runtest_protocol(self, item: pytest.Item) -> None:
        if time.process_time() > self.end:
            item.session.shouldstop = "the time of a change is over"


def _run(folder: Path, tests: list[str], failed: Any) -> None:
    os.setsid()
    os.chdir(folder)
    sys.path[:] = [str(folder), *(each for each in sys.path if each and Path(each) != ROOT)]
    os.environ["PYTHONPATH"] = str(folder)
    for name in [name for name in sys.modules if name.split(".")[0] in {PACKAGE, "tests"}]:
        del sys.modules[name]
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    os.dup2(sys.stdout.fileno(), 1), os.dup2(sys.stdout.fileno(), 2)
    files = dict.fromkeys(test.partition("::")[0] for test in tests)
    os._exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *files], plugins=[_Tests(tests, failed)]))


def outcome(folder: Path, tests: list[str]) -> tuple[int, str | None]:
    """Runs tests, or files of them, in a process forked from this one, which has done the long imports.

    Returns:
        the exit code, negative if a signal ended the process, and the failed test, if any.
    """
    if not tests:
        return pytest.ExitCode.NO_TESTS_COLLECTED, None
    forked = multiprocessing.get_context("fork")
    failed = forked.SimpleQueue()
    process = forked.Process(target=_run, args=(folder, tests, failed))
    process.start()
    process.join(WAIT)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid or 0, signal.SIGKILL)  # with the processes that the tests started
    process.join()
    return process.exitcode or 0, None if failed.empty() else failed.get()


def noticed(change: Change, folder: Path, tests: list[str], sound: dict[str, bool]) -> bool:
    """Whether a test that passes without a change fails with it.

    Args:
        change: the change.
        folder: a copy of the repository.
        tests: the tests that reach it.
        sound: failed tests, and whether they pass without a change; new results are added.
    """
    file = folder / change.path
    source = file.read_bytes()
    for some in (tests[:CLOSEST], tests[CLOSEST:]):
        try:
            file.write_bytes(change.applied(source))
            code, failed = outcome(folder, [test for test in some if sound.get(test, True)])
        finally:
            file.write_bytes(source)
        if failed is not None and failed not in sound:
            sound[failed] = outcome(folder, [failed])[0] == 0
            if not sound[failed]:
                print(f"not counted, for it fails without a change: {failed}", flush=True)
                return noticed(change, folder, tests, sound)
        unnoticed = {pytest.ExitCode.OK, pytest.ExitCode.INTERRUPTED, pytest.ExitCode.NO_TESTS_COLLECTED}
        if failed is not None or code not in unnoticed:
            return True
    return False


def covered() -> Path:
    """Runs the suite under coverage, except the FLARE tests with their own processes; returns the coverage file."""
    print("the suite runs once under coverage", flush=True)
    COVERAGE.parent.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "loadgroup", "--ignore", "tests/flare"]
    command += [f"--cov={PACKAGE}", "--cov-context=test", "--cov-report="]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "COVERAGE_FILE": str(ROOT / COVERAGE)}, check=True)
    return ROOT / COVERAGE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rooms", help="folders of the package, for instance losses,privacy (default: all)")
    parser.add_argument("--sample", type=int, default=200, help="how many changes, of all rooms together")
    parser.add_argument("--seed", type=int, default=0, help="which ones: the same seed draws the same of the same code")
    parser.add_argument("--coverage", type=Path, help=f"of an earlier call on the same code: {COVERAGE}")
    options = parser.parse_args()
    rooms = sorted(path.name for path in (ROOT / PACKAGE).iterdir() if (path / "__init__.py").is_file())
    chosen = options.rooms.split(",") if options.rooms else rooms
    if unknown := sorted(set(chosen) - set(rooms)):
        parser.error(f"--rooms: {', '.join(unknown)}; choose of {', '.join(rooms)}")
    files = [path for room in chosen for path in sorted((ROOT / PACKAGE / room).rglob("*.py"))]
    every = [change for path in files for change in changes_of(path)]
    drawn = random.Random(options.seed).sample(every, min(options.sample, len(every)))
    reached = Reached(options.coverage or covered())
    for module in _LOADED:
        importlib.import_module(module)
    survivors: Counter[str] = Counter()
    sound: dict[str, bool] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_of(folder)
        compileall.compile_dir(folder / PACKAGE, quiet=1, invalidation_mode=PycInvalidationMode.CHECKED_HASH)
        for change in drawn:
            seen = noticed(change, folder, reached.tests(change), sound)
            survivors[change.room] += not seen
            print(f"{'noticed' if seen else 'SURVIVES'}: {change}", flush=True)
    for room, count in sorted(Counter(change.room for change in drawn).items()):
        print(f"{room}: {count - survivors[room]} of {count} changes noticed")
    share = 1 - survivors.total() / max(1, len(drawn))
    print(f"all: {100 * share:.1f} % of {len(drawn)} of {len(every)} changes noticed")
    sys.exit(0 if share >= 0.95 else 1)


if __name__ == "__main__":
    main()
