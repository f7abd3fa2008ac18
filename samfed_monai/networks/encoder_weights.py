"""ImageNet weights for a client network's encoder, from a local file."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from samfed_monai.errors import Problem, Problems, Refused
from samfed_monai.io import check_tensors, safe_load
from samfed_monai.networks.weights.install import find_checkpoint
from samfed_monai.networks.weights.known import KNOWN, named

_CLASSIFIERS = ("fc.", "classifier.")


def load_encoder_weights(network: nn.Module, weights: str | Path, *, name: str = "network") -> None:
    """Loads ``weights`` into ``network.encoder``, in place; the file's classifier is dropped, all else must fit.

    Args:
        network: a network whose ``encoder`` names its tensors as torchvision's ResNet or timm's model does.
        weights: a name that ``samfed weights`` knows, or a path: safetensors, or a torch file that loads with
            ``weights_only=True``.
        name: the network, for messages.

    Raises:
        Refused: a network without an encoder; a missing or unreadable file; weights of another encoder.
    """
    encoder = getattr(network, "encoder", None)
    if not isinstance(encoder, nn.Module):
        mend = "set encoder_weights to null or choose another network"
        expected = "a network with an encoder to load ImageNet weights into"
        raise Refused([Problem("encoder_weights", found=name, expected=expected, mend=mend)])
    path = encoder_weights_file(weights, name)
    tensors = {key: tensor for key, tensor in safe_load(path).items() if not key.startswith(_CLASSIFIERS)}
    like = encoder.state_dict()
    if getattr(encoder, "truncated", False):
        tensors = {key: tensor for key, tensor in tensors.items() if key in like}
    for key in like.keys() - tensors.keys():
        if key.endswith("num_batches_tracked"):  # older files lack the counters
            tensors[key] = like[key]
    problems = Problems()
    problems.extend(check_tensors(tensors, like=like, where=Path(path).name)[:5])
    problems.refuse_if_any()
    nn.Module.load_state_dict(encoder, tensors)


def encoder_weights_file(weights: str | Path, name: str) -> Path:
    """The file of ``weights``: a known name is looked up in the weights folder, anything else is a path.

    Raises:
        Refused: a name of weights that are not for the encoder of network ``name``, or that are not installed.
    """
    known = named(str(weights))
    if known is None:
        if not Path(weights).exists():
            names = [other.names[0] for other in KNOWN if other.networks]
            mend = f"check the path, or name one of {names}"
            problem = Problem(f"encoder_weights {str(weights)!r}", found="no such file", expected="weights", mend=mend)
            raise Refused([problem])
        return Path(weights)
    if name not in known.networks:
        found = f"{str(weights)!r} for {name}"
        expected = (
            f"weights of that network's encoder; these are for {' or '.join(known.networks) or 'no network here'}"
        )
        mend = "set encoder_weights to null" + "".join(f", or network_name to {fit}" for fit in known.networks)
        raise Refused([Problem("encoder_weights", found=found, expected=expected, mend=mend)])
    return find_checkpoint(str(weights))
