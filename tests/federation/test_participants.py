"""Who plays which part: sites, unseen hospitals, networks, and what is refused before any work."""

from __future__ import annotations

from typing import Any

import pytest

from samfed_monai.config import find_bundle
from samfed_monai.core.errors import Refused
from samfed_monai.data import DataList
from samfed_monai.federation.participants import Participants
from samfed_monai.federation.workflow import client_config
from samfed_monai.protocol import UpdateGuard
from tests.methods import pick, present

SMALL = {"network_name": "basic_unet", "image_size": 32, "device": "cpu"}
R18, R34 = "deeplabv3plus_resnet18", "deeplabv3plus_resnet34"
FPN = "mobile_sam_fpn"
SAM = {"network_name": "sam_vit_t", "image_size": 64}


def participants(
    datalist: DataList, variant: str = "hssf", *, choices: Any = None, unseen: Any = (), **client: Any
) -> Participants:
    config = client_config(find_bundle("samfed_skin"), variant, {**SMALL, **client})
    return Participants(config, datalist, choices=choices or {}, unseen=unseen)


EXCHANGES = {
    "samfed": ("FedAvg", "weights"),
    "heterogeneous": ("CondensationFusion", "predictions"),
    "fedmd": ("Consensus", "predictions"),
    "local_only": ("LocalOnly", "none"),
}


@pytest.mark.parametrize("variant", present(*EXCHANGES))
def test_variant_selects_strategy_and_exchange(small_list, variant):
    found = participants(small_list, variant)
    assert (type(found.strategy).__name__, found.strategy.exchange.word) == EXCHANGES[variant]


def test_networks_and_exchange_follow_options(small_list):
    found = participants(small_list, exchange="weights")
    assert (found.strategy.exchange.word, found.config.value("client_algorithm#exchange")) == ("weights", "weights")
    assert participants(small_list).networks == {"site-1": FPN, "site-2": "basic_unet"}
    chosen = participants(small_list, choices={"site-1": {"network": R34, "learning_rate": 0.1}})
    assert chosen.networks == {"site-1": R34, "site-2": "basic_unet"}
    assert chosen.overrides == {"site-1": {"network_name": R34, "learning_rate": 0.1}, "site-2": {}}
    assert (chosen.server_network, chosen.all_networks) == (FPN, ["basic_unet", R34, FPN])
    alike = participants(small_list, mixed_networks=None, server_network=None)
    assert alike.networks == {"site-1": "basic_unet", "site-2": "basic_unet"}
    assert alike.server_network == "basic_unet"
    taken = participants(small_list, mixed_networks=["basic_unet", R34])
    assert taken.networks == {"site-1": "basic_unet", "site-2": R34}


def test_supervised_run_is_recognised_through_references(small_list):
    given = {"own_images": {"split": "@own_split"}, "own_split": "labelled", "train#dataset": "@own_images"}
    assert participants(small_list, "samfed").supervised is False
    assert participants(small_list, "samfed", **given).supervised is True


def test_mixed_networks_are_ignored_when_weights_are_averaged(small_list):
    found = participants(small_list, "no_sam", mixed_networks=[R18, R34])
    assert set(found.networks.values()) == {"basic_unet"}
    assert found.content() == {}, "run.json of a homogeneous run is what it was"
    found = participants(small_list, "no_sam", choices={"site-1": {"network": "basic_unet"}})
    assert set(found.networks.values()) == {"basic_unet"}, "chosen by another name, it can be averaged"


def test_fedavg_over_different_networks_is_refused(small_list):
    with pytest.raises(Refused) as caught:
        participants(small_list, "no_sam", choices={"site-1": {"network": R18}, "site-2": {"network": R34}})
    text = str(caught.value)
    first = f"found encoder.layer1.2.conv1.weight: site-1 ({R18}) has no such tensor"
    assert f"sites: expected the same network at all sites (FedAvg averages weights), {first}" in text
    assert f"site-2 ({R34}) has shape [64, 64, 3, 3]" in text
    assert "--variant heterogeneous" in text


#: Variant, options, those of the second site, and where its network is of another shape then.
UNLIKE_OPTIONS = [
    ("no_sam", {}, {"network_def#features": [4, 8, 16, 16, 16, 4]}, r"\(basic_unet\) has shape \[4, 3, 3, 3\]; "),
    ("pfedsam", SAM, {"network_def#rank": 8}, r"query_a: site-1 .* has shape \[4, 128\], site-2 .* \[8, 128\]; "),
]


