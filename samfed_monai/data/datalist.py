"""The frozen, hashed list of images that every run starts from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from samfed_monai.data.items import Item, Site, Split
from samfed_monai.errors import Problem, Refused
from samfed_monai.io import canonical_hash, read_json, write_json

SCHEMA = 1


@dataclass(frozen=True)
class DataList:
    """Which images are public, which lie at which site, and what their bytes were.

    Args:
        name: what reports call the list.
        public: labelled images that the server and every site have.
        sites: private images by site.
        mask_threshold: grey level from which a mask that is not binary counts as foreground; ``None`` refuses such
            masks.

    Example::

        datalist = DataList.load("skin.json")
        datalist.sites["site-1"].test[0].label
    """

    name: str
    public: list[Item]
    sites: dict[str, Site] = field(default_factory=dict)
    mask_threshold: int | None = None

    @property
    def hash(self) -> str:
        """SHA-256 of the list's content, whatever the order of its keys or its white space."""
        return canonical_hash(self.content())

    def content(self) -> dict[str, Any]:
        """The list as JSON content, without its hash."""
        return {
            "schema": SCHEMA,
            "name": self.name,
            "mask_threshold": self.mask_threshold,
            "public": [_item_json(item) for item in self.public],
            "sites": {
                name: {split.value: [_item_json(item) for item in items] for split, items in site.splits()}
                for name, site in self.sites.items()
            },
        }

    def for_site(self, name: str) -> DataList:
        """What one site needs: the public images and its own.

        Raises:
            Refused: the list has no such site.
        """
        if name not in self.sites:
            expected = f"one of {sorted(self.sites)}" if self.sites else "a site, and the list has only public images"
            raise Refused([Problem(f"{self.name} -> sites", found=repr(name), expected=expected)])
        return DataList(self.name, self.public, {name: self.sites[name]}, self.mask_threshold)

    def for_server(self) -> DataList:
        """What a server needs that holds no site's images: the public ones."""
        return DataList(self.name, self.public, {}, self.mask_threshold)

    def public_hash(self) -> str:
        """SHA-256 of the public part; the same in the whole list, in one site's and in the server's."""
        public = [_item_json(item) for item in self.public]
        return canonical_hash({"mask_threshold": self.mask_threshold, "public": public})

    def part_hash(self, name: str) -> str:
        """SHA-256 of one site's part; the same in the whole list and in that site's own.

        Raises:
            Refused: the list has no such site.
        """
        part = self.for_site(name)
        splits = {split.value: [_item_json(item) for item in items] for split, items in part.sites[name].splits()}
        return canonical_hash({"mask_threshold": self.mask_threshold, "site": name, **splits})

    def items(self) -> Iterator[tuple[str, Split, Item]]:
        """Every item as (site, split, item); the public ones first, with the site ``""``."""
        for item in self.public:
            yield "", Split.PUBLIC, item
        for name, site in self.sites.items():
            for split, items in site.splits():
                for item in items:
                    yield name, split, item

    def save(self, path: str | Path) -> None:
        """Writes the list with its hash, atomically.

        Raises:
            Refused: the list would not load again (a path out of the root, a labelled item without its mask, ...).
        """
        content = {"schema": SCHEMA, "name": self.name, "hash": self.hash, **self.content()}
        _read(content, Path(path).name)
        write_json(path, content)

    @classmethod
    def load(cls, path: str | Path) -> DataList:
        """Reads a list and checks it: keys, types, paths, labels, and its own hash.

        It does not look at the images; :func:`samfed_monai.data.check_datalist` does.

        Raises:
            Refused: with every problem of the file at once.
        """
        return _read(read_json(path), Path(path).name)


def _item_json(item: Item) -> dict[str, str]:
    return {key: value for key, value in asdict(item).items() if value is not None}


def _read(content: Any, where: str) -> DataList:
    from samfed_monai.data.datalist_schema import parse

    parsed, problems = parse(content, where)
    datalist = DataList(**parsed) if parsed is not None else None
    if datalist is not None and not len(problems) and datalist.hash != content["hash"]:
        problems.add(
            f"{where} -> hash",
            found=f"content with hash {datalist.hash[:12]}…",
            expected=f"the recorded {content['hash'][:12]}…",
            mend="the list was changed after it was made: restore it, or make a new one with `samfed prepare`",
        )
    problems.refuse_if_any()
    if datalist is None:
        raise Refused([Problem(where, found="nothing usable", expected="a data list")])
    return datalist
