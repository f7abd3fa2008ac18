"""Whole jobs whose networks are shared in part, over a transport that serialises every message."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch

from samfed_monai.cli.main import main
from samfed_monai.config import find_bundle
from samfed_monai.core.errors import Refused
from samfed_monai.core.io import read_json, safe_load, write_json
from samfed_monai.core.model_file import network_overrides
from samfed_monai.data import DataList
from samfed_monai.federation.run_models import RunModels
from samfed_monai.federation.site_network import Start
from samfed_monai.federation.workflow import client_config
from samfed_monai.handlers.model_loader import trained_weights
from samfed_monai.networks import CLIENT_NETWORKS, client_network, network_split
from samfed_monai.networks.sam.build import SAM_BUILDERS, build_sam, vit_encoder
from samfed_monai.networks.sam.network import sam_network
from samfed_monai.networks.torchvision_ops import declare_torchvision_operators
from samfed_monai.privacy import read_audit
from samfed_monai.results import validate_results
from tests.federation.test_job import CLIENT, job
from tests.federation.wired import Homes
from tests.methods import needs, present

STAYS = ["final_conv.*"]
KEYS = {f"final_conv.{name}" for name in ("weight", "bias")}
ONE = {"unseen": ["site-2"], "allow_single_site": True}
TOY = "vit_toy"


@pytest.fixture
def toy_sam(tmp_path, monkeypatch) -> dict[str, Any]:
    """Client options of a SAM of 64 px whose encoder has two blocks of width 16, with its checkpoint."""

    def encoder(size: int) -> Any:
        return vit_encoder(size, width=16, depth=2, heads=2, global_blocks=(1,))

    declare_torchvision_operators()
    from segment_anything import modeling

    wide = modeling.TwoWayTransformer
    monkeypatch.setattr(modeling, "TwoWayTransformer", lambda **given: wide(**{**given, "mlp_dim": 32}))
    monkeypatch.setitem(SAM_BUILDERS._entries, TOY, encoder)
    monkeypatch.setitem(CLIENT_NETWORKS._entries, f"sam_{TOY}", lambda **options: sam_network(TOY, **options))
    torch.manual_seed(0)
    torch.save(build_sam(TOY, None, 64).state_dict(), tmp_path / "sam.pt")
    return {
        "image_size": 32,
        "batch_size": 1,
        "local_steps": 2,
        "amp": False,
        "network_name": f"sam_{TOY}",
        "network_def#size": 64,
        "network_def#checkpoint": str(tmp_path / "sam.pt"),
    }


@needs("fedper")
def test_personal_head_is_sent_only_before_round_0(small_federation, tmp_path):
    options = {**ONE, "variant": "fedper", "train": {**CLIENT, "personal": STAYS}, "rounds": 2}
    homes = Homes(small_federation, tmp_path / "homes")
    results = job(small_federation, tmp_path / "run", **options).run(homes)
    assert validate_results(results) == []
    assert results["own_models"] is True
    stored = safe_load(tmp_path / "run" / "rounds" / "001" / "global.safetensors")
    assert stored
    assert not KEYS & stored.keys()
    assert homes.requests.count(("prepare", "site-2")) == 1
    trained, idle = (homes.nodes[site].client.own.local_part(whole=False) for site in ("site-1", "site-2"))
    assert idle.keys() == KEYS, "a hospital that takes no part has the warm start's"
    assert not torch.equal(idle["final_conv.weight"], trained["final_conv.weight"])
    assert results["unseen"]["site-2"]["test"]["n"] == 2
    lines = read_audit(tmp_path / "homes" / "site-1" / "sites" / "site-1" / "audit.jsonl")
    assert [line["personal"] for line in lines if line["outcome"] == "declared"] == [2]


@pytest.mark.parametrize("bundle", ["samfed_skin", "samfed_polyp"])
@pytest.mark.parametrize("variant", present("fedbn", "fedper", "fedrep"))
def test_personal_patterns_of_variant_match_network(bundle, variant):
    declared = client_config(find_bundle(bundle), variant, {}).value("personal")
    for name, norms in (("deeplabv3plus_resnet18", 29), ("deeplabv3plus_efficientnet_lite0", 58)):
        with torch.device("meta"):
            network = client_network(name)
        names = set(network.state_dict())
        head = {name for name in names if name.startswith("segmentation_head.")}
        norm = {name for name in names if f"{name.rpartition('.')[0]}.running_mean" in names}
        assert (len(head), len(norm)) == (2, 5 * norms)
        split = network_split(network, declared)
        assert set(split.personal) == (norm if variant == "fedbn" else head)
        assert set(split.shared) == names - set(split.personal)


@needs("pfedsam_two_stage")
def test_pfedsam_sends_lora_only_and_resumes_exactly(small_federation, tmp_path, toy_sam):
    options = {"variant": "pfedsam_two_stage", "train": toy_sam, "cache_dir": tmp_path / "cache"}
    homes = Homes(small_federation, tmp_path / "homes")
    whole = job(small_federation, tmp_path / "whole", rounds=2, **options).run(homes)
    assert validate_results(whole) == []
    path = tmp_path / "whole" / "rounds" / "001" / "global.safetensors"
    sent = safe_load(path)
    assert all(name.endswith(("query_a", "query_b", "value_a", "value_b")) for name in sent)
    lora = sum(tensor.numel() * tensor.element_size() for tensor in sent.values())
    record = read_json(path.parent / "round.json")
    for entry in record["sites"].values():  # the answer and one message of scores, each with a header
        assert 0 < entry["up_bytes"] - lora < 6000
        assert {"expert_1", "expert_4", "mutual_kd", "load_balance", "supervised"} <= entry["terms"].keys()
    state = safe_load(tmp_path / "homes" / "site-1" / "states" / "001.safetensors")
    assert any(name.endswith("mlp.experts.up") for name in state)
    assert not any("attn.qkv.linear" in name for name in state), "frozen weights are stored nowhere"
    job(small_federation, tmp_path / "parts", rounds=1, **options).run()
    begun = read_json(tmp_path / "parts" / "run.json")
    write_json(tmp_path / "parts" / "run.json", {**begun, "config": {**begun["config"], "rounds": 2}})
    parts = job(small_federation, tmp_path / "parts", rounds=2, **options).run()
    assert parts["hashes"]["model_last"] == whole["hashes"]["model_last"]
    assert parts["sites"] == whole["sites"]
    with pytest.raises(Refused, match=r"found no such values: they never left the sites \(site-1, site-2\)"):
        RunModels(tmp_path / "whole").tensors("site-1")
    models = RunModels(tmp_path / "parts")
    path = models.write(tmp_path / "own.safetensors", "site-1")
    ids = network_overrides(path) | {"network_def#checkpoint": toy_sam["network_def#checkpoint"]}
    network = sam_network(TOY, **{name.partition("#")[2]: value for name, value in ids.items()})
    assert trained_weights(network, path).keys() == {*network.key_split().shared, *network.key_split().personal}
    data = ["--datalist", small_federation / "list.json", "--data-root", small_federation]
    data += ["--model", tmp_path / "parts", "--output-dir", tmp_path / "scores"]
    place = ("--network_def#checkpoint", toy_sam["network_def#checkpoint"])
    assert main(["evaluate", "samfed_skin", *map(str, data), *place]) == 0
    scores = read_json(tmp_path / "scores" / "metrics.json")["sites"]
    assert {site: row["dice"] for site, row in scores.items()} == {
        site: row["test"]["dice"] for site, row in parts["sites"].items()
    }
    with pytest.raises(Refused, match=r"all tensors of this network, found \d+ missing, .* kept at the sites"):
        trained_weights(network, models.server)


#: What of a network each variant sends, and whether it trains.
SENT = {
    "pfedsam": {"lora"},
    "fca": {"lora", "decoder"},
    "fedsam": {"lora", "decoder"},
    "local_sam": set(),
    "full_sam": {"decoder", "encoder"},
    "zero_shot": set(),
}


@pytest.mark.parametrize("variant", present(*SENT))
def test_sam_variants_send_declared_parts(small_federation, tmp_path, toy_sam, variant):
    options = {"variant": variant, "rounds": 1, "train": toy_sam, "cache_dir": tmp_path / "cache"}
    assert validate_results(job(small_federation, tmp_path / "run", **options).run()) == []
    round = tmp_path / "run" / "rounds" / "000"
    stored, terms = safe_load(round / "global.safetensors"), read_json(round / "round.json")["sites"]["site-1"]["terms"]
    found = {
        "lora": any(".attn.qkv.query_" in name for name in stored),
        "decoder": any(name.startswith("sam.mask_decoder.") for name in stored),
        "encoder": any(name.endswith("blocks.0.attn.qkv.weight") for name in stored),
    }
    assert {part for part, is_there in found.items() if is_there} == SENT[variant]
    assert bool(terms) is (variant != "zero_shot")
    assert not [name for name in stored if ".experts." in name]
    assert ("load_balance" in terms) is (variant == "pfedsam")
    assert "mutual_kd" not in terms
    if variant == "fca":
        models = safe_load(round / "server.safetensors")
        assert {f"{place}.{name}" for place in (0, 1) for name in stored} <= models.keys()
        own = {name for name in stored if not torch.equal(models[f"0.{name}"], models[f"1.{name}"])}
        assert own
        assert own <= {name for name in stored if name.endswith(("_a", "_b"))}, "the decoder is one for all"


def test_labelled_sites_start_from_sam_without_public_images(small_federation, tmp_path, toy_sam, caplog):
    federation = tmp_path / "federation"
    shutil.copytree(small_federation, federation)
    replace(DataList.load(federation / "list.json"), public=[]).save(federation / "list.json")
    options = {"variant": "pfedsam", "rounds": 1, "train": toy_sam}
    with caplog.at_level("INFO", logger="samfed_monai"):
        results = job(federation, tmp_path / "run", warm_start_steps=50, **options).run()
    assert validate_results(results) == []
    assert "warm start: none, the list has no public images" in caplog.text
    (warm,) = (tmp_path / "run" / "cache" / "warm_start").glob("*.safetensors")
    sam = torch.load(tmp_path / "sam.pt")
    decoder = {name: tensor for name, tensor in safe_load(warm).items() if ".mask_decoder." in name}
    assert decoder
    assert all(tensor.equal(sam[name.removeprefix("sam.")]) for name, tensor in decoder.items())
    with pytest.raises(Refused, match=r"synthetic-0 -> public: expected public images with masks.*found none"):
        job(federation, tmp_path / "no", **{**options, "variant": "no_sam", "train": {}}).run()
    assert not (tmp_path / "no" / "rounds").exists()


@needs("pfedsam_two_stage")
@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"local_steps": 1}, r"1 problem\n.*before#stages .* one step for each part.*1 steps with a share of 0\.5"),
        ({"network_def#experts": 0}, r"optimizer#params#groups#0#params: .*found no parameter like '\*\.experts\.\*'"),
        ({"network_def#experts": 0, "optimizer#params#groups": []}, r"2 prob.*\n.*\n.*terms#load_balance: .*experts"),
    ],
)
def test_invalid_pfedsam_settings_are_refused_before_round_0(small_federation, tmp_path, toy_sam, train, message):
    settings = {"variant": "pfedsam_two_stage", "rounds": 1, "train": {**toy_sam, **train}}
    with pytest.raises(Refused, match=message):
        job(small_federation, tmp_path / "run", **settings).run()
    assert not (tmp_path / "run" / "rounds").exists()
    assert not (tmp_path / "run" / "cache" / "warm_start").exists(), "nothing was trained"


def test_site_with_different_sam_is_refused_before_round_0(small_federation, tmp_path, toy_sam, monkeypatch):
    federated = job(small_federation, tmp_path / "run", variant="fedsam", train=toy_sam)
    monkeypatch.setattr("samfed_monai.federation.site.sam_fingerprint", lambda *_: {"base_sam": "0" * 64})
    with pytest.raises(Refused, match=r"SAM's weights in this site's network.*found 000000000000; install the server"):
        federated.run(Homes(small_federation, tmp_path / "homes"))


def test_start_is_split_and_checked_against_network(toy_sam):
    def build(**options: Any) -> Any:
        return CLIENT_NETWORKS[f"sam_{TOY}"](checkpoint=toy_sam["network_def#checkpoint"], **options)

    warm = {name: tensor + 1 for name, tensor in build(experts=0).state_dict().items() if "output_upscaling" in name}
    start = Start.of(build, warm, personal=(), seed=0)
    assert start.shared.keys() == set(build().key_split().shared)
    name = "sam.mask_decoder.output_upscaling.0.bias"
    assert torch.equal(start.personal[name], warm[name])
    assert "sam.image_encoder.pos_embed" in start.whole.keys() - start.trained.keys()
    with pytest.raises(Refused, match=r"trained tensors that are frozen at the sites.*use the same rank and decoder"):
        Start.of(lambda: build(decoder="frozen"), warm, personal=(), seed=0)
    with pytest.raises(Refused, match="1 tensors of another network, first other"):
        Start.of(build, {"other": torch.zeros(1)}, personal=(), seed=0)
