"""One way to read tensors."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch

from samfed_monai.core.errors import Refused
from samfed_monai.core.io import check_tensors, safe_load, save_tensors


def weights() -> dict[str, torch.Tensor]:
    return {"conv.weight": torch.arange(6.0).reshape(2, 3), "bn.num_batches_tracked": torch.tensor(7)}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_tensors(tmp_path / "w.safetensors", weights(), metadata={"rank": "4"})
    return tmp_path / "w.safetensors"


def test_tensors_and_metadata_come_back_bit_for_bit(file: Path):
    seen: dict[str, str] = {}
    loaded = safe_load(file, like=weights(), metadata=seen.update)
    assert {name: tensor.dtype for name, tensor in loaded.items()} == {
        "conv.weight": torch.float32,
        "bn.num_batches_tracked": torch.int64,
    }
    assert all(torch.equal(loaded[name], tensor) for name, tensor in weights().items())
    assert seen == {"rank": "4"}


def test_a_view_is_saved_as_what_it_shows(tmp_path: Path):
    view = torch.arange(6.0).reshape(2, 3).T.requires_grad_()
    save_tensors(tmp_path / "v.safetensors", {"view": view})
    assert safe_load(tmp_path / "v.safetensors")["view"].tolist() == [[0, 3], [1, 4], [2, 5]]


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"model": state}])
def test_torch_files_are_read_as_tensors_only(tmp_path: Path, wrap):
    torch.save(wrap(weights()), tmp_path / "w.pt")
    assert torch.equal(safe_load(tmp_path / "w.pt")["conv.weight"], weights()["conv.weight"])


class Bomb:
    """Touches a canary file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


@pytest.mark.parametrize("writer", ["torch", "pickle"])
@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_fault_36_a_malicious_pickle_is_refused_and_its_canary_is_absent(tmp_path: Path, writer: str, name: str):
    canary, path = tmp_path / "canary", tmp_path / name
    hostile = {"conv.weight": Bomb(canary)}
    if writer == "torch":
        torch.save(hostile, path)
    else:
        path.write_bytes(pickle.dumps(hostile))
    with pytest.raises(Refused, match=name):
        safe_load(path, like=weights())
    assert not canary.exists()
    pickle.loads(pickle.dumps(hostile))
    assert canary.exists(), "the bomb is live: the test above means something"


@pytest.mark.parametrize(
    ("content", "expected"),
    [([1, 2], "something that is not a state dict"), ({"a": 1}, "something that is not a state dict")],
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: object, expected: str):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(Refused, match=expected):
        safe_load(tmp_path / "w.pt")


def test_a_missing_weights_file_is_refused(tmp_path: Path):
    for name in ("none.safetensors", "none.pt"):
        with pytest.raises(Refused, match=rf"{name}: expected a weights file, found no such file; check the path"):
            safe_load(tmp_path / name)


@pytest.mark.parametrize("keep", [0, 5, 40, -1])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_fault_52_a_torn_weights_file_is_refused(tmp_path: Path, keep: int, suffix: str):
    whole = tmp_path / f"whole{suffix}"
    if suffix == ".pt":
        torch.save(weights(), whole)
    else:
        save_tensors(whole, weights())
    torn = tmp_path / f"torn{suffix}"
    torn.write_bytes(whole.read_bytes()[:keep])
    with pytest.raises(Refused, match="torn"):
        safe_load(torn)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_fault_32_nan_and_infinity_are_refused(tmp_path: Path, value: float):
    hurt = weights()
    hurt["conv.weight"][1, 2] = value
    save_tensors(tmp_path / "w.safetensors", hurt)
    with pytest.raises(Refused, match=r"w\.safetensors -> conv\.weight: expected finite values, found NaN or infinity"):
        safe_load(tmp_path / "w.safetensors")


@pytest.mark.parametrize("shape", [(3, 2), (6,), (1, 2, 3), (2, 1)])
def test_fault_33_a_wrong_shape_is_a_problem_even_with_as_many_numbers(shape: tuple[int, ...]):
    sent = weights() | {"conv.weight": torch.zeros(shape)}
    (problem,) = check_tensors(sent, like=weights(), where="site-1")
    assert str(problem) == f"site-1 -> conv.weight: expected shape (2, 3), found shape {shape}"


def test_fault_34_missing_and_extra_names_are_all_listed():
    sent = {"conv.weight": torch.zeros(2, 3), "conv.bias": torch.zeros(2), "head": torch.zeros(1)}
    assert [str(problem) for problem in check_tensors(sent, like=weights(), where="site-1")] == [
        "site-1 -> bn.num_batches_tracked: expected shape (), found no such tensor",
        "site-1 -> conv.bias: expected only the network's own names, found an unknown tensor",
        "site-1 -> head: expected only the network's own names, found an unknown tensor",
    ]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.int32])
def test_fault_35_a_wrong_dtype_is_a_problem(dtype: torch.dtype):
    sent = weights() | {"conv.weight": torch.zeros(2, 3, dtype=dtype)}
    (problem,) = check_tensors(sent, like=weights())
    assert str(problem) == f"tensors -> conv.weight: expected torch.float32, found {dtype}"


def test_what_fits_has_no_problems():
    assert check_tensors(weights(), like=weights()) == []
    assert check_tensors(weights()) == []


def test_safe_load_lists_every_problem_of_a_file_at_once(tmp_path: Path):
    hurt = {"conv.weight": torch.full((3, 2), float("nan")), "extra": torch.zeros(1)}
    save_tensors(tmp_path / "w.safetensors", hurt)
    with pytest.raises(Refused, match=r"refused: 4 problems"):
        safe_load(tmp_path / "w.safetensors", like=weights())
