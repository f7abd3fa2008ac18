import json

import pytest
import torch
from safetensors import safe_open

from samfed_monai.core.errors import Refused
from samfed_monai.core.io import save_tensors
from samfed_monai.networks.sam.adapter import (
    Adapt,
    Adapter,
    adapted_tensors,
    load_adapter,
    prepare,
    read_header,
    save_adapter,
)
from tests.networks.sam.tiny import SIZE, tiny_sam

BELONGS = {"base": "vit_t", "base_sha256": "ab" * 32, "size": SIZE}


def sam():
    return tiny_sam().eval()


@pytest.fixture
def written(tmp_path):
    network = sam()
    prepare(network, Adapt.LORA, 2)
    for parameter in network.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    path = tmp_path / "adapter.safetensors"
    save_adapter(path, network, Adapter(**BELONGS, adapt=Adapt.LORA, rank=2, public_hash="cd" * 32, fit={"seed": 1}))
    return path, network


def metadata_of(path):
    with safe_open(path, framework="pt") as stream:
        return stream.metadata()


def test_loaded_adapter_reproduces_teacher(written):
    path, network = written
    fresh = sam()
    header = load_adapter(path, fresh, **BELONGS)
    image = torch.rand(1, 3, SIZE, SIZE)
    with torch.no_grad():
        assert torch.equal(fresh(image), network(image))
    assert header.fit == {"seed": 1}
    assert header.adapt is Adapt.LORA


def test_fault_75_flipped_bit_or_missing_checksum_is_refused(written, tmp_path):
    path, network = written
    content = bytearray(path.read_bytes())
    content[-4] ^= 1  # the lowest bit of the last number: finite, and another one
    (tmp_path / "flipped.safetensors").write_bytes(content)
    fields = json.loads(metadata_of(path)["adapter"])
    del fields["checksum"]
    save_tensors(tmp_path / "none.safetensors", adapted_tensors(network), {"adapter": json.dumps(fields)})
    for name in ("flipped", "none"):
        with pytest.raises(Refused, match="expected the tensors as written, found another checksum"):
            load_adapter(tmp_path / f"{name}.safetensors", sam(), **BELONGS)
    with pytest.raises(Refused, match="expected a teacher's adapter, found a folder; name a file in it"):
        load_adapter(tmp_path, sam(), **BELONGS)


def test_adapter_contains_only_lora_prompt_encoder_and_decoder(written):
    names = set(adapted_tensors(written[1]))
    assert {name.partition(".")[0] for name in names} == {"image_encoder", "prompt_encoder", "mask_decoder"}
    assert sum(name.startswith("image_encoder.") for name in names) == 2 * 4
    assert "prompt_encoder.no_mask_embed.weight" in names


def test_fault_29_mismatched_adapter_is_refused(written):
    path, _ = written
    other = {"base": "vit_b", "base_sha256": "00" * 32, "size": 512}
    with pytest.raises(Refused, match="refused: 3 problems") as refused:
        load_adapter(path, sam(), **other)
    for key in other:
        assert f"{path} -> {key}: expected" in str(refused.value)
    assert "fit a new adapter with `samfed teach`" in str(refused.value)
    hints = {problem.where.rpartition(" ")[2]: problem.hint for problem in refused.value.problems}
    assert hints["size"].startswith("set size of teacher.json to 64 (in a federation --teacher#size 64), or fit")
    assert hints["base"].startswith("set base of teacher.json to vit_t (in a federation --teacher#base vit_t), or fit")
    assert hints["base_sha256"].startswith("install the SAM weights that it was fitted on (`samfed weights`)")


def test_invalid_or_outdated_adapter_files_are_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"\x08\x00")
    with pytest.raises(Refused, match=r"expected a teacher's adapter, found no safetensors file \("):
        read_header(path)
    for metadata, found in (
        ({}, "no adapter header"),
        ({"adapter": '{"format": "samfed-adapter-0"}'}, "another format"),
        ({"adapter": '{"format": "samfed-adapter-1", "adapt": "lora", "rang": 2}'}, ".*'rang'"),
    ):
        save_tensors(path, {"x": torch.zeros(1)}, metadata)
        with pytest.raises(Refused, match=f"expected format 'samfed-adapter-1', found {found}"):
            read_header(path)


def test_invalid_tensors_are_refused(written, tmp_path):
    path, network = written
    tensors = adapted_tensors(network)
    spoilt = tensors | {"prompt_encoder.no_mask_embed.weight": torch.full((1, 256), float("nan"))}
    del tensors["mask_decoder.iou_token.weight"]
    for given, message in ((spoilt, r"no_mask_embed\.weight: expected finite values"), (tensors, "iou_token")):
        save_tensors(tmp_path / "bad.safetensors", given, metadata_of(path))
        with pytest.raises(Refused, match=message):
            load_adapter(tmp_path / "bad.safetensors", sam(), **BELONGS)


def test_prepare_trains_only_selected_parts():
    for adapt, trained in (("none", set()), ("decoder", {"prompt_encoder", "mask_decoder"})):
        network = sam()
        prepare(network, Adapt(adapt), 0)
        assert {name.partition(".")[0] for name, p in network.named_parameters() if p.requires_grad} == trained
