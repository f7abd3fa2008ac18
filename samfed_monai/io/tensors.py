"""The one way to write named tensors and to read them; code is never unpickled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from samfed_monai.errors import Problem, Problems, Refused
from samfed_monai.io.files import write_bytes

if TYPE_CHECKING:
    from torch import Tensor


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes named tensors as safetensors, atomically.

    Args:
        path: file to write.
        tensors: names to tensors of any shape; they are made contiguous and moved to the CPU.
        metadata: strings stored in the file's header (hashes, rank, size).
    """
    from safetensors.torch import save

    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, save(contiguous, metadata=dict(metadata) if metadata else None))


def safe_load(
    path: str | Path, *, like: Mapping[str, Tensor] | None = None, metadata: Callable[[dict], None] | None = None
) -> dict[str, Tensor]:
    """Reads tensors without ever unpickling code, and checks them.

    Args:
        path: a ``.safetensors`` file, or a torch file that loads with ``weights_only=True``.
        like: names to tensors whose names, shapes and dtypes the file must match exactly; ``None`` skips that check.
        metadata: called with the safetensors header's metadata (an empty dict for torch files).

    Raises:
        Refused: missing or unreadable file, names, shapes or dtypes that do not match, NaN or infinity.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    header: dict[str, str] = {}
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as stream:
                header = stream.metadata() or {}
                tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 - not a mapping
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
            tensors = tensors.get("model", tensors) if isinstance(tensors, dict) else tensors
    except FileNotFoundError as error:
        problem = Problem(str(path), found="no such file", expected="a weights file", mend="check the path")
        raise Refused([problem]) from error
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError, KeyError) as error:
        found = (str(error).splitlines() or [type(error).__name__])[0]
        raise Refused([Problem(str(path), found=found, expected="a readable weights file")]) from error
    except Exception as error:  # pickle.UnpicklingError and whatever a hostile pickle provokes
        raise Refused(
            [Problem(str(path), found=type(error).__name__, expected="tensors only", mend="never unpickle this file")]
        ) from None
    if not isinstance(tensors, dict) or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
        raise Refused([Problem(str(path), found="something that is not a state dict", expected="names to tensors")])
    problems = Problems()
    problems.extend(check_tensors(tensors, like=like, where=path.name))
    problems.refuse_if_any()
    if metadata is not None:
        metadata(header)
    return tensors


def check_tensors(
    tensors: Mapping[str, Tensor], *, like: Mapping[str, Tensor] | None = None, where: str = "tensors"
) -> list[Problem]:
    """Problems of named tensors: names, shapes and dtypes against ``like``, and values that are not finite.

    Args:
        tensors: what arrived.
        like: what is expected; ``None`` checks only finiteness.
        where: file or sender, for the message.
    """
    problems = Problems()
    if like is not None:
        for name in sorted(like.keys() - tensors.keys()):
            problems.add(f"{where} -> {name}", found="no such tensor", expected=f"shape {tuple(like[name].shape)}")
        for name in sorted(tensors.keys() - like.keys()):
            problems.add(f"{where} -> {name}", found="an unknown tensor", expected="only the network's own names")
        for name in tensors.keys() & like.keys():
            if tensors[name].shape != like[name].shape:
                found, expected = tuple(tensors[name].shape), tuple(like[name].shape)
                problems.add(f"{where} -> {name}", found=f"shape {found}", expected=f"shape {expected}")
            elif tensors[name].dtype != like[name].dtype:
                problems.add(f"{where} -> {name}", found=str(tensors[name].dtype), expected=str(like[name].dtype))
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            problems.add(f"{where} -> {name}", found="NaN or infinity", expected="finite values")
    return list(problems)
