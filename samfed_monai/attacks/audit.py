"""All attacks by name, and the audit of a run: ``audit.json``, ``audit.html``, pictures, written after each attack."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samfed_monai.core.errors import Problems, did_you_mean, refused
from samfed_monai.core.io import read_json, require_writable, write_bytes, write_json, write_page

if TYPE_CHECKING:
    from samfed_monai.attacks.finding import Finding, Options
    from samfed_monai.attacks.target import Target

logger = logging.getLogger(__name__)

ATTACKS = {
    "membership": "was an image in the training set? by its loss",
    "lira": "the same, by shadow models (slow)",
    "inversion": "image reconstruction from a gradient or an update",
    "planted": "a layer planted by the server, and the defences against it",
}
"""Name to a few words for the command line's help; ``attack_NAME(target, options)`` is in the module of that name."""

ALL = "all"
PAGE, NUMBERS, SHADOWS = "audit.html", "audit.json", "shadows"


def named(words: str) -> list[str]:
    """The attacks of a comma-separated list, each once, in the order of :data:`ATTACKS`; ``all`` is every one.

    Raises:
        Refused: a name that is none; all of them are listed.
    """
    asked = [word.strip() for word in words.split(",") if word.strip()]
    problems, known = Problems(), [*ATTACKS, ALL]
    for word in asked or [""]:
        if word not in known:
            found = repr(word) if word else "no name"
            problems.add("--attack", found=found, expected=f"one of {', '.join(known)}", hint=did_you_mean(word, known))
    problems.refuse_if_any()
    return [name for name in ATTACKS if name in asked or ALL in asked]


def run_audit(target: Target, names: Sequence[str], options: Options, folder: str | Path) -> Path:
    """Runs attacks and writes what each found as soon as it is done; findings of earlier calls stay.

    Args:
        target: what is attacked.
        names: of :data:`ATTACKS`.
        options: how much work.
        folder: for the page, the numbers, the pictures and the shadow models' losses.

    Returns:
        the page.

    Raises:
        Refused: by one of the attacks; those before it are written.
    """
    folder = Path(folder)
    require_writable(folder)
    for number, name in enumerate(names, start=1):
        logger.info("attack %d of %d: %s", number, len(names), name)
        attack = getattr(importlib.import_module(f"samfed_monai.attacks.{name}"), f"attack_{name}")
        finding = attack(target, options, folder / SHADOWS) if name == "lira" else attack(target, options)
        write_finding(folder, target, options, finding)
    return folder / PAGE


def write_finding(folder: Path, target: Target, options: Options, finding: Finding) -> None:
    """Puts a finding into the folder's numbers and page, in place of an earlier one of the same attack."""
    path = folder / NUMBERS
    content: dict[str, Any] = read_json(path) if path.is_file() else {}
    about = dict(target.about or {})
    if content.get("about") != about:
        content = {"schema": 1, "about": about, "findings": []}
    given = {key: value for key, value in asdict(options).items() if key != "bar"}
    found = {each["attack"]: each for each in content["findings"]} | {
        finding.attack: {**finding.to_json(), "options": given}
    }
    content["findings"] = [found[name] for name in ATTACKS if name in found]
    for shown in finding.shown:
        write_bytes(folder / f"{shown.name}.png", shown.png())
    write_json(path, content)
    write_page(folder / PAGE, page(content, folder))


def page(content: dict[str, Any], folder: Path) -> str:
    """The findings as one self-contained HTML page; everything that comes from the run is escaped."""
    from samfed_monai.reports.style import PRIVACY, data_url, environment

    pictures = {
        each["file"]: data_url((folder / each["file"]).read_bytes())
        for finding in content["findings"]
        for each in finding["pictures"]
        if (folder / each["file"]).is_file()
    }
    template = environment().get_template("audit.html.j2")
    return template.render(**content, urls=pictures, cell=as_cell, caveat=PRIVACY)


def as_cell(value: Any) -> str:
    """A value of a row as a reader sees it."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return " to ".join(as_cell(each) for each in value)
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 1 else f"{value:.1f}"
    return str(value)


def as_text(content: dict[str, Any]) -> str:
    """The verdicts of every finding as plain lines for a terminal."""
    lines = []
    for finding in content["findings"]:
        lines += [finding["title"], *(f"  - {sentence}" for sentence in finding["verdict"]), ""]
    return "\n".join(lines)


def require_folder(path: str | Path) -> Path:
    """The run's folder.

    Raises:
        Refused: it is none.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise refused(str(path), found="no such folder", expected="the folder of a finished run")
    return folder
