"""The attacks, and the audit of a run: ``audit.json``, ``audit.html`` and pictures, written after each attack."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samfed_monai.core.io import read_json, require_writable, write_bytes, write_json, write_page
from samfed_monai.core.validators import one_of, require

if TYPE_CHECKING:
    from samfed_monai.attacks.finding import Finding
    from samfed_monai.attacks.target import Target

logger = logging.getLogger(__name__)

ATTACKS = {
    "membership": "was an image in the training set? (by its loss)",
    "lira": "the same question, answered with shadow models (slow)",
    "inversion": "image reconstruction from a gradient or an update",
    "planted": "a layer planted by the server, and the defences against it",
}
"""Short description by name, for the help; ``attack_NAME(target, options)`` is in the module of that name."""

ALL = "all"
PAGE, NUMBERS, SHADOWS = "audit.html", "audit.json", "shadows"


def _number(default: int, least: int, description: str, *attacks: str) -> Any:
    """A number of :class:`Options` that only ``attacks`` read; without any, all do."""
    return field(default=default, metadata={"least": least, "words": description, "attacks": attacks or (*ATTACKS,)})


@dataclass(frozen=True)
class Options:
    """Options of ``samfed audit --attack``: the amount of work."""

    images: int = _number(64, 1, "maximum number of images per group, chosen by hash")
    shadows: int = _number(16, 16, "number of shadow models of lira, even", "lira")
    shadow_steps: int = _number(200, 0, "optimizer steps of each shadow model", "lira")
    steps: int = _number(200, 1, "steps of a reconstruction", "inversion")
    batch: int = _number(4, 1, "images behind an attacked update", "inversion", "planted")
    seed: int = _number(0, 0, "seed of all random draws")


def named(names: Sequence[str]) -> list[str]:
    """Returns the attacks of these names in the order of :data:`ATTACKS`; ``all`` means every attack.

    Raises:
        Refused: unknown names, all listed.
    """
    require(*(one_of("--attack", name, [*ATTACKS, ALL]) for name in names))
    return [name for name in ATTACKS if name in names or ALL in names]


def run_audit(target: Target, names: Sequence[str], options: Options, folder: str | Path) -> Path:
    """Runs attacks and writes each finding at once; findings of earlier calls on the same target are kept.

    Args:
        target: the target.
        names: names in :data:`ATTACKS`.
        options: amount of work.
        folder: folder for the page, the numbers, the pictures and the shadow models' losses.

    Returns:
        The path of the page.

    Raises:
        Refused: by one of the attacks; the findings of those before it are written.
    """
    folder = Path(folder)
    require_writable(folder / PAGE)
    for number, name in enumerate(names, start=1):
        logger.info("attack %d of %d: %s", number, len(names), name)
        attack = getattr(importlib.import_module(f"samfed_monai.attacks.{name}"), f"attack_{name}")
        finding = attack(target, options, folder / SHADOWS) if name == "lira" else attack(target, options)
        write_finding(folder, target, options, finding)
    return folder / PAGE


def write_finding(folder: Path, target: Target, options: Options, finding: Finding) -> None:
    """Adds a finding to the folder's numbers and page, replacing an earlier one of the same attack."""
    path, about = folder / NUMBERS, dict(target.about)
    content: dict[str, Any] = read_json(path) if path.is_file() else {}
    findings = {each["attack"]: each for each in (content["findings"] if content.get("about") == about else [])}
    findings[finding.attack] = {**finding.to_json(), "options": asdict(options)}
    content = {"schema": 1, "about": about, "findings": [findings[name] for name in ATTACKS if name in findings]}
    for shown in finding.shown:
        write_bytes(folder / f"{shown.name}.png", shown.png())
    write_json(path, content)
    write_page(folder / PAGE, page(content, folder))


def page(content: dict[str, Any], folder: Path) -> str:
    """Returns the findings as a self-contained HTML page; everything that comes from the run is escaped."""
    from samfed_monai.reports.style import PRIVACY, data_url, environment

    pictures = {
        each["file"]: data_url((folder / each["file"]).read_bytes())
        for finding in content["findings"]
        for each in finding["pictures"]
        if (folder / each["file"]).is_file()
    }
    return environment().get_template("audit.html.j2").render(**content, urls=pictures, cell=as_cell, caveat=PRIVACY)


def as_cell(value: Any) -> str:
    """Formats a value of a row."""
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
    """Returns the verdicts of all findings as plain lines for a terminal."""
    lines = []
    for finding in content["findings"]:
        lines += [finding["title"], *(f"  - {sentence}" for sentence in finding["verdict"]), ""]
    return "\n".join(lines)
