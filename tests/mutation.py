"""Changes single tokens of the package, one at a time in a copy, and prints the changes that no test notices.

Each change is tried with the test files of its module. docs/mutation.md has the figures, and the survivors that are
known with their reasons.
"""

from __future__ import annotations

import argparse
import ast
import compileall
import contextlib
import copy
import functools
import importlib
import itertools
import multiprocessing
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from py_compile import PycInvalidationMode
from typing import Any, NamedTuple, cast

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.delete_methods import copy_of  # noqa: E402

PACKAGE = "samfed_monai"
#: Seconds of a processor that the tests of one change may take together, and after which one of them hangs.
ALL_TESTS, ONE_TEST = 30, 20
#: Seconds after which they hang, whatever they wait for.
WAIT = 600
#: What takes long to import, and is not changed.
_LOADED = ("monai.bundle", "monai.engines", "monai.losses", "monai.networks.nets", "monai.transforms", "torch._dynamo")
#: Test files of a module, those that name it most.
FILES = 4

_INSTEAD: dict[type[ast.AST], type[ast.AST]] = {
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq},
    **{ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And},
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult},
    **{ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.USub: ast.UAdd},
}
#: What is not changed: messages, types, and what a type checker or ruff alone reads.
_UNREAD = re.compile(r"(logger|logging|warnings)\.|\w*(Error|Problem|cast|TypeVar)$")


class Change(NamedTuple):
    """One change.

    Args:
        path: of the file, from the root of the repository.
        before: the expression as it is.
        after: the expression in its place.
    """

    path: str
    before: ast.expr
    after: ast.expr

    def __str__(self) -> str:
        return f"{self.path}:{self.before.lineno}: {ast.unparse(self.before)}  ->  {ast.unparse(self.after)}"

    @property
    def room(self) -> str:
        """The folder of the package that the file is in."""
        return Path(self.path).parts[1]

    def applied(self, source: bytes) -> bytes:
        """The file with the change."""
        lines = [0, *itertools.accumulate(map(len, source.splitlines(keepends=True)))]
        begin = lines[self.before.lineno - 1] + self.before.col_offset
        end = lines[(self.before.end_lineno or 0) - 1] + (self.before.end_col_offset or 0)
        return b"%s(%s)%s" % (source[:begin], ast.unparse(self.after).encode(), source[end:])


def changed(node: ast.AST) -> Iterator[ast.expr]:
    """The expressions that differ from this one in a single token or argument."""
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
            if gone.arg not in {None, "strict", "encoding"}:
                yield _with(node, keywords=[each for each in node.keywords if each is not gone])


def _with(node: Any, **fields: Any) -> Any:
    other = copy.copy(node)
    for name, value in fields.items():
        setattr(other, name, value)
    return other


def _read(node: ast.AST) -> Iterator[ast.AST]:
    """A node and what is in it, without annotations, texts, messages of errors, and lines of logs."""
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
    """Every change of a file."""
    for node in _read(ast.parse(path.read_bytes())):
        for other in changed(node):
            yield Change(path.relative_to(ROOT).as_posix(), cast(ast.expr, node), other)


def files_of(path: str) -> list[str]:
    """The test files of a module: the one of its name, then those that name most often what it defines.

    Args:
        path: of the module, from the root.
    """
    module = Path(path)
    kinds = (ast.ClassDef, ast.FunctionDef)
    defined = [node.name for node in ast.parse((ROOT / module).read_bytes()).body if isinstance(node, kinds)]
    names = [module.stem, *(name for name in defined if not name.startswith("_"))]
    rank = {}
    for test, words in _test_files().items():
        there, own = Path(test).parts[1] == module.parts[1], Path(test).stem == f"test_{module.stem}"
        if (count := sum(words[name] for name in names)) or own:
            rank[test] = (there and own, there, count)
    return sorted(rank, key=rank.__getitem__, reverse=True)[:FILES]


