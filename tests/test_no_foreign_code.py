"""The package's source does not unpickle, evaluate text, or unpack an archive without checks (faults 30, 36)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for room in ("samfed_monai", "benchmarks", "bundles") for path in (ROOT / room).rglob("*.py"))

UNPICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml", "pandas"}
"""``yaml`` can build any object, ``pandas`` reads pickles; neither is needed here."""

EVALUATORS = {"eval", "exec", "compile", "__import__", "execfile"}

ARCHIVES = {
    "samfed_monai/data/archives.py": "tests/data/test_archives.py",
    "samfed_monai/networks/weights.py": "tests/networks/test_weights.py",
}
"""The two modules that open archives, and the tests that extraction stays in its folder."""
WRITES_ONE = "samfed_monai/inference/app.py"
"""The module that writes an archive of its own masks and opens none."""


def faults(source: str, place: str = "somewhere.py") -> list[str]:
    """Forbidden operations in a source."""
    return [f"{place}, line {node.lineno}: {found}" for node, found in _findings(ast.parse(source), place)]


def _findings(tree: ast.AST, place: str) -> Iterator[tuple[ast.AST, str]]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            for name in (name.partition(".")[0] for name in names):
                if name in UNPICKLERS or (name in {"tarfile", "zipfile"} and place not in {*ARCHIVES, WRITES_ONE}):
                    yield node, f"imports {name}"
            if isinstance(node, ast.ImportFrom) and node.module == "torch" and "load" in {a.name for a in node.names}:
                yield node, "imports torch.load under a name of its own"
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if called in EVALUATORS | {"os.system", "os.popen"}:
                yield node, f"calls {called}"
            if called == "torch.load" and given.get("weights_only") != "True":
                yield node, "torch.load without weights_only=True"
            if "allow_pickle" in given or given.get("weights_only") == "False" or given.get("shell") == "True":
                yield node, f"{called} with allow_pickle, weights_only=False or shell=True"
            if called.endswith(("extractall", "unpack_archive")) and place not in ARCHIVES:
                yield node, f"calls {called}"
        elif isinstance(node, ast.Attribute) and node.attr in {"Unpickler", "UnsafeLoader", "unsafe_load"}:
            yield node, f"names {node.attr}"


def test_fault_36_package_never_unpickles_or_evaluates():
    assert len(SOURCES) > 200
    assert [fault for path in SOURCES for fault in faults(path.read_text(), path.relative_to(ROOT).as_posix())] == []


@pytest.mark.parametrize(
    "source",
    [
        *("import pickle", "from joblib import load", "import yaml", "def f():\n    import dill", "import zipfile"),
        "from torch import load",
        *("eval('1')", "exec(x)", "__import__('os')", "compile(x, 'a', 'exec')", "os.system('x')"),
        *("torch.load(p)", "torch.load(p, weights_only=False)", "torch.load(p, weights_only=flag)"),
        *("np.load(p, allow_pickle=True)", "archive.extractall(p)", "shutil.unpack_archive(p)", "pd.Unpickler(p)"),
        "subprocess.run(x, shell=True)",
    ],
)
def test_forbidden_source_is_found(source):
    assert len(faults(source)) >= 1


@pytest.mark.parametrize(
    "source", ["network.eval()", "torch.load(p, weights_only=True)", "re.compile('x')", "json.load(f)"]
)
def test_allowed_source_is_not_reported(source):
    assert faults(source) == []


def test_fault_30_archive_modules_have_extraction_tests():
    for place, test in ARCHIVES.items():
        assert (ROOT / place).is_file()
        assert "def test_fault_30_" in (ROOT / test).read_text(), test
