"""One short job of every method that learns without a SAM: its results and terms, and resuming it.

Each job runs once, for all tests of this file. The state of a killed run is copied while the job runs.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from samfed_monai.cli.main import main
from samfed_monai.config.variants import resolved_method
from samfed_monai.core.io import read_json, safe_load
from samfed_monai.data import render_synthetic
from samfed_monai.data.weak_labels import weaken_list
from samfed_monai.privacy import read_audit
from samfed_monai.protocol import Strategy
from samfed_monai.reports import Report
from samfed_monai.results import validate_results
from tests.federation.test_job import CLIENT, UNLIKE, job
from tests.methods import needs, present
from tests.networks.sam.tiny import tiny_sam

pytestmark = pytest.mark.slow

SURE = {"agreement#tau": 0.5}
WITHOUT_SAM = {
    **{"teacher_adapt": "off", "guides#sam#_disabled_": True, "guides#global#_disabled_": True},
    **{"terms#sam_kd#_disabled_": True, "terms#global_kd#_disabled_": True, "terms#pseudo_label#teacher": "weak"},
    **{"agreement#rule": "student", "agreement#student": "weak", "terms#pseudo_label#labels": "hard", **SURE},
}
LAST_LAYER = {**SURE, "personal": ["final_conv.*"]}
SMALL_SAM = {
    **{"terms#see#checkpoint": __file__, "terms#see#sam_size": 64, "terms#see#views": 1, "terms#see#relative": 1.0},
    "network_def#feature_groups": [],  # of a pyramid, which the network here has not
}
ONE_BATCH = {"client_algorithm#batches": 1, "client_algorithm#first_batches": 1}
IN_TURN = {"client_algorithm#after": 0, **ONE_BATCH, "before#parts#share": 0.5, "local_steps": 2}

#: Options by method that have an effect in two short rounds, and numbers that its sites report in the second one. Of
#: the rules that keep every reply one has a row. ``dp_only``, ``oracle``, ``fedbn`` and ``fedper`` run in
#: ``federation/``, ``drflm`` and ``fedda_cyclic`` in ``flare/``.
ROWS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "apple": (SURE, {"share_0", "share_1"}),
    "cpss": (SURE, {"style_swap"}),
    "ditto": (SURE, {"ditto"}),
    "elcfs": (SURE, {"episode", "episode_contrast"}),
    "elcfs_labelled": ({}, {"episode"}),
    "fedala": ({**SURE, **ONE_BATCH}, {"mixed"}),
    "fedca": ({**SURE, "terms#contrast#rounds": 2}, {"contrast"}),
    "fedgin": (SURE, {"pseudo_label"}),
    "fedicra": (IN_TURN, {"own", "tree", "crf", "sites"}),
    "fedmd": (UNLIKE, {"public_kd", "public_supervised"}),
    "fedproto": ({**UNLIKE, "mixed_networks": ["basic_unet"]}, {"prototype"}),
    "fedprox": ({**SURE, "local_steps": 2}, {"proximal"}),
    "fedrep": ({**LAST_LAYER, "local_steps": 2}, {"pseudo_label"}),
    "fedsemidg": ({"after#gap#batches": 1}, {"dual_guide", "alignment", "generalisation_gap"}),
    "hssf": ({**UNLIKE, "client_algorithm#gate": "always"}, {"public_kd", "public_supervised"}),
    "local_only": (UNLIKE, {"public_supervised"}),
    "mean_teacher": ({}, {"consistency"}),
    "no_sam": (SURE, {"pseudo_label"}),
    "norm_clipping": (WITHOUT_SAM, {"pseudo_label"}),
    "see": (SMALL_SAM, {"see_labelled", "crf"}),
    "see_few": (SMALL_SAM, {"see_labelled"}),
    "self_training": ({}, {"pseudo_label", "global_kd"}),
    "semifl": (SURE, {"mixup"}),
    "clustered_sites": ({**SURE, "strategy#least": 1}, {"pseudo_label"}),
    "supervised": ({}, {"supervised"}),
    "unimatch": ({"terms#unimatch#tau": 0.5}, {"unimatch"}),
    "weak_labels": ({}, {"crf", "crf_labelled"}),
}
#: Kinds of messages in a site's audit by the method's exchange.
KINDS = {"predictions": "soft_masks", "none": "metrics"}
#: Lines in the log of a run before its first round.
ANNOUNCED = {
    "elcfs": "elcfs: every site sends amplitude-spectrum windows of its images, each of at least 1 images",
    "elcfs_labelled": "elcfs_labelled: every site sends amplitude-spectrum windows of its images",
    "clustered_sites": "clustered_sites: every site sends a graph descriptor of its images, each of at least 1 images",
}


class Ran(NamedTuple):
    results: dict[str, Any]
    whole: Path
    cut: Path
    options: dict[str, Any]
    federation: Path

    def record(self, round: int, run: str = "whole") -> dict[str, Any]:
        found: dict[str, Any] = read_json(getattr(self, run) / "rounds" / f"{round:03d}" / "round.json")
        return found

    def state(self, of: str) -> dict[str, torch.Tensor]:
        """The state of the server, or of a site (``clients/site-1``), that the second round stored."""
        return safe_load(self.whole / "rounds" / "001" / f"{of}.safetensors")


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small sites with masks, and with points (``weak.json``)."""
    folder = tmp_path_factory.mktemp("federation")
    counts: dict[str, Any] = {"images_per_site": 3, "public": 2, "validation": 1, "test": 1, "size": (64, 64)}
    listed = render_synthetic(folder, sites=2, labelled=True, **counts)
    listed.save(folder / "list.json")
    weaken_list(listed, folder, dict.fromkeys(listed.sites, "points")).save(folder / "weak.json")
    return folder