@pytest.mark.parametrize(("variant", "options", "choice", "shape"), pick(UNLIKE_OPTIONS))
def test_different_network_options_per_site_are_refused(small_list, variant, options, choice, shape):
    with pytest.raises(Refused, match=rf"{shape}set network_def#..., such as the rank of LoRA, for the run"):
        participants(small_list, variant, choices={"site-2": choice}, **options)


DICE = {"_target_": "monai.losses.DiceLoss"}
STRUCTURE = {"loss": {"_target_": "samfed_monai.losses.StructureLoss"}}
HALVES = {"_target_": "monai.transforms.AsDiscreted", "keys": "label", "threshold": 0.5}
TAILORED = {"_target_": "samfed_monai.methods.fca.ClientTailored", "patterns": ["haed.*"]}
OF_SERVER = {"guides#global#_disabled_": False, "agreement#student": "global"}
PERSONAL = {"_target_": "samfed_monai.methods.fedavg.PersonalFedAvg"}
TWO = {"classes": ["a", "b"]}
HARD = {"terms#pseudo_label#labels": "hard"}
OWN_SCORES = {"network": R18, "image_size": 64, "label_resize": "nearest", "validate#scores#pooled": True}
OWN_WIDTH = {"choices": {"site-1": {"network": FPN, "network_def#width": 64}}}
ONE_IMAGE = {"mixed_networks": [R18], "server_network": R18, "unlabelled#dataloader#batch_size": 1}
UNSCORED = r"validate#evaluator: expected validate#scores among its handlers, found an evaluator without ScoreHandler"
NO_SAM_GUIDE = r"terms#pseudo_label: expected one of .*, found the guide 'sam'"
LEARNED = r"train\.json -> loss: .*images#weak_labels is true, found StructureLoss, which learns from unlabelled pixels"


def of_term(name: str, **arguments: Any) -> dict[str, Any]:
    return {"terms#pseudo_label#loss": {"_target_": f"monai.losses.{name}", **arguments}}


