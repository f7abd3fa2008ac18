"""An admin's start-up kit: whose it is, and which server it belongs to."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

from samfed_monai.core.errors import Problem, Refused
from samfed_monai.core.io import read_json


def admin_of(kit: str | Path) -> str:
    """The user that an admin start-up kit belongs to.

    Raises:
        Refused: it is no admin kit; the message says what it is instead.
    """
    startup = Path(kit) / "startup"
    mend = "name the folder of an admin start-up kit: the one that holds startup/fed_admin.json and its certificates"
    found = "no startup folder"
    if (startup / "fed_client.json").is_file():
        found = "a site's start-up kit"
    elif (startup / "fed_server.json").is_file():
        found = "a server's start-up kit"
    elif startup.is_dir():
        found = "no startup/fed_admin.json"
    if (startup / "fed_admin.json").is_file():
        admin = read_json(startup / "fed_admin.json").get("admin", {})
        lacks = [admin.get(name, name) for name in ("client_key", "client_cert", "ca_cert")]
        lacks = [name for name in lacks if not (startup / name).is_file()]
        if admin.get("username") and not lacks:
            return str(admin["username"])
        found = f"an admin start-up kit without {', '.join(lacks) or 'a user name'}"
    raise Refused([Problem(f"start-up kit {kit}", found=found, expected="an admin start-up kit", mend=mend)])


def server_of(kit: str | Path) -> str:
    """Host and port of the server that a kit belongs to."""
    admin = read_json(Path(kit) / "startup" / "fed_admin.json").get("admin", {})
    return f"{admin.get('host', '?')}:{admin.get('port', '?')}"


def accepts_certificate(kit: str | Path, *, timeout: float = 5.0) -> bool | None:
    """Whether the server's certificate is one of the kit's own provisioning; ``None`` where no TLS server answers."""
    admin = read_json(Path(kit) / "startup" / "fed_admin.json").get("admin", {})
    context = ssl.create_default_context(cafile=str(Path(kit) / "startup" / admin.get("ca_cert", "rootCA.pem")))
    context.check_hostname = False
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection((admin.get("host"), int(admin.get("port"))), timeout=timeout) as raw,
            context.wrap_socket(raw, server_hostname=admin.get("host")),
        ):
            return True
    except ssl.SSLCertVerificationError:
        return False
    except (OSError, TypeError, ValueError):
        return None
