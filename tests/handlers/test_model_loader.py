"""The weights of the best epoch are kept."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from samfed_monai.core.errors import Refused
from samfed_monai.core.io import safe_load
from samfed_monai.core.model_file import read_header, settings_of
from samfed_monai.handlers import BestWeightsSaver
from tests.handlers.toy import next_round, toy_network, toy_trainer


def engine_and_evaluator() -> tuple[Any, Any]:
    evaluator = SimpleNamespace(state=SimpleNamespace(metrics={}))
    output = {"image": torch.zeros(2, 3, 16, 16), "pred": torch.zeros(2, 1, 16, 16)}
    state = SimpleNamespace(epoch=0, max_epochs=4, term_means={"supervised": 1.5}, output=output)
    return SimpleNamespace(network=toy_network(), state=state), evaluator


def test_only_better_epoch_replaces_best_weights(tmp_path: Path) -> None:
    engine, evaluator = engine_and_evaluator()
    saver = BestWeightsSaver(evaluator=evaluator, path=tmp_path / "sub" / "best.safetensors")
    for epoch, dice in enumerate((0.2, 0.5, 0.5, 0.4), start=1):
        engine.state.epoch, evaluator.state.metrics = epoch, {"dice": dice}
        with torch.no_grad():
            engine.network[0].bias.fill_(epoch)
        saver(engine)
        assert safe_load(tmp_path / "sub" / "best.safetensors")["0.bias"][0] == min(epoch, 2)
    assert read_header(tmp_path / "sub" / "best.safetensors") == {
        **{"metric": "dice", "value": "0.5", "epoch": "2", "image_size": "16"}
    }


def test_last_epoch_is_saved_without_validation(tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"

    def trainer() -> Any:
        return toy_trainer([BestWeightsSaver(evaluator=engine_and_evaluator()[1], path=path)])

    first = trainer()
    for number in range(2):  # the second round continues
        next_round(first, number, 2)
    assert safe_load(path)["0.bias"].equal(first.network.state_dict()["0.bias"])
    with pytest.raises(Refused, match=r"best\.safetensors: expected no file before .*; choose another output_dir"):
        trainer().run()
    assert settings_of(path) == {"image_size": 16}
