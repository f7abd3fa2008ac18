"""What a bundle consists of, for platforms that govern what they run: components, packages, files, hashes, licences."""

from __future__ import annotations

import importlib.metadata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from samfed_monai.config.targets import resolve_target
from samfed_monai.core.io import read_json, sha256_file

_DATA_LICENCE = "docs/data_license.txt"


def inventory(bundle_root: str | Path, variants: Iterable[Path] = ()) -> str:
    """Every module and package that a bundle's ``_target_`` name, and every file with its hash and licence, as text.

    Args:
        bundle_root: folder that holds ``configs/``.
        variants: further files of JSON whose components count, those of a variant for instance.

    Raises:
        Refused: a JSON file that cannot be read, or a component outside the allow-list.
    """
    root = Path(bundle_root)
    files = sorted(path for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    modules: dict[str, set[str]] = defaultdict(set)
    for path in [*(path for path in files if path.suffix == ".json"), *variants]:
        for target in _targets(read_json(path, byte_order_mark=path.parent.name != "configs")):
            found = resolve_target(target, path.name)
            module = getattr(found, "__module__", None) or target.rpartition(".")[0]
            modules[module].add(getattr(found, "__qualname__", target.rpartition(".")[2]))
    packages = sorted({module.partition(".")[0] for module in modules})
    distributions = importlib.metadata.packages_distributions()
    prefixes = [(f"{module}.", ", ".join(sorted(names))) for module, names in sorted(modules.items())]
    installed = [_package(distributions.get(package, [package])[0]) for package in packages]
    listed = [
        (path.relative_to(root).as_posix(), str(path.stat().st_size), sha256_file(path), _licence(path, root))
        for path in files
    ]
    sections = (
        _table(("target prefix", "components"), prefixes),
        _table(("package", "version", "licence"), installed),
        _table(("file", "bytes", "SHA-256", "licence"), listed),
    )
    return "\n\n".join("\n".join(section) for section in sections) + "\n"


def _targets(content: Any) -> Iterator[str]:
    """Every ``_target_`` in a value of JSON."""
    if isinstance(content, dict):
        if isinstance(content.get("_target_"), str):
            yield content["_target_"]
        for value in content.values():
            yield from _targets(value)
    elif isinstance(content, list):
        for value in content:
            yield from _targets(value)


def _package(name: str) -> tuple[str, str, str]:
    """Name, version and licence of an installed package, as its own metadata state them."""
    try:
        metadata = importlib.metadata.metadata(name)
    except importlib.metadata.PackageNotFoundError:
        return name, "not installed as a package", "unknown"
    stated = [text for key in ("License-Expression", "License") for text in metadata.get_all(key) or () if text]
    return metadata["Name"], metadata["Version"], stated[0].strip().partition("\n")[0] if stated else "unknown"


def _licence(path: Path, root: Path) -> str:
    """The licence in the bundle's ``LICENSE``, and for weights the file on the terms of the data behind them."""
    text = root / "LICENSE"
    stated = text.read_text(encoding="utf-8").split() if text.is_file() else []
    apache = stated[:4] == ["Apache", "License", "Version", "2.0,"]
    licence = "Apache-2.0" if apache else "see LICENSE" if stated else "none stated"
    data = path.parent.name == "models" and (root / _DATA_LICENCE).is_file()
    return f"{licence}; data: {_DATA_LICENCE}" if data else licence


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
