"""What `simulate` and `poc` prepare on one machine: a list, a cache and a site file for each site and the server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from samfed_monai.core.io import write_json
from samfed_monai.data import DataList
from samfed_monai.federation.plan import Places


def write_site_files(
    folder: str | Path,
    datalist: DataList,
    places: Places,
    sites: Sequence[str],
    *,
    threads: int | None = None,
    weights: str | Path | None = None,
) -> Path:
    """Writes ``<site>.json`` and ``server.json``, each beside a data list with the public images and its own alone.

    The server shares the caches of runs in one process (adapters, warm starts); a site has one of its own.

    Args:
        folder: where they go.
        datalist: the whole list.
        places: of the run; ``output_dir`` is the server's run folder, and where sites leave their evaluation.
        sites: names of the sites.
        threads: of each process; ``None`` leaves it to torch.
        weights: folder of checkpoints; ``None`` leaves it to the environment.

    Returns:
        ``folder``.
    """
    folder = Path(folder)
    common: dict[str, Any] = {"data_root": str(places.data_root), "output_dir": str(places.output_dir)}
    common["bundle_root"] = str(places.bundle_root)
    if "device" in places.client:
        common["device"] = str(places.client["device"])
    if threads is not None:
        common["threads"] = threads
    if weights is not None:
        common["weights"] = str(weights)
    for site in sites:
        path = folder / f"{site}.list.json"
        datalist.for_site(site).save(path)
        own = {"datalist": str(path), "cache_dir": str(places.cache / "sites" / site)}
        write_json(folder / f"{site}.json", {**own, **common})
    path = folder / "server.list.json"
    datalist.for_server().save(path)
    server = {"datalist": str(path), "cache_dir": str(places.cache), **common}
    if places.adapter:
        server["adapter"] = str(places.adapter)
    write_json(folder / "server.json", server)
    return folder