@pytest.fixture(autouse=True)
def toy_sam(monkeypatch: pytest.MonkeyPatch) -> None:
    if present("see"):
        from samfed_monai.methods import see

        monkeypatch.setattr(see, "_shared_sam", lambda base, checkpoint, size: tiny_sam())


@pytest.fixture(scope="module")
def ran(federation: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Ran]:
    """The job of a method, which runs on first use, and the files of one that is killed in round 1."""
    done: dict[str, Ran] = {}
    cache = tmp_path_factory.mktemp("cache")

    def run(variant: str) -> Ran:
        if variant in done:
            return done[variant]
        folder = tmp_path_factory.mktemp(variant)
        name = "weak" if resolved_method(None, variant).labels == "weak" else "list"
        train = {**CLIENT, "local_steps": 1, **ROWS[variant][0]}
        options = {"variant": variant, "train": train, "datalist": federation / f"{name}.json"}
        options["rounds"] = 3 if variant == "fedca" else 2  # two of contrast, and one of labels
        options["cache_dir"] = folder / "cache" if variant == "fedca" else cache
        take = Strategy.take

        def copied(self: Strategy, round: int, site: str, update: Any) -> None:
            if round == 1 and not (folder / "cut").exists():
                shutil.copytree(folder / "whole", folder / "cut")
            take(self, round, site, update)

        logging.getLogger("samfed_monai").setLevel(logging.INFO)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Strategy, "take", copied)
            results = job(federation, folder / "whole", **options).run()
        done[variant] = Ran(results, folder / "whole", folder / "cut", options, federation)
        return done[variant]

    return run


@pytest.mark.parametrize("variant", present(*ROWS))
def test_two_rounds_produce_declared_results(ran, variant):
    method, found = resolved_method(None, variant), ran(variant)
    results = found.results
    assert validate_results(results) == []
    assert (results["exchange"], results["skipped"]) == (method.exchange, [])
    statistics = {"spectrum", "graph", "prototypes", "features"} & set(method.leaves_site)
    assert ("statistics" in results["privacy"]) == bool(statistics)
    assert ANNOUNCED.get(variant, "") in (found.whole / "run.log").read_text()
    assert {entry["status"] for round in (0, 1) for entry in found.record(round)["sites"].values()} == {"ok"}
    for site, entry in found.record(1)["sites"].items():
        terms = entry["terms"]
        assert all(math.isfinite(terms[name]) and terms[name] != 0 for name in ROWS[variant][1]), terms
        assert math.isfinite(results["models"]["last"]["sites"][site]["test"]["dice"])
        kinds = {line["kind"] for line in read_audit(found.whole / "sites" / site / "audit.jsonl")}
        assert kinds == {"metrics", KINDS.get(method.exchange, method.exchange)}


