from __future__ import annotations

import copy

import pytest
import torch
from torch.utils.checkpoint import set_checkpoint_early_stop

from samfed_monai.core.errors import Refused
from samfed_monai.methods.pfedsam import load_balance
from samfed_monai.networks import AutocastInferer, SamNetwork, SamPath, client_network, sam_outputs
from samfed_monai.networks.sam.build import SAM_BUILDERS, assemble
from tests.networks.sam.tiny import SIZE, tiny_network, wake


def images(count: int = 2, height: int = SIZE, width: int = SIZE) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("size", [(64, 64), (33, 100)])
def test_logits_have_image_size(size):
    logits = tiny_network()(images(2, *size))
    assert (logits.shape, logits.dtype) == ((2, 1, *size), torch.float32)


def test_fresh_experts_keep_output_of_plain_sam():
    network, plain = tiny_network().eval(), tiny_network(experts=0).eval()
    with torch.no_grad():
        personal = network(images())
        assert torch.equal(personal, network(images(), path="global"))
        assert torch.equal(personal, plain(images()))


def test_only_personal_path_uses_experts():
    network = tiny_network().eval()
    with torch.no_grad():
        before = network(images(), path="global")
        wake(network)
        awake = network(images(), path="global")
        assert not torch.equal(before, awake)  # LoRA
        personal = network(images())
        assert not torch.equal(awake, personal)
        for name, parameter in network.named_parameters():
            if ".experts." in name:
                parameter.normal_()
        assert torch.equal(awake, network(images(), path="global"))
        assert not torch.equal(personal, network(images()))
    assert network.path is SamPath.PERSONAL
    network.path = SamPath.GLOBAL
    assert torch.equal(awake, network(images()))


def test_trained_parameters_are_shared_or_personal():
    for options, shared, personal in (
        ({}, {"lora"}, {"experts", "decoder"}),
        ({"decoder": "shared"}, {"lora", "decoder"}, {"experts"}),
        ({"decoder": "frozen"}, {"lora"}, {"experts"}),
        ({"decoder": "shared", "experts": 0}, {"lora", "decoder"}, set()),
    ):
        network = tiny_network(**options)
        split = network.key_split()
        assert ({part(name) for name in split.shared}, {part(name) for name in split.personal}) == (shared, personal)
        trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
        assert trained == {*split.shared, *split.personal}
        groups = network.parameter_groups()
        assert [group["name"] for group in groups] == ["shared", "personal"][: 1 + bool(personal)]
        assert sum(len(group["params"]) for group in groups) == len(trained)


def part(name: str) -> str:
    if name.startswith("sam.mask_decoder."):
        assert ".iou_prediction_head." not in name
        assert not any(f"_mlps.{head}." in name for head in (1, 2, 3))
        return "decoder"
    if ".mlp.experts." in name:
        return "experts"
    assert name.rpartition(".")[2] in ("query_a", "query_b", "value_a", "value_b")
    return "lora"


def test_only_trained_parameters_get_gradients():
    network = tiny_network()
    wake(network)
    prediction = network(images())
    routing = sam_outputs(prediction).routing
    (prediction.square().mean() + load_balance(routing.share, routing.probability)).backward()
    for name, parameter in network.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None and bool(parameter.grad.any())), name


def test_vit_b_uplink_is_0_59_megabytes_without_experts():
    with torch.device("meta"):
        network = SamNetwork(assemble(SAM_BUILDERS["vit_b"](256), 256), 256)
    state = network.state_dict()

    def uplink(split: tuple[str, ...]) -> int:
        return sum(state[name].numel() * state[name].element_size() for name in split)

    assert uplink(network.key_split().shared) == 589_824  # 12 blocks x (q, v) x 4 x (768 + 768) x 4 bytes
    assert not any("experts" in name or "mask_decoder" in name for name in network.key_split().shared)
    assert uplink(tuple(n for n in network.key_split().personal if "experts" in n)) == 12 * (4 + 32) * 768 * 4


def test_full_fine_tuning_shares_and_trains_everything():
    network = tiny_network(full=True)
    assert network.key_split().shared == tuple(network.state_dict())
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert network.expert_layers == []
    assert network.sam.image_encoder.training
    assert not tiny_network().sam.image_encoder.training
    torch.manual_seed(0)
    network = SamNetwork(assemble(SAM_BUILDERS["vit_t"](SIZE), SIZE), SIZE, full=True).eval()
    bias = network.sam.image_encoder.trunk.stages[1].blocks[0].attn.attention_biases
    with torch.no_grad():
        before = network(images(1))
        bias.normal_(std=3)  # in place, as a copy of weights arrives
        assert not torch.equal(before, network(images(1)))


def test_outputs_are_attached_only_in_train_mode():
    network = tiny_network()
    wake(network)
    outputs = sam_outputs(network(images()))
    assert outputs.path is SamPath.PERSONAL
    assert network.expert_layers == [f"sam.image_encoder.blocks.{block}.mlp.experts" for block in (0, 1)]
    assert outputs.routing.tokens == (32, 32)  # two images of 4 x 4 tokens
    torch.testing.assert_close(outputs.routing.share.sum(dim=1), torch.ones(2))
    assert sam_outputs(network(images(), path="global")).routing is None
    with torch.no_grad():
        assert sam_outputs(network(images())).routing is None
    with pytest.raises(Refused, match=r"found a prediction without two paths; set network_name to sam_vit_t"):
        sam_outputs(network.eval()(images()))


