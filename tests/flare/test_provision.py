"""Start-up kits: no role may submit code, and everything else is as FLARE's own policy has it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from nvflare.apis.fl_constant import AdminCommandNames
from nvflare.fuel.sec.authz import AuthzContext, Person
from nvflare.lighter.prov_utils import prepare_builders
from nvflare.lighter.provision import prepare_project
from nvflare.lighter.provisioner import Provisioner
from nvflare.security.security import FLAuthorizer

from samfed_monai.core.errors import Refused
from samfed_monai.core.io import read_json, write_json
from samfed_monai.flare.local import project
from samfed_monai.flare.provision import CODE, forbid_code

ROLES = ("project_admin", "org_admin", "lead", "member")
COMMANDS = sorted(name for key, name in vars(AdminCommandNames).items() if not key.startswith("_"))


def documented() -> dict:
    """The project file of docs/deploy.md."""
    page = (Path(__file__).parents[2] / "docs" / "deploy.md").read_text(encoding="utf-8")
    return yaml.safe_load(re.findall(r"```yaml\n(api_version.*?)```", page, re.DOTALL)[0])


def allowed(policy: dict) -> set[tuple[str, str]]:
    """Roles and what a user of each may do with a job of their own, at a site of their own organisation."""
    authorizer, found = FLAuthorizer("a", policy), set()
    for role in ROLES:
        user = Person("user", "a", role)
        for right in (*COMMANDS, *CODE):
            if authorizer.authorize(AuthzContext(right, user, user))[0]:
                found.add((role, right))
    return found


@pytest.mark.parametrize("content", [documented(), project(["site-1", "site-2"], port=1)], ids=["docs", "poc"])
def test_provisioned_roles_lose_only_code_rights(content, tmp_path):
    Provisioner(str(tmp_path), prepare_builders(content)).provision(prepare_project(content))
    kits = [path.parent for path in tmp_path.glob("samfed/prod_00/*/local") if "@" not in path.parent.name]
    assert len(kits) == 3
    for kit in kits:
        before = allowed(read_json(kit / "local" / "authorization.json.default"))
        after = allowed(read_json(kit / "local" / "authorization.json"))
        assert {("project_admin", "byoc"), ("lead", "byoc"), ("project_admin", "server-predeployed-flwr")} <= before
        assert after == {(role, right) for role, right in before if right not in CODE}
        assert ("project_admin", "submit_job") in after


def test_custom_policy_keeps_other_conditions(tmp_path):
    given = {"admin": ["o:a", "n:b"], "lead": {"BYOC": "any", " byoc ": "any", "view": "o:site"}}
    write_json(tmp_path / "authorization.json", {"format_version": "1.0", "permissions": given})
    write_json(tmp_path / "authorization.json.default", {})
    forbid_code(tmp_path)
    roles = read_json(forbid_code(tmp_path))["permissions"]
    assert roles["lead"] == {"view": "o:site", "byoc": "none", "server-predeployed-flwr": "none"}
    assert roles["admin"]["submit_job"] == roles["admin"]["manage_job"] == ["o:a", "n:b"]
    assert roles["admin"]["byoc"] == "none"


def test_folder_without_policy_is_refused(tmp_path):
    with pytest.raises(Refused, match=r"authorization\.json\.default"):
        forbid_code(tmp_path)
