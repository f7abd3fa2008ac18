"""The folder that an inference fills: masks of one model, and nothing that was there before is replaced."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from samfed_monai.errors import Problem, Problems, Refused
from samfed_monai.io import atomic_write, read_json, write_bytes, write_json

RECORD = "inference.json"
"""File beside the masks that says what they were made with."""

_MEND = "choose another --output (output_dir)"


class MaskFolder:
    """Takes masks that are new here or were written here before, byte for byte.

    The same inference may so be run again, or go on after an interruption, while labels, images, corrected masks and
    masks of another model stay as they are.

    Args:
        folder: where the masks go; names with folders in them make sub-folders.
        made_with: what decides the masks, as JSON content; it is written to :data:`RECORD` with the first mask, and
            what stands there is compared before anything is computed. Empty: no record.

    Raises:
        Refused: by :meth:`write`, a file of that name with another content.
    """

    def __init__(self, folder: str | Path, made_with: Mapping[str, Any] | None = None) -> None:
        self.folder, self.made_with = Path(folder).expanduser(), dict(made_with or {})

    def problems(self, names: Iterable[str] = (), *, images: str | Path | None = None) -> list[Problem]:
        """What is wrong with writing masks of these names here, before any is computed.

        Args:
            names: file names below the folder.
            images: folder of the images; masks inside it would be the next run's images.
        """
        if images is not None and self._lies_in(Path(images).expanduser()):
            expected = f"a folder outside of {images}, in which everything is read as an image"
            return [Problem("output_dir (--output)", found=str(self.folder), expected=expected, mend=_MEND)]
        return self._made_otherwise(names) or self._unwritable()

    def write(self, name: str, content: bytes) -> None:
        """Writes a file, unless it is there already."""
        path = self.folder / name
        if path.exists():
            if path.read_bytes() != content:
                raise Refused([Problem(str(path), found="another file", expected="none, or the same mask", mend=_MEND)])
            return
        if self.made_with and not (self.folder / RECORD).exists():
            write_json(self.folder / RECORD, self.made_with)
        write_bytes(path, content)

    def _lies_in(self, images: Path) -> bool:
        folder = self.folder.resolve()  # samefile: a file system may ignore upper and lower case
        return images.exists() and any(place.exists() and place.samefile(images) for place in (folder, *folder.parents))

    def _made_otherwise(self, names: Iterable[str]) -> list[Problem]:
        record, problems = self.folder / RECORD, Problems()
        if not self.made_with:
            return []
        if not record.exists():
            taken = [name for name in names if (self.folder / name).exists()]
            if taken:
                found = taken[0] if len(taken) == 1 else f"{taken[0]} and {len(taken) - 1} more"
                expected = f"no file of a mask's name, or {RECORD} beside them"
                problems.add(str(self.folder), found=found, expected=expected, mend=_MEND)
            return list(problems)
        with problems.collected():
            content = read_json(record)
            known = content if isinstance(content, dict) else {}
            ours = known.keys() == self.made_with.keys()  # nobody is told to delete what no inference wrote
            mend = f"{_MEND}, or delete this one" if ours else _MEND
            for key, value in self.made_with.items():
                if known.get(key) != value:
                    expected = f"{_short(value)}, as now"
                    problems.add(f"{record} -> {key}", found=_short(known.get(key)), expected=expected, mend=mend)
        return list(problems)

    def _unwritable(self) -> list[Problem]:
        try:
            with atomic_write(self.folder / ".writable"):
                pass
            (self.folder / ".writable").unlink()
        except OSError as error:
            return [Problem(str(self.folder), found=str(error), expected="a folder that can be written to")]
        return []


def _short(value: Any) -> str:
    """A value for a message; of a hash, enough to tell it from another."""
    return "nothing" if value is None else str(value)[:12]
