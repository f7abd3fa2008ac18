"""``samfed check --strict``: a whole bundle, every JSON file and every other file in it."""

from __future__ import annotations

from pathlib import Path

from samfed_monai.config.strict import strict_problems
from samfed_monai.config.strict_files import strict_files
from samfed_monai.errors import Problem, Refused
from samfed_monai.io import read_json


def strict_bundle_problems(bundle_root: str | Path) -> list[Problem]:
    """Everything in a bundle's folder that is, names or could become code; nothing is evaluated or built.

    Every ``.json`` file is looked at, those that no workflow names as well: MONAI reads any file it is given. It adds
    to :func:`samfed_monai.config.check_bundle` and does not repeat it.

    Args:
        bundle_root: folder that holds ``configs/``.
    """
    root = Path(bundle_root)
    problems = dict.fromkeys(strict_files(root))
    for path in sorted((root / "configs").rglob("*.json")):
        problems |= dict.fromkeys(_of_file(path, path.relative_to(root / "configs").as_posix()))
    return list(problems)


def _of_file(path: Path, name: str) -> list[Problem]:
    try:
        return strict_problems(read_json(path), name, file=True)
    except Refused as refused:
        return refused.problems
