"""Rights of submitters in start-up kits: a job may not bring its own code, whatever the submitter's role.

FLARE's provisioning lets project admins and leads submit jobs with code (``byoc``, bring your own code).
:class:`NoCustomCode` removes that right from every role, at the server and at every site. In a ``project.yml`` it comes
after FLARE's ``StaticFileBuilder``::

    builders:
      - {path: nvflare.lighter.impl.static_file.StaticFileBuilder, args: {...}}
      - {path: samfed_monai.flare.provision.NoCustomCode}
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nvflare.apis.fl_constant import AdminCommandNames
from nvflare.lighter.constants import ProvFileName
from nvflare.lighter.ctx import ProvisionContext
from nvflare.lighter.entity import Project
from nvflare.lighter.spec import Builder
from nvflare.security.security import COMMAND_CATEGORIES

from samfed_monai.core.io import read_json, write_json

#: FLARE's rights to run a job's own code, or Flower apps that it names; :mod:`nvflare.private.fed.utils.app_authz`.
CODE = ("byoc", "server-predeployed-flwr")


def forbid_code(local: str | Path) -> Path:
    """Writes ``authorization.json`` into a kit's ``local`` folder: the policy there, without the rights to bring code.

    Starts from ``authorization.json`` there, else from FLARE's ``authorization.json.default``. FLARE reads it when the
    participant starts.

    Args:
        local: the ``local`` folder of a server's or a site's start-up kit.

    Raises:
        Refused: the folder has neither file.
    """
    policy_file, default = Path(local) / "authorization.json", Path(local) / ProvFileName.AUTHORIZATION_JSON_DEFAULT
    policy = dict(read_json(policy_file if policy_file.is_file() else default))
    policy["permissions"] = {role: _without_code(rights) for role, rights in policy["permissions"].items()}
    write_json(policy_file, policy)
    return policy_file


def _without_code(rights: Any) -> dict[str, Any]:
    if not isinstance(rights, dict):  # one condition for all rights, to which FLARE allows no exception
        commands = {name for key, name in vars(AdminCommandNames).items() if not key.startswith("_")}
        categories = set(COMMAND_CATEGORIES.values())
        rights = dict.fromkeys(sorted(categories | (commands - COMMAND_CATEGORIES.keys())), rights)
    code = {name for name in rights if name.lower().strip() in CODE}
    return {name: value for name, value in rights.items() if name not in code} | dict.fromkeys(CODE, "none")


class NoCustomCode(Builder):
    """Provisions a server and sites that refuse every job with code of its own (:func:`forbid_code`)."""

    def build(self, project: Project, ctx: ProvisionContext) -> None:
        """Called by FLARE for each new set of kits."""
        for participant in (project.get_server(), *project.get_clients()):
            forbid_code(ctx.get_local_dir(participant))
