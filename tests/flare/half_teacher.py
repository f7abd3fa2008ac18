"""The process that trains at a site, with a teacher without SAM."""

from __future__ import annotations

from samfed_monai.flare.worker import make_federated_site, serve
from tests.federation.half_teacher import install

if __name__ == "__main__":
    install()
    serve(make_federated_site)
