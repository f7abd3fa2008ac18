"""The effect of NVIDIA FLARE's own filters on the payload, one uint8 array (the table in docs/privacy.md)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from samfed_monai.protocol import Kind, Message, MessageRefused, from_bytes, to_bytes

pytest.importorskip("nvflare", reason="FLARE is an extra")
from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.filter import ContentBlockedException
from nvflare.apis.fl_context import FLContext
from nvflare.app_common.filters.dxo_blocker import DXOBlocker
from nvflare.app_common.filters.exclude_vars import ExcludeVars
from nvflare.app_common.filters.percentile_privacy import PercentilePrivacy
from nvflare.app_common.filters.svt_privacy import SVTPrivacy

WEIGHTS = {"head.weight": torch.linspace(-1, 1, 500)}
PAYLOAD = np.frombuffer(to_bytes(Message(Kind.WEIGHTS, "site-1", 0, 1, n=9, tensors=WEIGHTS)), dtype=np.uint8)


def filter_payload(flare_filter) -> np.ndarray | None:
    dxo = DXO(DataKind.WEIGHTS, data={"message": PAYLOAD.copy()})
    return (flare_filter.process_dxo(dxo, dxo.to_shareable(), FLContext()) or dxo).data.get("message")


@pytest.mark.parametrize("flare_filter", [PercentilePrivacy(), SVTPrivacy()])
def test_payload_altered_by_filter_is_refused(flare_filter):
    payload = filter_payload(flare_filter)
    assert not np.array_equal(payload, PAYLOAD)
    with pytest.raises(MessageRefused, match="expected safetensors with a samfed header"):
        from_bytes(np.asarray(payload).tobytes())


@pytest.mark.parametrize(
    "flare_filter",
    [
        ExcludeVars(["head.weight"]),  # by the network's names, of which it finds none
        ExcludeVars({"head.weight"}),
        ExcludeVars("head"),
        PercentilePrivacy(percentile=101),  # a wrong value switches it off
    ],
)
def test_filters_without_match_pass_payload_unchanged(flare_filter):
    assert np.array_equal(filter_payload(flare_filter), PAYLOAD)


def test_name_filter_drops_message_and_kind_blocker_raises():
    assert filter_payload(ExcludeVars(["message"])) is None
    with pytest.raises(ContentBlockedException):
        filter_payload(DXOBlocker([DataKind.WEIGHTS]))
