"""``samfed check --strict``: a whole bundle, every JSON file and every other file in it."""

from __future__ import annotations

from pathlib import Path

from samfed_monai.config.strict import strict_problems
from samfed_monai.config.strict_files import strict_files
from samfed_monai.errors import Problem, Refused
from samfed_monai.io import read_json


def strict_bundle_problems(bundle_root: str | Path) -> list[Problem]:
    """Everything in a bundle's folder that is, names or could become code; nothing is evaluated or built.

    Every ``.json`` file is looked at, whatever its folder and its letter case, those that no workflow names as well:
    MONAI reads any file it is given. Outside ``configs/`` one that holds no object is no configuration, and passes. It
    adds to :func:`samfed_monai.config.check_bundle` and does not repeat it.

    Args:
        bundle_root: folder that holds ``configs/``.
    """
    root = Path(bundle_root)
    problems = dict.fromkeys(strict_files(root))
    for path in sorted(path for path in root.rglob("*") if path.is_file() and path.name.lower().endswith(".json")):
        problems |= dict.fromkeys(_of_file(path, path.relative_to(root)))
    return list(problems)


def _of_file(path: Path, name: Path) -> list[Problem]:
    configs = name.parts[0] == "configs"
    try:
        content = read_json(path, byte_order_mark=not configs)
    except Refused as refused:
        return refused.problems
    if not (configs or isinstance(content, dict)):
        return []
    return strict_problems(content, (name.relative_to("configs") if configs else name).as_posix(), file=True)
