"""What a bundle would otherwise have to say in Python: each is a component, so that its JSON holds no expression."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from samfed_monai.errors import Problem, Refused

if TYPE_CHECKING:
    import torch
    from torch import nn


def best_device() -> torch.device:
    """The first GPU where there is one, else the CPU.

    Example::

        "device": {"_target_": "samfed_monai.parts.best_device"}
    """
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def on_device(*, network: nn.Module, device: torch.device | str) -> nn.Module:
    """The network itself, moved to a device.

    Example::

        "network": {"_target_": "samfed_monai.parts.on_device", "network": "@network_def", "device": "@device"}
    """
    return network.to(device)


def parameters_of(*, network: nn.Module) -> list[nn.Parameter]:
    """All parameters of a network, in its own order, as an optimizer takes them.

    Example::

        "params": {"_target_": "samfed_monai.parts.parameters_of", "network": "@network"}
    """
    return list(network.parameters())


def part_of(*, of: Any, name: str) -> Any:
    """A public attribute of another component.

    Args:
        of: the component.
        name: one attribute; no dots, and none that begins with an underscore.

    Raises:
        Refused: another kind of name, or the component has no such attribute.

    Example::

        "train_records": {"_target_": "samfed_monai.parts.part_of", "of": "@public", "name": "train"}
    """
    if not name.isidentifier() or name.startswith("_") or not hasattr(of, name):
        expected = f"the name of a public attribute of {type(of).__name__}"
        raise Refused([Problem("part_of -> name", found=repr(name), expected=expected)])
    return getattr(of, name)


def model_path(*, model: str | None, bundle_root: str | Path) -> str:
    """The weights that somebody named, else those in the bundle's folder ``models``.

    ``models/model.safetensors`` goes before ``models/model.pt``, the name that MONAI's own tools give.

    Example::

        "model_path": {"_target_": "samfed_monai.parts.model_path", "model": "@model", "bundle_root": "@bundle_root"}
    """
    if model:
        return model
    own = Path(bundle_root) / "models" / "model.safetensors"
    return str(own if own.is_file() else own.with_suffix(".pt"))
