"""``samfed init`` and ``samfed new``: copy a packaged bundle, or write a package with a method, term or network."""

from __future__ import annotations

import argparse
import importlib.util
import keyword
import re
import shlex
import shutil
import sys
from pathlib import Path

from samfed_monai import __version__
from samfed_monai.cli.arguments import add_command
from samfed_monai.config.bundles import packaged_bundle
from samfed_monai.core.errors import Problems
from samfed_monai.core.io import absent, atomic_folder
from samfed_monai.core.validators import require

KINDS = ("method", "term", "network")
_TEMPLATES = Path(__file__).parent / "templates"
_LONGEST = 40  # characters of a name, which is used for files and folders


def add_new_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds ``samfed new method|term|network NAME [--output-dir DIR]``."""
    parser = add_command(subparsers, "new", run=run)
    parser.add_argument("kind", metavar="KIND", choices=KINDS, help=", ".join(KINDS))
    parser.add_argument("name", metavar="NAME", help="lower-case letters, digits and _, for instance equal_mean")
    parser.add_argument("--output-dir", metavar="DIR", help="new folder for the package (default: ./samfed-NAME)")


def run(arguments: argparse.Namespace) -> None:
    """Writes the package and prints the next commands."""
    folder = new_package(arguments.kind, arguments.name, arguments.output_dir)
    quoted = shlex.quote(str(folder))
    try_it = {
        "method": f"samfed check samfed_skin --variant {arguments.name}",
        "network": f"samfed check samfed_skin --workflow train --network_name {arguments.name}",
        "term": "its README shows the lines that turn it on",
    }
    sys.stdout.write(f"{folder}\n  install:  pip install -e {quoted}\n")
    sys.stdout.write(f"  test:     python -m pytest {quoted}\n  try:      {try_it[arguments.kind]}\n")


def new_package(kind: str, name: str, folder: str | Path | None = None) -> Path:
    """Writes a package; its folder is complete or not created.

    Args:
        kind: one of :data:`KINDS`.
        name: name of the method, term or network; the package is ``samfed_<name>``.
        folder: new folder for it; ``None``: ``samfed-<name>`` in the current one.

    Raises:
        Refused: the name is invalid or taken; the folder exists.
    """
    import jinja2

    package, joined = f"samfed_{name}", "".join(word.capitalize() for word in name.split("_"))
    variables = {
        "kind": kind,
        "name": name,
        "package": package,
        "distribution": f"samfed-{name.replace('_', '-')}",
        "object": {"network": f"build_{name}", "term": f"{joined}Term", "method": joined}[kind],
        "version": __version__,
    }
    target = Path(folder or variables["distribution"]).expanduser().absolute()
    _check_name(kind, name, package, target)
    files = {
        "pyproject.toml": "new_pyproject.toml.j2",
        "README.md": "new_readme.md.j2",
        f"{package}/{name}.py": f"new_{kind}.py.j2",
        f"tests/test_{name}.py": f"new_{kind}_test.py.j2",
        **({f"{package}/{name}.json": "new_method.json.j2"} if kind == "method" else {}),
    }
    loader = jinja2.FileSystemLoader(_TEMPLATES)
    templates = jinja2.Environment(loader=loader, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    with atomic_folder(target) as temporary:
        for path, template in files.items():
            (temporary / path).parent.mkdir(exist_ok=True)
            (temporary / path).write_text(templates.get_template(template).render(variables), encoding="utf-8")
        (temporary / package / "__init__.py").write_text(f'"""A {kind} for samfed-monai."""\n', encoding="utf-8")
    return target


def _check_name(kind: str, name: str, package: str, target: Path) -> None:
    """Refuses a name that Python, pip or bundles do not allow, or that is taken."""
    from samfed_monai.config.targets import entry_points_of
    from samfed_monai.config.variants import known_variants
    from samfed_monai.networks import CLIENT_NETWORKS

    problems = Problems()
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) or len(name) > _LONGEST or keyword.iskeyword(name):
        words = re.findall(r"[a-z0-9]+", re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name).casefold())
        proposal = "_".join(words)[:_LONGEST].strip("_").lstrip("0123456789_")
        is_valid = bool(proposal) and proposal != name and not keyword.iskeyword(proposal)
        expected = f"at most {_LONGEST} lower-case letters, digits and _, with a letter first, and no Python keyword"
        hint = f"type samfed new {kind} {proposal}" if is_valid else f"for instance samfed new {kind} my_{kind}"
        problems.add("NAME", found=repr(name), expected=expected, hint=hint)
    problems.refuse_if_any()
    entry_points = entry_points_of(f"{kind}s")
    builtin = known_variants() if kind == "method" else CLIENT_NETWORKS if kind == "network" else ()
    taken = name in {*builtin, *entry_points.points, *entry_points.broken}
    if taken or importlib.util.find_spec(package) is not None:
        found = f"{name!r}, a {kind} that is installed" if taken else f"{package}, a package that is installed"
        problems.add("NAME", found=found, expected="a new name", hint=f"for instance samfed new {kind} my_{name}")
    problems.extend(absent("--output-dir", target))
    problems.refuse_if_any()


_WEIGHTS = shutil.ignore_patterns("*.pt", "*.pth", "*.safetensors")
_OTHERS = shutil.ignore_patterns("__pycache__", "*.pyc", "eval")


def add_init_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds ``samfed init NAME DIR``."""
    parser = add_command(subparsers, "init", run=run_init)
    parser.add_argument("name", metavar="NAME", help="a packaged bundle, for instance samfed_skin")
    parser.add_argument("folder", metavar="DIR", help="new folder for the copy")


def run_init(arguments: argparse.Namespace) -> None:
    """Copies the bundle and prints its folder."""
    path = copy_bundle(arguments.name, arguments.folder)
    options = f"{path}/configs/train.json and federate.json, explained in the package's docs/options.md"
    sys.stdout.write(f"{path}\n  options: {options}\n  check:  samfed check {shlex.quote(str(path))}\n")


def copy_bundle(name: str, folder: str | Path) -> Path:
    """Copies a packaged bundle; the folder is complete or not created.

    Raises:
        Refused: an unknown bundle, or the folder exists.
    """
    source = packaged_bundle(name)
    target = Path(folder).expanduser().absolute()
    require(absent("DIR", target))
    with atomic_folder(target) as temporary:
        shutil.copytree(source, temporary, ignore=_ignored_files, dirs_exist_ok=True)
        (temporary / "models").mkdir(exist_ok=True)
    return target


def _ignored_files(folder: str, names: list[str]) -> set[str]:
    shipped = {"model.pt"} if Path(folder).name == "models" else set()  # others were put there by `samfed weights`
    return _WEIGHTS(folder, names) - shipped | _OTHERS(folder, names)