@functools.cache
def _test_files() -> dict[str, Counter[str]]:
    """How often each word is in each test file."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return {
        file.relative_to(ROOT).as_posix(): Counter(re.findall(r"\w+", file.read_text(encoding="utf-8")))
        for file in files
    }


class _Limits:
    """Ends a test that hangs and a run that takes long, and says which test failed."""

    def __init__(self, failed: Any) -> None:
        self.failed = failed
        self.end = time.process_time() + ALL_TESTS

    def pytest_runtest_logstart(self) -> None:
        signal.setitimer(signal.ITIMER_PROF, ONE_TEST)  # its signal ends the process

    def pytest_runtest_logreport(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.failed:
            self.failed.put(report.nodeid)

    pytest_collectreport = pytest_runtest_logreport

    @pytest.hookimpl(trylast=True)
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
    arguments = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow", *tests]
    code = pytest.main(arguments, plugins=[_Limits(failed)])
    os._exit(code)


def outcome(folder: Path, tests: list[str]) -> tuple[int, str | None]:
    """Runs tests in a process of its own, forked from this one, which has imported what takes long.

    Returns:
        the exit code, negative if a signal ended it, and the test that failed if one did.
    """
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
    """Whether a test fails with a change that passes without it.

    Args:
        change: what is changed.
        folder: a copy of the repository.
        tests: files that are run.
        sound: tests that failed, and whether they pass without a change; what is found is added.
    """
    file = folder / change.path
    source = file.read_bytes()
    skipped = [part for test, passes in sound.items() if not passes for part in ("--deselect", test)]
    try:
        file.write_bytes(change.applied(source))
        code, failed = outcome(folder, [*tests, *skipped])
    finally:
        file.write_bytes(source)
    if failed is not None and failed not in sound:
        sound[failed] = outcome(folder, [failed])[0] == 0
        if not sound[failed]:
            print(f"not counted, for it fails without a change: {failed}", flush=True)
            return noticed(change, folder, tests, sound)
    unnoticed = {pytest.ExitCode.OK, pytest.ExitCode.INTERRUPTED, pytest.ExitCode.NO_TESTS_COLLECTED}
    return failed is not None or code not in unnoticed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rooms", help="folders of the package, for instance losses,privacy (default: all)")
    parser.add_argument("--sample", type=int, default=200, help="how many changes, of all rooms together")
    parser.add_argument("--seed", type=int, default=0, help="which ones: the same seed draws the same of the same code")
    options = parser.parse_args()
    rooms = sorted(path.name for path in (ROOT / PACKAGE).iterdir() if (path / "__init__.py").is_file())
    chosen = options.rooms.split(",") if options.rooms else rooms
    if unknown := sorted(set(chosen) - set(rooms)):
        parser.error(f"--rooms: {', '.join(unknown)}; choose of {', '.join(rooms)}")
    files = [path for room in chosen for path in sorted((ROOT / PACKAGE / room).rglob("*.py"))]
    every = [change for path in files for change in changes_of(path)]
    drawn = random.Random(options.seed).sample(every, min(options.sample, len(every)))
    tests = {change.path: files_of(change.path) for change in drawn}
    for module in _LOADED:
        importlib.import_module(module)
    survivors: Counter[str] = Counter()
    sound: dict[str, bool] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_of(folder)
        compileall.compile_dir(folder / PACKAGE, quiet=1, invalidation_mode=PycInvalidationMode.CHECKED_HASH)
        for change in drawn:
            seen = noticed(change, folder, tests[change.path], sound)
            survivors[change.room] += not seen
            print(f"{'noticed' if seen else 'SURVIVES'}: {change}", flush=True)
    for room, count in sorted(Counter(change.room for change in drawn).items()):
        print(f"{room}: {count - survivors[room]} of {count} changes noticed")
    share = 1 - survivors.total() / max(1, len(drawn))
    print(f"all: {100 * share:.1f} % of {len(drawn)} of {len(every)} changes noticed")
    sys.exit(0 if share >= 0.95 else 1)


if __name__ == "__main__":
    main()
