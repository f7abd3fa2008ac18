"""Letters through NVIDIA FLARE: one task of a controller for each, one answer of a client."""

from __future__ import annotations

from functools import partial
from typing import Any

from samfed_monai.core.errors import Stopped
from samfed_monai.flare.needs import require_flare
from samfed_monai.flare.post import Letter

require_flare()

import numpy as np  # noqa: E402
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType  # noqa: E402
from nvflare.app_common.workflows.model_controller import ModelController  # noqa: E402

#: Entry of ``FLModel.params`` that holds an envelope's bytes, and of ``FLModel.meta`` that holds a failure's reason.
ENVELOPE, FAILURE = "envelope", "failure"
#: Entry of a FLARE task's props that holds its letter.
LETTER = "samfed_letter"
_TASK = "train"  # FLARE's name for every task of ours; what is asked stands in the message


class FlarePost:
    """Sends and cancels by a FLARE controller, for a :class:`FlareTransport`.

    Args:
        controller: which FLARE runs.
        run_name: name of the run, which goes with every letter.
    """

    def __init__(self, controller: ModelController, run_name: str) -> None:
        self.controller, self.run_name = controller, run_name

    def send(self, letter: Letter) -> Any:
        if all(client.name != letter.site for client in self.controller.engine.get_clients()):
            letter.answered(letter.site, "it is not connected to this FLARE job")
            return None
        model = FLModel(
            params={ENVELOPE: np.frombuffer(letter.payload, dtype=np.uint8)},
            params_type=ParamsType.FULL,
            current_round=letter.round,
            meta={"task": letter.task, "run_name": self.run_name, **letter.words},
        )
        self.controller.set_fl_context(model)
        task = self.controller._prepare_task(data=model, task_name=_TASK, timeout=0, callback=partial(_deliver, letter))
        task.props[LETTER] = letter
        self.controller.broadcast(task=task, fl_ctx=self.controller.fl_ctx, targets=[letter.site], min_responses=1)
        return task

    def cancel(self, ticket: Any) -> None:
        if ticket is None:
            return
        self.controller.cancel_task(ticket, fl_ctx=self.controller.fl_ctx)

    def check_stop(self) -> None:
        if self.controller.abort_signal.triggered:
            raise Stopped("FLARE ended the job (aborted, or a client's job process died)", "submit the same job again")


def _deliver(letter: Letter, model: FLModel) -> None:
    sender = model.meta.get("client_name", "")
    reason = model.meta.get(FAILURE)
    if reason:
        letter.answered(sender, str(reason)[:2000])
        return
    content = (model.params or {}).get(ENVELOPE)
    if not isinstance(content, np.ndarray) or content.dtype != np.uint8 or content.ndim != 1:
        letter.answered(sender, "its answer holds no envelope")
        return
    letter.answered(sender, content.tobytes())
