"""What one call asks of a client: the message's header and MONAI FL's ``extra``, read in one place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from samfed_monai.core.seeds import derive_seed
from samfed_monai.federation.envelope import Envelope, Kind


@dataclass(frozen=True)
class Call:
    """One call of ``train``, ``get_weights`` or ``evaluate`` at one site.

    Args:
        site: the client's name.
        words: ``round``, ``rounds``, ``seed``, ``split``, ``model``, ``purpose``: those that were said.
    """

    site: str
    words: Mapping[str, Any]

    @classmethod
    def of(cls, site: Any, *parts: Mapping[str, Any] | None) -> Call:
        """The words of all ``parts``; a later one goes before an earlier one."""
        return cls(str(site), {name: value for part in parts for name, value in (part or {}).items()})

    @property
    def round(self) -> int | None:
        """The round, from 0; ``None`` from an FL system that counts none."""
        return self.words.get("round")

    @property
    def keeps_network(self) -> bool:
        """Whether a site that has a network of its own keeps it in this call: any purpose but ``replace``."""
        return bool(self.words.get("purpose", "replace") != "replace")

    def derive_seed(self, *what: str) -> int | None:
        """Seed of ``what`` at this site in this round; ``None`` where no round is named."""
        if self.round is None:
            return None
        return derive_seed(self.words.get("seed", 0), self.site, self.round, *what)

    def header(self, kind: Kind, *, n: int) -> dict[str, Any]:
        """The header of an answer with ``n`` images behind it."""
        words = self.words
        whole = {"round": words.get("round", 0), "rounds": words.get("rounds", 1), "seed": words.get("seed", 0)}
        return Envelope(kind, self.site, n=n, **whole).header()
