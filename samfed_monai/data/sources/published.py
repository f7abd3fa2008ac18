"""Published splits, matched by stem to the files that are here.

The format is HSSF's: ``{client: {"labeled_train", "unlabeled_train", "val_list", "test_list"}}`` with file names. The
lists of HSSF (Ma et al., IEEE TMI 2024) are known by name and SHA-256; their content is not shipped.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from samfed_monai.core.errors import Problem, Refused, refused
from samfed_monai.core.io import read_json, sha256_file
from samfed_monai.core.validators import departures
from samfed_monai.data.checks import stem
from samfed_monai.data.datalist import Split
from samfed_monai.data.sources.found import Found, pair_up
from samfed_monai.data.sources.public import collection_of, find_collection, find_isic

KNOWN = {
    "isic_hssf": "6ed3978862a38f5a5b77f3d6129609d968879b09a6b93218c601c95b4e68a2c7",
    "polyp_hssf": "535b6a8e6333b47d6bb5f0e8d7fafd37cb9254966c8d522ce7c1498243b71ef3",
}
COMBINED = {"EndoTect-ETIS": ("EndoTect", "ETIS-LaribPolypDB")}  # a client of HSSF's that is two collections
NUMBERED_FROM = {"CVC-300": 612}  # the list goes on after ClinicDB's 612 where the release starts at 1
PARTS = {
    "labeled_train": Split.PUBLIC,
    "unlabeled_train": Split.UNLABELLED,
    "val_list": Split.VALIDATION,
    "test_list": Split.TEST,
}


@dataclass(frozen=True)
class Coverage:
    """How many images of one published part are at hand.

    Args:
        client: as the list calls it.
        split: where its images go.
        listed: number of names in the list.
        missing: the names that no file here matches.
    """

    client: str
    split: Split
    listed: int
    missing: list[str] = field(default_factory=list)

    @property
    def found(self) -> int:
        return self.listed - len(self.missing)


@dataclass(frozen=True)
class Published:
    """A published list, matched: images by client and split (the public ones under ``""``), and what is missing."""

    name: str
    verified: bool
    places: dict[tuple[str, Split], list[Found]]
    coverage: list[Coverage]


def find_published(split: str | Path, root: str | Path, *, folders: dict[str, str] | None = None) -> Published:
    """Matches a published list to the files under a data root.

    Args:
        split: the list's JSON file, or a known name (``isic_hssf``, ``polyp_hssf``) with its file in ``root`` or in
            ``root/splits``; asked for by name, its SHA-256 must be the published one (fault 29).
        root: either one pool for all clients (``images`` and ``masks``, or an unpacked ISIC archive), or one folder
            per client with ``images`` and ``masks`` or in a polyp collection's official layout, named like the client
            (case and punctuation aside; ``Kvasir`` finds ``kvasir_seg``). Groups are those that the collection's own
            sequences make, where they are known.
        folders: client to folder under ``root``, where the names do not tell.

    Raises:
        Refused: no such list or one of another format, or nothing at all at hand.
    """
    path, root = _list_file(split, Path(root)), Path(root)
    clients = _read(path)
    pools = _pools(list(clients), root, folders or {})
    places: dict[tuple[str, Split], list[Found]] = {}
    coverage = []
    for client, parts in clients.items():
        pool = pools.get(client, {})
        for part, names in parts.items():
            target = PARTS[part]
            missing = [name for name in names if stem(name) not in pool]
            at_hand = [pool[stem(name)] for name in names if stem(name) in pool]
            coverage += [Coverage(client, target, len(names), missing)] if names else []
            if at_hand:
                site = "" if target is Split.PUBLIC else client
                places.setdefault((site, target), []).extend(at_hand)
    if not places:
        hint = "expected is ROOT/images with ROOT/masks, or one such folder per client; name odd ones with --folder"
        raise refused(root, found=f"none of the images of {path.name}", expected="some", hint=hint)
    digest = sha256_file(path)
    verified = digest in KNOWN.values()
    known = next((name for name, expected in KNOWN.items() if expected == digest), None)
    name = known or (f"{path.stem} (changed)" if path.stem in KNOWN else path.stem)
    return Published(name, verified, places, coverage)


def _list_file(split: str | Path, root: Path) -> Path:
    path = Path(split)
    if path.is_file():
        return path
    candidates = [root / f"{split}.json", root / "splits" / f"{split}.json"]
    if str(split) not in KNOWN:
        hint = f"give the path of a JSON file, or one of {sorted(KNOWN)}"
        raise refused(str(split), found="no such file", expected="a published list", hint=hint)
    for candidate in candidates:
        if candidate.is_file():
            digest = sha256_file(candidate)
            if digest != KNOWN[str(split)]:
                found, expected = f"SHA-256 {digest[:12]}…", f"the published {KNOWN[str(split)][:12]}…"
                hint = "restore the published file, or give the path of the changed one with --split"
                raise refused(str(candidate), found=found, expected=expected, hint=hint)
            return candidate
    hint = f"put {split}.json (SHA-256 {KNOWN[str(split)][:12]}…), which HSSF's authors give out, into "
    hint += f"{root / 'splits'}, or give its path"
    raise refused(str(split), found="not at hand", expected="the published list", hint=hint)


_LISTS = {part: {"type": "array", "items": {"type": "string", "description": "a file name"}} for part in PARTS}
_CLIENT = {"type": "object", "properties": _LISTS, "additionalProperties": False}
PUBLISHED_SCHEMA = {"type": "object", "additionalProperties": _CLIENT}
"""What a published list looks like: parts, which are lists of file names, by client."""


def _read(path: Path) -> dict[str, dict[str, list[str]]]:
    content: dict[str, dict[str, list[str]]] = read_json(path)
    if problems := departures(content, PUBLISHED_SCHEMA, path.name):
        raise Refused(problems)
    return content


def _pools(clients: list[str], root: Path, folders: dict[str, str]) -> dict[str, dict[str, Found]]:
    unknown = sorted(folders.keys() - set(clients))
    if unknown:
        raise refused("--folder", found=str(unknown), expected=f"clients among {clients}")
    if (root / "images").is_dir():
        found = pair_up(root, root, "")
        _refuse_twins(found)
        return dict.fromkeys(clients, _by_stem(found))
    present = sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    pools = {}
    for client in clients:
        like = folders.get(client) or _folder_like(client, present)
        names = [like] if like else [name for name in present if _is_part(name, client)]
        found = [one for name in names for one in _found_in(root / name, root, client)]
        if found:
            _refuse_twins(found)
            pools[client] = _by_stem(found, NUMBERED_FROM.get(client, 0))
    return pools or dict.fromkeys(clients, _by_stem(find_isic(root)))


def _by_stem(found: list[Found], shift: int = 0) -> dict[str, Found]:
    pool = {stem(one.image): one for one in found}
    numbers = [name for name in pool if shift and name.isdecimal() and int(name) <= shift]
    return {str(int(name) + shift): pool[name] for name in numbers} | pool


def _is_part(folder: str, client: str) -> bool:
    collection = collection_of(folder)
    return collection is not None and collection.name in COMBINED.get(client, ())


def _found_in(folder: Path, root: Path, client: str) -> list[Found]:
    collection = collection_of(folder.name) or collection_of(client)
    if (folder / "images").is_dir():
        found = pair_up(folder, root, client)
        return [one.with_group(collection.sequence(stem(one.image))) for one in found] if collection else found
    if collection is None or not folder.is_dir():
        return []
    return [one for ones in find_collection(collection, folder, root).values() for one in ones]


def _refuse_twins(found: list[Found]) -> None:
    count = Counter(stem(one.image) for one in found)
    hint = "a published list names images by their stems: move away the ones that it does not mean"
    raised = [
        Problem(one.image, "a stem that other images have, too", "each once", hint)
        for one in found
        if count[stem(one.image)] > 1
    ]
    if raised:
        raise Refused(raised)


def _folder_like(client: str, folders: list[str]) -> str | None:
    plain = {folder: re.sub(r"[\W_]", "", folder).lower() for folder in folders}
    wanted = re.sub(r"[\W_]", "", client).lower()
    exact = [folder for folder, name in plain.items() if name == wanted]
    longer = [folder for folder, name in plain.items() if name.startswith(wanted)]
    for candidates in (exact, longer):
        if len(candidates) == 1:
            return candidates[0]
    return None
