"""Named handlers of a bundle as one handler for MONAI's trainer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from samfed_monai.core.errors import Problems

if TYPE_CHECKING:
    from ignite.engine import Engine


class HandlerGroup:
    """Attaches handlers and named groups of handlers in the given order, skipping disabled ones.

    With it a bundle can keep its terms in a dict, for ids such as ``terms#sam_kd#_disabled_``. MONAI drops an inline
    component with ``_disabled_`` from its dict, but resolves a *reference* to one to ``None``, which a trainer cannot
    attach.

    Args:
        handlers: handlers, ``None``, and dicts or lists of those.

    Example::

        {"_target_": "samfed_monai.handlers.HandlerGroup", "handlers": ["@before", "@stream", "@terms", "@after"]}
    """

    def __init__(self, *, handlers: Sequence[Any]) -> None:
        self.handlers = list(_flattened(handlers))

    def attach(self, engine: Engine) -> None:
        for handler in self.handlers:
            handler.attach(engine)

    def check(self, engine: Engine) -> None:
        """Calls ``check`` of all handlers that have one, to check a trainer before it runs.

        Raises:
            Refused: the problems of all handlers, at once.
        """
        problems = Problems()
        for handler in self.handlers:
            with problems.collected():
                if hasattr(handler, "check"):
                    handler.check(engine)
        problems.refuse_if_any()


def _flattened(handlers: Any) -> Iterator[Any]:
    if isinstance(handlers, Mapping):
        handlers = list(handlers.values())
    if isinstance(handlers, (list, tuple)):
        for handler in handlers:
            yield from _flattened(handler)
    elif handlers is not None:
        yield handlers