#: Variant, options, and what is refused before anything is computed.
REFUSED = [
    ("no_sam", {"network_name": R18, "image_size": 100}, r"image height: .*100 pixels; set image_size to 96 or 112"),
    ("heterogeneous", {"image_size": 100}, r"FPN -> image width: .*set image_size to 96 or 128"),
    ("no_sam", {"network_name": R18, "batch_size": 1}, r"Plus -> batch_size: .*at least 2.*set batch_size to 2 or"),
    ("heterogeneous", ONE_IMAGE, r"^refused: 1 problem\n  - DeepLabV3Plus -> unlabelled#dataloader#batch_size: "),
    ("no_sam", {"strategy": TAILORED}, r"strategy#patterns: .*found no name like 'haed\.\*'"),
    ("fedper", {"personal": ["haed.*"]}, r"train\.json -> personal: .*found no name like 'haed\.\*'"),
    ("samfed", {"learning_rate": -1}, r"-> optimizer: expected values that torch\.optim\.AdamW accepts, fou"),
    ("samfed", {"optimizer#weight_decay": -1}, r"'Invalid weight_decay value: -1'; correct them in the bundle"),
    ("samfed", {"optimizer#lr": 1.01}, r"train\.json -> optimizer: expected 0 to 1, found a learning rate of 1.01"),
    (
        "samfed",
        {"optimizer#params#groups": [{"params": ["conv_0.*"], "lr": 30.0, "learning_rate": 1, "weight-decay": 0}]},
        r"found a learning rate of 30; set learning_rate, or lr of the optimizer(.|\n)*: expected options of AdamW, "
        r"found 'learning_rate' in a group; did you mean 'lr'\?\n.* 'weight-decay' .* did you mean 'weight_decay'\?",
    ),
    ("samfed", {"limit": -3}, r"train\.json -> limit: expected a number of images >= 1, or null, found -3"),
    ("samfed", {"terms#sam_kd#schedule": "constnat"}, r"terms#sam_kd#schedule: .*did you mean 'constant'"),
    ("ditto", OF_SERVER, r"terms#pseudo_label: .*as each site trains its own, found a term that would get"),
    ("fedprox", {"strategy": PERSONAL}, r"^refused: 1 problem\n  - terms#proximal: expected a term that does not"),
    ("samfed", {"stream#cutmix": 5}, r"^refused: 1 problem\n  - stream#cutmix: .* found 5"),
    ("samfed", {"strong_view#blur": -1, "weak_view#zoom": [2, 1]}, r"refused: 2 .*\n  - Weak.*\n  - Strong.* -1"),
    ("samfed", {"before#learning_rate#schedule": "x"}, r"^refused: 1 problem\n  - RoundLearningRate -> sched.*'x'"),
    ("heterogeneous", {"client_algorithm#gate": "x"}, r"^refused: 1 problem\n  - client_algorithm#gate: .* found 'x'"),
    ("ditto", {"personal": ["<norm>"]}, r"^refused: 1 problem\n  - train\.json -> personal: expected no patterns: a "),
    ("fedrep", {"personal": ["final_conv.*"], "local_steps": 1}, r"1 problem\n  - before#parts .*; set local_steps"),
    ("fedproto", {"mixed_networks": ["basic_unet", R18]}, r"1 problem\n  - sites: .*same width, .*, 256 at site-2; ch"),
    *(("samfed", {"guides": none}, NO_SAM_GUIDE) for none in (None, [])),
    *(
        ("no_sam", {name: None}, rf"train\.json -> {name}: expected a component, which every site uses, found null")
        for name in ("train#trainer", "validate#dataloader", "test#dataloader", "validate#scores")
    ),
    ("no_sam", {"test": None}, r"train\.json -> test#dataloader: .*found no such id; undo the change"),
    ("no_sam", {"test#dataloader#_disabled_": True}, r"-> test#dataloader: .*found a disabled component"),
    *(("no_sam", {"validate#handlers": none}, UNSCORED) for none in (None, [])),
    ("no_sam", {"validate#evaluator#val_handlers": None}, UNSCORED),
    (
        "samfed",
        {"loss": DICE},
        r"loss: expected a loss that accepts the network's logits, found DiceLoss: 1\.03 for the right answer, 0 for "
        r"an undecided one; set sigmoid",
    ),
    ("no_sam", {"loss": {**DICE, "to_onehot_y": True}, **TWO}, r"train\.json -> loss: .*found DiceLoss: 0\."),
    (
        "samfed",
        {"loss": {"_target_": "torch.nn.BCELoss"}},
        r"train\.json -> loss: .*found BCELoss, which does not accept them \(all elements of input should be",
    ),
    ("samfed", of_term("MaskedDiceLoss") | HARD, r"terms#pseudo_label#loss: .*found MaskedDiceLoss: 1\.03 for the"),
    ("samfed", of_term("MaskedDiceLoss") | TWO, r"  - terms#pseudo_label#loss: .* use structure or dice_ce"),
    ("samfed", of_term("DiceCELoss", sigmoid=True), r"logits, labels and weights of pixels, found DiceCELoss, which "),
    ("heterogeneous", OWN_WIDTH, r"^refused: 1 problem\n  - federate\.json -> sites#site-1#network_def: expected the "),
    (
        "hssf",
        {"choices": {"site-1": OWN_SCORES}},
        r"3 problems\n.*site-1#image_size: .*the run's value, .* found 64; set (.|\n)*#label_resize(.|\n)*#pooled",
    ),
    (
        "supervised",
        {"images#weak_labels": True},
        r"train\.json -> resize: expected a component that ignores unlabelled pixels \(255\), .* that turns labels "
        r"0, 1 and 255 into 0, .*, \.\.\.; use the variant weak_labels",
    ),
    ("weak_labels", {"binary_label": HALVES}, r"train\.json -> binary_label: .* into 0, 1; use the variant"),
    *(("weak_labels", {**STRUCTURE, **more}, LEARNED) for more in ({}, TWO)),
    (
        "supervised",
        {"images#weak_labels": True, **TWO},
        r"train\.json -> resize: expected .* found a component that gives every pixel a class; use the",
    ),
]


@pytest.mark.parametrize(("variant", "options", "message"), pick(REFUSED))
def test_dry_run_refuses_unusable_options(small_list, variant, options, message):
    with pytest.raises(Refused, match=message):
        participants(small_list, variant, **options).dry_run()


