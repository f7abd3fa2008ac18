"""The bundle's parts as one handler."""

from __future__ import annotations

from samfed_monai.handlers import HandlerGroup


class Named:
    def __init__(self, name: str) -> None:
        self.name = name

    def attach(self, engine: list[str]) -> None:
        engine.append(self.name)


def test_attaches_in_order_and_passes_over_what_is_disabled() -> None:
    engine: list[str] = []
    parts = [{"b": Named("b"), "a": Named("a")}, None, Named("c"), [], {}, [Named("d"), {"e": [Named("e"), None]}]]
    HandlerGroup(handlers=parts).attach(engine)  # type: ignore[arg-type]
    assert engine == ["b", "a", "c", "d", "e"]
