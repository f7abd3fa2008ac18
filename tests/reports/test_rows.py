"""The groups of compared rows."""

import pytest

from samfed_monai.reports.rows import DIFFERENT_NETWORKS, LABELLED, MODES, ONE_NETWORK, VARIANTS, mode_of

ALIKE = {"a": "basic_unet", "b": "basic_unet", "server": "deeplabv3plus_resnet34"}


@pytest.mark.parametrize(
    ("results", "mode"),
    [
        ({"variant": "samfed", "networks": ALIKE}, ONE_NETWORK),  # the server's network is not a site's
        ({"variant": "mine", "networks": {"a": "basic_unet", "b": "flexible_unet"}}, DIFFERENT_NETWORKS),
        ({"variant": "mine", "exchange": "prototypes"}, DIFFERENT_NETWORKS),
        ({"variant": "mine", "exchange": "weights"}, ONE_NETWORK),
        ({"variant": "local_only", "networks": ALIKE}, DIFFERENT_NETWORKS),
        ({"variant": "mine", "exchange": "weights", "own_labels": True}, LABELLED),
        ({"variant": "supervised", "exchange": "weights", "own_labels": False}, ONE_NETWORK),
    ],
)
def test_run_mode_follows_from_results(results, mode):
    assert mode_of({"sites": {"a": {}, "b": {}}, **results}) is mode


def test_modes_name_existing_variants():
    assert {name for mode in MODES for name in (mode.hero, *mode.own, *mode.references)} <= VARIANTS.keys()
    assert all(mode_of({"variant": mode.hero, "sites": {}, "own_labels": mode is LABELLED}) is mode for mode in MODES)
