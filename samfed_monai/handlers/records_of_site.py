"""The records of one site, or none where the trainer stands at the server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from samfed_monai.data.datalist_schema import SERVER_NAMES


def site_records(
    *,
    datalist: str | Path,
    data_root: str | Path,
    split: str,
    site: str | None,
    with_labels: bool = True,
    limit: int | None = None,
) -> list[dict[str, Any]]:
    """Records of a site's split, empty for the server, which has no images but the public ones.

    Args:
        datalist: file of the data list.
        data_root: folder that the list's paths start from.
        split: ``unlabelled``, ``validation`` or ``test``.
        site: the site's name; "", "public", "server" or ``None`` gives an empty list.
        with_labels: whether labels are read; for ``unlabelled`` only the oracle may.
        limit: at most this many images of the split.

    Returns:
        what :func:`samfed_monai.data.load_records` returns.

    Example::

        {"_target_": "samfed_monai.handlers.site_records", "datalist": "@datalist", "data_root": "@data_root",
         "split": "validation", "site": "@site", "limit": "@limit"}
    """
    from samfed_monai.data import load_records

    if site is None or site in SERVER_NAMES:
        return []
    return load_records(datalist, data_root, split=split, site=site, with_labels=with_labels, limit=limit)
