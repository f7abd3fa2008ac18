"""MONAI's advisories on bundles that a server provisions, replayed: MONAI's own client runs the code, ours does not.

GHSA-x6pr-233j-x5cw: ``MonaiAlgo.initialize`` executes the bundle below ``extra[APP_ROOT]``, which the FL system fills.
GHSA-873f-pvrv-4x83: whatever reads a bundle's configuration evaluates its ``$`` and imports its ``_target_``. MONAI
1.6.1 warns of both. On FLARE a job's plan is data (``tests/flare/test_worker.py``, fault 31).
"""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems

from samfed_monai.config import find_bundle
from samfed_monai.config.strict import strict_problems
from samfed_monai.core.errors import Refused
from samfed_monai.core.io import read_json, write_json
from samfed_monai.federation import SamFedAlgo
from tests.federation.test_job import CLIENT

TOY = Path(__file__).parents[1] / "federation" / "toy_bundle"

#: What could run ``touch CANARY``, by place: id to value of ``train.json``.
CODE = {
    "an expression where the workflow starts": lambda canary: {"initialize": [f"$open({str(canary)!r}, 'w').close()"]},
    "an expression in a value": lambda canary: {"learning_rate": f"$open({str(canary)!r}, 'w').close() or 0.1"},
    "a component that runs a command": lambda canary: {
        "initialize": [{"_target_": "subprocess.run", "args": ["touch", str(canary)]}]
    },
}


@pytest.fixture
def app_root(tmp_path: Path) -> Any:
    """``app_root(code)``: the folder of a job with a bundle below it that holds ``code``."""

    def made(code: dict[str, Any], bundle: Path = TOY) -> Path:
        shutil.copytree(bundle, tmp_path / "app" / "bundle", dirs_exist_ok=True)
        path = tmp_path / "app" / "bundle" / "configs" / "train.json"
        write_json(path, {**read_json(path), **code})
        return tmp_path / "app"

    return made


def initialize(kind: type[MonaiAlgo], app: Path) -> None:
    algo = kind(bundle_root="bundle", config_train_filename="configs/train.json")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        algo.initialize({ExtraItems.CLIENT_NAME: "site-1", ExtraItems.APP_ROOT: str(app)})


@pytest.mark.parametrize("where", CODE)
def test_server_code_runs_in_monai_client_and_is_refused_here(where, app_root, tmp_path):
    canary = tmp_path / "canary"
    app = app_root(CODE[where](canary))
    with pytest.raises(Refused, match=r"train\.json -> "):
        initialize(SamFedAlgo, app)
    assert not canary.exists()
    try:
        initialize(MonaiAlgo, app)
    except Exception:  # what came of the code need not be a client; that it ran is the point
        assert canary.exists()
    assert canary.exists(), "otherwise this test replays nothing"


def test_packaged_bundle_passes_and_logging_file_is_ignored(app_root, tmp_path):
    """Python evaluates what such a file says (GHSA-wvpx-5qmp-46g3); MONAI 1.6.1 refuses it as well."""
    app, conf = app_root({}, find_bundle("samfed_skin")), tmp_path / "app" / "logging.conf"
    algo = SamFedAlgo("bundle", train_kwargs={**CLIENT, "encoder_weights": None, "teacher_adapt": "off"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MonaiAlgo, "initialize", seen := Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            algo.initialize({ExtraItems.APP_ROOT: str(app), ExtraItems.LOGGING_FILE: str(conf)})
    seen.assert_called_once_with({ExtraItems.APP_ROOT: str(app)})


def test_unsafe_overrides_of_job_are_refused(app_root):
    app = app_root({}, find_bundle("samfed_skin"))
    algo = SamFedAlgo("bundle", train_kwargs={"loss": {"_target_": "os.system", "command": "true"}})
    with pytest.raises(Refused, match=r"train_kwargs -> loss#_target_: .*os\.system"):
        algo.initialize({ExtraItems.APP_ROOT: str(app)})


def test_audit_networks_are_refused_in_bundle():
    target = {"network_def": {"_target_": "samfed_monai.attacks.planted.planted_network", "size": 8}}
    (problem, *_) = strict_problems(target, "plan")
    assert "planted_network" in str(problem)
    from samfed_monai.config.targets import resolve_target

    with pytest.raises(Refused, match=r"samfed_monai\.attacks"):
        resolve_target("samfed_monai.attacks.planted.planted_network", "train.json -> network_def")
