"""What a site of a run over FLARE kept for itself, read at that site when the run is over."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from samfed_monai.core.errors import Problem, Refused
from samfed_monai.core.io import safe_load
from samfed_monai.federation.own_network import split_state

if TYPE_CHECKING:
    from torch import Tensor


def state_at_home(folder: str | Path, *, site: str, run: str, round: int) -> dict[str, Tensor]:
    """A site's own values as of a round, or of the newest before it, where the site missed that one.

    Args:
        folder: ``<cache_dir>/state/<run>/<site>``.
        site: whose it must be.
        run: identifier of the run that it must be of; "" where the run's folder does not say.
        round: of the run's selected model.

    Raises:
        Refused: another site's or run's folder, or none with values of a network in it.
    """
    folder = Path(folder).expanduser().resolve()
    if folder.name != site or (run and folder.parent.name != run):
        expected = f"that of this run and site, state/{run or 'RUN'}/{site} in the site's cache_dir"
        raise Refused([Problem("--states", found=str(folder), expected=expected)])
    rounds = [int(path.stem) for path in folder.glob("*.safetensors") if path.stem.lstrip("-").isdecimal()]
    newest = max((number for number in rounds if number <= round), default=None)
    own = split_state(safe_load(folder / f"{newest:03d}.safetensors"))[0] if newest is not None else {}
    if not own:
        expected = f"a state with the site's own values, of round {round} or before"
        mend = "a site keeps the states of its newest three runs; run it again"
        raise Refused([Problem("--states", found=f"none in {folder}", expected=expected, mend=mend)])
    return own
