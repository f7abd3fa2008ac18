"""What a client may send is read from its own network and sharing."""

import pytest
import torch

from samfed_monai.core.errors import Refused
from samfed_monai.federation import SiteWorker
from samfed_monai.federation.privacy import Release
from samfed_monai.federation.privacy.release import allowed_of, allowed_weights
from samfed_monai.networks import KeyPatterns, SamNetwork, build_sam, split_keys
from samfed_monai.networks.key_patterns import KeySplit
from samfed_monai.protocol import Envelope, Kind, MessageRefused, Task, from_bytes, to_bytes
from tests.federation.toys import ToyNet, toy_algo, toy_weights
from tests.federation.unlike import unlike_algo

PARAMETERS = {"0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias"}


def test_without_a_sharing_it_is_the_network():
    allowed = allowed_of(toy_algo())
    assert allowed.like.keys() == {Kind.WEIGHTS}
    assert allowed.like[Kind.WEIGHTS].keys() == toy_weights().keys()
    assert allowed.learned == PARAMETERS
    assert allowed_of(toy_algo(), personal=["3.*"]).like[Kind.WEIGHTS].keys() == toy_weights().keys() - {
        "3.weight",
        "3.bias",
    }
    with pytest.raises(Refused, match=r"found no name like '4\.\*'"):
        allowed_of(toy_algo(), personal=["4.*"])


def test_with_a_sharing_it_is_what_the_sharing_gives():
    masks = allowed_of(unlike_algo("site-1"))
    assert masks.like.keys() == masks.exact == {Kind.SOFT_MASKS}
    assert masks.like[Kind.SOFT_MASKS]["masks"].shape == (6, 1, 8, 8)
    assert allowed_of(unlike_algo("site-1", exchange="weights")).like.keys() == {Kind.WEIGHTS}
    assert allowed_of(unlike_algo("site-1", exchange="none")).like == {}


def test_a_client_that_only_evaluates_sends_no_tensors():
    assert allowed_of(object()).like == {}


def test_fault_56_a_site_with_a_network_of_its_own_does_not_send_it_because_it_is_asked_to():
    client = unlike_algo("site-1")
    site = SiteWorker("site-1", client, Release("site-1", allowed=lambda: allowed_of(client)))
    request = Envelope(Kind.WEIGHTS, "site-1", 0, 1, tensors=toy_weights(), extra={"purpose": "replace"})
    with pytest.raises(MessageRefused, match="expected one of metrics, soft_masks, found a kind that may not leave"):
        site.answer(Task.TRAIN, request)


class Declared(ToyNet):
    """A network that says itself what of it is shared; its batch norm is frozen."""

    def key_split(self) -> KeySplit:
        return split_keys(self.state_dict(), KeyPatterns(shared=("0.*",), personal=("3.*",)))


def test_fault_56_a_network_s_own_declaration_is_kept():
    assert allowed_weights(Declared()).like[Kind.WEIGHTS].keys() == {"0.weight", "0.bias"}
    assert allowed_weights(Declared(), personal=["0.bias"]).like[Kind.WEIGHTS].keys() == {"0.weight"}


def test_of_sam_vit_b_lora_leaves_in_a_message_of_0_60_megabytes():
    with torch.device("meta"):  # the shapes of ViT-B; nothing of it is in memory but what is sent
        network = SamNetwork(build_sam("vit_b", size=256), 256)
    state, split = network.state_dict(), network.key_split()
    request = Envelope(Kind.WEIGHTS, "site-1", 0, 12)

    def sent(names: tuple[str, ...]) -> bytes:
        tensors = {name: torch.randn(state[name].shape) for name in names}
        reply = Envelope(Kind.WEIGHTS, "site-1", 0, 12, n=40, tensors=tensors)
        return to_bytes(Release("site-1", allowed=lambda: allowed_weights(network))(Task.TRAIN, request, reply))

    payload = sent(split.shared)
    assert from_bytes(payload).tensors.keys() == set(split.shared)
    assert 0 < len(payload) - 12 * 2 * 4 * (768 + 768) * 4 < 6000  # names, shapes and the header beside LoRA
    with pytest.raises(MessageRefused, match=f"{len(split.personal)} with names that may not leave"):
        sent((*split.shared, *split.personal))
