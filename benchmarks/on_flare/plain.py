"""A site under FLARE's own FedAvg: does the payload's work through FLARE's Client API."""

from __future__ import annotations

import nvflare.client as flare
from nvflare.apis.fl_constant import FLMetaKey
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType

from on_flare.payload import work

flare.init()
site = flare.get_site_name()
while flare.is_running():
    message = flare.receive()
    if message is None:
        break
    params = work(site, message.params)
    meta = {FLMetaKey.NUM_STEPS_CURRENT_ROUND: 1}
    flare.send(FLModel(params=params, params_type=ParamsType.FULL, metrics={"accuracy": 0.5}, meta=meta))
