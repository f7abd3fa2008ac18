"""A toy component with the annotations that the checks compare with."""

from __future__ import annotations


class Trainer:
    """Takes what a trainer takes; does nothing."""

    def __init__(self, *, loss: object = None, rate: float = 0.1, steps: int | None = None, amp: bool = False) -> None:
        self.loss, self.rate, self.steps, self.amp = loss, rate, steps, amp

    def run(self) -> str:
        return f"ran with {self.rate}"
