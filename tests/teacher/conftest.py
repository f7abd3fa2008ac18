"""The random MobileSAM of the networks' tests, and their one thread."""

from tests.networks.conftest import checkpoint, one_thread  # noqa: F401
