"""ImageNet weights for a client network's encoder, from a local file."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from samfed_monai.errors import Problem, Problems, Refused
from samfed_monai.io import check_tensors, safe_load

_CLASSIFIERS = ("fc.", "classifier.")


def load_encoder_weights(network: nn.Module, path: str | Path, *, name: str = "network") -> None:
    """Loads ``path`` into ``network.encoder``, in place; the file's classifier is dropped, all else must fit.

    Args:
        network: a network whose ``encoder`` names its tensors as torchvision's ResNet or timm's model does.
        path: safetensors, or a torch file that loads with ``weights_only=True``.
        name: the network, for messages.

    Raises:
        Refused: a network without an encoder; a missing or unreadable file; tensors of another encoder.
    """
    encoder = getattr(network, "encoder", None)
    if not isinstance(encoder, nn.Module):
        mend = "set weights to null or choose another network"
        expected = "a network with an encoder to load ImageNet weights into"
        raise Refused([Problem("network_weights", found=name, expected=expected, mend=mend)])
    tensors = {key: tensor for key, tensor in safe_load(path).items() if not key.startswith(_CLASSIFIERS)}
    like = encoder.state_dict()
    for key in like.keys() - tensors.keys():
        if key.endswith("num_batches_tracked"):  # older files lack the counters
            tensors[key] = like[key]
    problems = Problems()
    problems.extend(check_tensors(tensors, like=like, where=Path(path).name)[:5])
    problems.refuse_if_any()
    nn.Module.load_state_dict(encoder, tensors)
