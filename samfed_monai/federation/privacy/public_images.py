"""Masks leave a site of public images only: those of its own list, whatever a plan makes a data set hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.utils.data import Subset

from samfed_monai.core.errors import Problem
from samfed_monai.federation.envelope import MessageRefused

Records = Sequence[Mapping[str, Any]]


def require_public_images(sharing: Any, public: Callable[[], Records]) -> None:
    """Refuses a sharing that would make masks of anything but the site's public images, in the order of its list.

    The release filter asks the sharing itself what it may send; this asks the site's own list.

    Args:
        sharing: the client's; one without a ``predictor`` makes no masks.
        public: gives the records of the site's public images (:func:`samfed_monai.data.load_records`).

    Raises:
        MessageRefused: another image, the same ones in another order, or a data set whose records are not to be seen.
    """
    predictor = getattr(sharing, "predictor", None)
    if predictor is None:
        return
    own = [_identity(record) for record in public()]
    shown = [_identity(record) for record in _records(predictor.dataset)]
    others, rest = len([image for image in shown if image not in own]), iter(own)
    if not others and all(image in rest for image in shown):  # `in` steps on: those of `own`, some left out
        return
    found = f"{others} other images" if others else "another order"
    expected, mend = "images of this site's own public list alone", "leave the data of sharing#plain to the variant"
    raise MessageRefused([Problem("images that masks are exchanged of", found=found, expected=expected, mend=mend)])


def _records(dataset: Any) -> Records:
    if isinstance(dataset, Subset):
        whole = _records(dataset.dataset)
        return [whole[index] for index in dataset.indices]
    records: Any = getattr(dataset, "data", None)
    if not isinstance(records, list) or not all(isinstance(record, Mapping) for record in records):
        found, expected = f"a {type(dataset).__name__}", "a data set whose records are to be seen"
        mend = "leave sharing#plain to the variant"
        raise MessageRefused([Problem("images that masks are exchanged of", found=found, expected=expected, mend=mend)])
    return records


def _identity(record: Mapping[str, Any]) -> tuple[Any, Any]:
    image = record.get("image")
    return (image if isinstance(image, str) else None), record.get("image_sha256")