#: Methods with a state of sites, guides or server between rounds, and one without.
KEEPING = (
    *("apple", "clustered_sites", "ditto", "elcfs", "fedala", "fedca", "fedicra", "fedmd", "fedproto", "fedrep"),
    *("fedsemidg", "hssf", "local_only", "no_sam", "see", "semifl"),
)


@pytest.mark.parametrize("variant", present(*KEEPING))
def test_killed_run_resumes_bitwise_equal(ran, variant):
    found = ran(variant)
    assert not (found.cut / "rounds" / "001").exists()
    again = job(found.federation, found.cut, **found.options).run()
    assert found.record(1, "cut")["files"] == found.record(1)["files"]
    assert again["hashes"]["model_last"] == found.results["hashes"]["model_last"]
    for whole in found.whole.glob("pseudo_labels/*/0001.safetensors"):
        assert (found.cut / whole.relative_to(found.whole)).read_bytes() == whole.read_bytes()


PERSONAL = {"ditto": "network.", "fedala": "algorithm.", "apple": "algorithm."}


@pytest.mark.parametrize("variant", present(*PERSONAL))
def test_personal_state_is_kept_and_not_sent(ran, variant):
    found = ran(variant)
    states = [found.state(f"clients/site-{number}") for number in (1, 2)]
    own = [name for name in states[0] if name.startswith(PERSONAL[variant])]
    assert any(not torch.equal(states[0][name], states[1][name]) for name in own)
    assert any(name.startswith("algorithm.") for name in states[0])
    lines = [line for line in read_audit(found.whole / "sites/site-1/audit.jsonl") if line["kind"] == "weights"]
    assert [line["tensors"] for line in lines] == [len(found.state("global"))] * 2
    plain = ran("no_sam").record(1)["sites"]
    for site, entry in found.record(1)["sites"].items():
        assert abs(entry["up_bytes"] - plain[site]["up_bytes"]) < 500, "a few more numbers in the header"


@needs("cpss", "cpss_adapt")
def test_new_site_adapts_from_federation_model(ran, build, tmp_path):
    found, model = ran("cpss"), tmp_path / "model.safetensors"
    assert main(["model", str(found.whole), "--output", str(model)]) == 0
    images = {"datalist": str(found.federation / "list.json"), "data_root": str(found.federation)}
    adapted = build("cpss_adapt", **images, model=str(model), learning_rate=0.0)
    adapted.run()
    given, trained = safe_load(model), dict(adapted.trainer.network.named_parameters())
    assert trained.keys() <= given.keys()
    assert all(torch.equal(given[name], weight) for name, weight in trained.items())


@needs("elcfs")
def test_elcfs_windows_are_sent_once_and_reported(ran):
    found = ran("elcfs")
    assert found.results["privacy"]["statistics"]["kind"] == "spectrum"
    page = Path(Report(run_folder=found.whole, overlays=False).write()).read_text()
    assert "Every site sent a statistic of its images (spectrum), each entry of at least 1 images, as it is" in page
    sent = [line.get("statistics") for line in read_audit(found.whole / "sites/site-1/audit.jsonl")]
    assert [each for each in sent if each] == [{"kind": "spectrum", "images": 1, "clip": None, "noise_multiplier": 0.0}]
    shapes = {name: tuple(tensor.shape) for name, tensor in found.state("server").items()}
    assert shapes == {f"statistics.windows@site-{number}": (4, 3, 3, 3) for number in (1, 2)}
    assert "episode" not in found.record(0)["sites"]["site-1"]["terms"]


@needs("fedca")
def test_fedca_shares_features_before_warm_start(ran):
    found = ran("fedca")
    terms = [found.record(round)["sites"]["site-1"]["terms"] for round in (0, 1, 2)]
    assert ["contrast" in each for each in terms] == [True, True, False]
    made = (found.whole.parent / "cache" / "warm_start").glob("*.safetensors")
    assert len(list(made)) == 2, "the network as built, and after stage 0"
    assert "rounds 1 to 2 come before the warm start" in (found.whole / "run.log").read_text()
    sent = [line.get("statistics") for line in read_audit(found.whole / "sites/site-1/audit.jsonl")]
    assert [each for each in sent if each] == [{"kind": "features", "images": 1, "clip": None, "noise_multiplier": 0.0}]
    assert found.results["privacy"]["statistics"]["kind"] == "features"
