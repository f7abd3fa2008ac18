"""Handlers of a bundle as one handler."""

from __future__ import annotations

import pytest

from samfed_monai.core.errors import Problem, Refused
from samfed_monai.handlers import HandlerGroup


class Named:
    def __init__(self, name: str) -> None:
        self.name = name

    def attach(self, engine: list[str]) -> None:
        engine.append(self.name)


def test_handlers_are_attached_in_order_and_disabled_skipped() -> None:
    engine: list[str] = []
    parts = [{"b": Named("b"), "a": Named("a")}, None, Named("c"), [], {}, [Named("d"), {"e": [Named("e"), None]}]]
    HandlerGroup(handlers=parts).attach(engine)  # type: ignore[arg-type]
    assert engine == ["b", "a", "c", "d", "e"]


class Choosy(Named):
    def check(self, engine: list[str]) -> None:
        if self.name not in engine:
            raise Refused([Problem(self.name, found="nothing", expected="its name")])


def test_problems_of_handlers_are_reported_together() -> None:
    group = HandlerGroup(handlers=[Choosy("a"), Named("b"), {"c": Choosy("c")}])
    group.check(["a", "c"])  # type: ignore[arg-type]
    with pytest.raises(Refused, match=r"(?s)2 problems.*- a: .*- c: "):
        group.check([])  # type: ignore[arg-type]
