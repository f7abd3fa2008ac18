"""One data list per site out of a list of all of them, and one for a server that holds nobody's images."""

from __future__ import annotations

from pathlib import Path

from samfed_monai.data.datalist import DataList
from samfed_monai.data.freezing import freeze
from samfed_monai.errors import Problem, Refused

SERVER = "server"


def write_site_lists(datalist: DataList, output_dir: str | Path) -> dict[str, Path]:
    """Writes ``<site>.json`` with the public images and that site's own, and ``server.json`` with the public ones.

    Their parts keep their hashes, by which server and sites compare them before a run.

    Args:
        datalist: of all sites.
        output_dir: where to; it is made.

    Returns:
        Site, or ``server``, to its file.

    Raises:
        Refused: a list without sites, or files in the way that hold something else.
    """
    if not datalist.sites:
        found, mend = "no sites", "give the list of all sites"
        raise Refused([Problem(f"{datalist.name} -> sites", found=found, expected="sites to divide by", mend=mend)])
    parts = {SERVER: datalist.for_server(), **{site: datalist.for_site(site) for site in datalist.sites}}
    written = {name: Path(output_dir) / f"{name}.json" for name in parts}
    freeze({written[name]: part for name, part in parts.items()})
    return written