def assert_same_gradients(one: SamNetwork, other: SamNetwork) -> None:
    for plain, again in zip(one.parameters(), other.parameters(), strict=True):
        assert (plain.grad is None) == (again.grad is None)
        if plain.grad is not None:
            torch.testing.assert_close(plain.grad, again.grad, rtol=1e-5, atol=1e-7)  # the order of a sum may differ


@pytest.mark.parametrize("path", ["global", "personal"])
def test_checkpointing_keeps_values_gradients_and_names(path):
    plain, slim = tiny_network(), tiny_network(checkpointing=True)
    assert list(plain.state_dict()) == list(slim.state_dict())
    losses = []
    for network in (plain, slim):
        wake(network)
        with set_checkpoint_early_stop(False):  # computes all of a block again, also what no gradient asks for
            prediction = network(images(), path=path)
        loss = prediction.square().mean()
        routing = sam_outputs(prediction).routing
        if routing is not None:
            loss = loss + load_balance(routing.share, routing.probability)
        with torch.no_grad():
            network(images(), path=SamPath(path).other)  # between forward and backward, as a guide runs
        loss.backward()
        losses.append(loss)
    assert torch.equal(*losses)
    assert_same_gradients(plain, slim)


def test_checkpointing_updates_running_statistics_once():
    networks = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        sam = assemble(SAM_BUILDERS["vit_t"](SIZE), SIZE)
        networks.append(SamNetwork(sam, SIZE, full=True, checkpointing=checkpointing))
        networks[-1](images(2)).square().mean().backward()
    plain, slim = (dict(network.named_buffers()) for network in networks)
    assert plain["sam.image_encoder.trunk.stages.1.blocks.0.local_conv.bn.num_batches_tracked"] == 1
    assert plain.keys() == slim.keys()
    assert [name for name in plain if not torch.equal(plain[name], slim[name])] == []
    assert_same_gradients(*networks)


def test_checkpointing_stores_fewer_activations():
    def kept(**options: bool) -> int:
        network, total = tiny_network(**options), 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal total
            total += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            network(images())
        return total

    assert kept(checkpointing=True) < kept()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_copy_is_independent(checkpointing):
    network = tiny_network(checkpointing=checkpointing)
    wake(network)
    network(images()).sum().backward()  # a pass leaves nothing behind that cannot be copied
    twin = copy.deepcopy(network)
    assert twin.switch is not network.switch
    before = network(images())
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert torch.equal(network(images()), before)
    assert not torch.equal(twin(images()), before)
    assert sam_outputs(twin(images())).routing is not None


def test_bfloat16_autocast_returns_float32_with_outputs():
    network = tiny_network()
    wake(network)
    inferer = AutocastInferer(enabled=True)
    prediction = inferer(images(), network)
    assert prediction.dtype == torch.float32
    assert sam_outputs(prediction).routing is not None
    full = network(images())
    assert not torch.equal(prediction, full)
    # bfloat16 has 8 bits; a token that is torn between two experts may go to the other one
    assert (prediction - full).abs().mean() < 0.1 * full.abs().mean()
    prediction.mean().backward()
    assert inferer(images(), network, path="global").shape == full.shape


def test_invalid_arguments_are_refused_together():
    decoder = r"network_def#decoder: expected one of \['personal', 'shared', 'frozen'\], found 'own'"
    others = "#checkpointing: expected true or false, found 1.*#rank: .* found 0.*#top: expected at most 4"
    with pytest.raises(Refused, match=rf"(?s)4 problems.*{decoder}.*network_def{others}"):
        tiny_network(decoder="own", checkpointing=1, rank=0, top=5)


def test_catalogue_finds_sam_checkpoint(checkpoint, monkeypatch):
    monkeypatch.setenv("SAMFED_WEIGHTS", str(checkpoint.parent))
    network = client_network("sam_vit_t").eval()
    assert isinstance(network, SamNetwork)
    with torch.no_grad():
        assert network(images(1, 48, 32)).shape == (1, 1, 48, 32)
    monkeypatch.setenv("SAMFED_WEIGHTS", str(checkpoint.parent / "nowhere"))
    with pytest.raises(Refused, match=r"run `samfed weights sam_vit_b --from FILE\|URL`"):
        client_network("sam_vit_b")


def test_unsupported_channels_and_weights_are_refused(checkpoint):
    expected = r"(?s)in_channels: expected 3 for SAM, found 1.*out_channels: expected 1 for SAM, or 3 and more, found 2"
    with pytest.raises(Refused, match=expected):
        client_network("sam_vit_t", in_channels=1, out_channels=2)
    with pytest.raises(Refused, match=r"found sam_vit_t; set encoder_weights to null"):
        client_network("sam_vit_t", checkpoint=checkpoint, weights="efficientnet_lite0")