def of_loss(name: str, *classes: str, **arguments: Any) -> Any:
    return "no_sam", {"loss": {"_target_": name, **arguments}, "classes": list(classes)}


@pytest.mark.parametrize(
    ("variant", "options"),
    [
        of_loss("monai.losses.DiceCELoss", "a", sigmoid=True),
        of_loss("monai.losses.TverskyLoss", "a", sigmoid=True),
        of_loss("torch.nn.BCEWithLogitsLoss", "a"),
        of_loss("monai.losses.DiceLoss", *"abc", softmax=True, to_onehot_y=True),
        of_loss("monai.losses.DiceFocalLoss", *"ab", softmax=True, to_onehot_y=True),
        ("samfed", of_term("MaskedDiceLoss", sigmoid=True)),
        *(("weak_labels", options) for options in ({}, TWO)),  # unlabelled pixels are left out
        ("weak_labels", {"loss": {"_target_": "monai.losses.DiceCELoss", "other_act": 1}}),  # refused where it is built
        ("supervised", {"images#weak_labels": False}),
        ("fedrep", {"personal": ["final_conv.*"]}),  # the number of steps depends on the site's images
        ("no_sam", {"validate#handlers": [{"_target_": "samfed_monai.handlers.ScoreHandler"}]}),
        ("hssf", {"terms#own": {"_target_": "os.fspath", "path": "@store_dir"}}),  # it needs a site's paths
        ("heterogeneous", {"choices": {"site-1": {"network": R18, "network_def#encoder_output_stride": 8}}}),
    ],
)
def test_dry_run_accepts_usable_options(small_list, variant, options):
    participants(small_list, variant, **options).dry_run()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"choices": {"site-7": {"network": R18}}},
            r"federate\.json -> sites#site-7: expected one of .*site-1.*found 'site-7'; did you mean 'site-\d'\?",
        ),
        ({"unseen": ["site-8", "site-9"]}, r"unseen: expected one of (.|\n)*'site-9'; did you mean 'site-\d'"),
        ({"choices": {"site-2": {"network": "resnet_18"}}}, r"network of site-2: expected one of .*found 'resnet_18'"),
        ({"mixed_networks": ["basic_unett"]}, r"network of site-1: .*did you mean 'basic_unet'"),
        ({"strategy": {"_target_": "samfed_monai.transforms.PublicTargets"}}, r"a Strategy, found PublicT.*; use one"),
        ({"server_network": "huge"}, r"network of the server: .*found 'huge'"),
        ({"unseen": ["site-1"], "choices": {"site-1": {"network": R18}}}, r"#site-1: expected one of \['site-2'\]"),
    ],
)
def test_unknown_names_and_invalid_strategy_are_refused(small_list, options, message):
    with pytest.raises(Refused, match=message):
        participants(small_list, **options)


def test_unseen_sites_and_sites_without_images_do_not_train(small_list):
    assert participants(small_list).sites == ("site-1", "site-2")
    found = participants(small_list, unseen=["site-1"])
    assert (found.sites, found.unseen) == (("site-2",), ("site-1",))
    assert found.content()["unseen"] == ["site-1"]
    small_list.sites["site-2"].unlabelled.clear()
    found = participants(small_list)
    assert (found.sites, found.unseen) == (("site-1",), ("site-2",))


def test_federation_without_training_site_is_refused(small_list):
    with pytest.raises(Refused, match=r"unseen: expected a site that trains, found 2 sites: 2 unseen, 0 without"):
        participants(small_list, unseen=["site-1", "site-2"])
    for site in small_list.sites.values():
        site.unlabelled.clear()
    with pytest.raises(Refused, match="0 unseen, 2 without images to train on"):
        participants(small_list)


def test_site_options_reach_network_built_by_server(small_list):
    dilated = {"network": R18, "network_def#encoder_output_stride": 8}
    found = participants(small_list, choices={"site-1": dilated, "site-2": {"network": R18}})
    server = found.server(rounds=1, seed=0, start=None, guard=UpdateGuard())
    dilations = [server.networks[site]().encoder.layer3[0].conv1.dilation for site in ("site-1", "site-2")]
    assert dilations == [(2, 2), (1, 1)]
