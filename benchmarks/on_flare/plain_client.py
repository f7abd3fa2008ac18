"""A site under FLARE's own FedAvg: the bundle as a plain MONAI FL client, without the package's controller and checks.

FLARE starts this file as the ``train_script`` of its ``FedAvgRecipe``. It uses FLARE's Client API::

    python3 plain_client.py --bundle samfed_skin --variant no_sam --image_size 64

``SamFedAlgo``, or MONAI's own ``MonaiAlgo`` with ``--monai``, trains the bundle on the images that the site file names.
Features of the package's federation are missing: the server sends no teacher, so the variant must not need one, and
there is no quorum, no audit and no check of updates beyond FLARE's own.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from samfed_monai.config import find_bundle
from samfed_monai.config.overrides import overrides_of
from samfed_monai.config.variants import variant_files
from samfed_monai.core.process_setup import set_up_process
from samfed_monai.flare.site_file import SiteFile, read_site_file


def make_algo(site: str, files: SiteFile, arguments: argparse.Namespace, overrides: dict[str, Any]) -> Any:
    """Returns an initialized MONAI FL client.

    Args:
        site: name of the site.
        files: content of its site file.
        arguments: ``bundle``, ``variant`` and ``monai``.
        overrides: ids of ``train.json`` to values.
    """
    from monai.fl.client import MonaiAlgo
    from monai.fl.utils.constants import ExtraItems

    from samfed_monai.federation import SamFedAlgo

    root = find_bundle(files.bundle_root or arguments.bundle)
    train = ["configs/train.json", *(str(path) for path in variant_files(root, arguments.variant))]
    paths = {"bundle_root": str(root), "datalist": str(files.datalist), "data_root": str(files.data_root)}
    own = {**overrides, **paths, "site": site, "standalone": {}}
    algo = (MonaiAlgo if arguments.monai else SamFedAlgo)(
        bundle_root=str(root),
        local_epochs=1,
        send_weight_diff=False,
        config_train_filename=train,
        config_evaluate_filename=[*train, "configs/evaluate.json"],
        train_kwargs=dict(own),
        eval_kwargs=dict(own),
    )
    algo.initialize(extra={ExtraItems.CLIENT_NAME: site})
    return algo


def one_round(algo: Any, params: dict[str, Any], *, round: int, rounds: int) -> tuple[dict[str, Any], float, int]:
    """Evaluates the server's weights, trains from them, and returns weights, validation Dice and number of iterations.

    Args:
        algo: the client.
        params: names to arrays; FLARE averages integers into floats, so each array is converted back to its dtype.
        round, rounds: index of the round, and number of rounds.
    """
    import torch
    from monai.fl.utils.constants import FlStatistics, WeightType
    from monai.fl.utils.exchange_object import ExchangeObject

    own = algo.trainer.network.state_dict()
    weights = {
        name: torch.as_tensor(params[name]).reshape(tensor.shape).to(tensor.dtype) for name, tensor in own.items()
    }
    extra = {"round": round, "rounds": rounds, "seed": 0}
    data = ExchangeObject(weights=weights, weight_type=WeightType.WEIGHTS)
    metrics = algo.evaluate(data, extra={**extra, "split": "validation"}).metrics or {}
    algo.train(data, extra=extra)
    update = algo.get_weights(extra)
    statistics = update.statistics or {}
    iterations = int(statistics.get(FlStatistics.NUM_EXECUTED_ITERATIONS, (update.metrics or {}).get("iterations", 1)))
    trained = {name: tensor.detach().cpu().clone() for name, tensor in update.weights.items()}
    return trained, float(metrics.get("dice", 0.0)), iterations


def main(argv: Sequence[str] | None = None) -> None:
    """Trains and evaluates on FLARE's requests until the job ends."""
    parser = argparse.ArgumentParser(description="a site under FLARE's own FedAvg", allow_abbrev=False)
    parser.add_argument("--bundle", default="samfed_skin", help="name of the packaged bundle")
    parser.add_argument("--variant", default="no_sam", help="a variant that needs no teacher from the server")
    parser.add_argument("--monai", action="store_true", help="use MONAI's own client instead of SamFedAlgo")
    arguments, words = parser.parse_known_args(argv)
    set_up_process()
    import nvflare.client as flare
    from nvflare.apis.fl_constant import FLMetaKey
    from nvflare.app_common.abstract.fl_model import FLModel, ParamsType

    flare.init()
    site = flare.get_site_name()
    algo = make_algo(site, read_site_file(Path.cwd(), site), arguments, overrides_of(words))
    while flare.is_running():
        message = flare.receive()
        if message is None:
            break
        weights, dice, iterations = one_round(
            algo, message.params, round=message.current_round or 0, rounds=message.total_rounds or 1
        )
        flare.send(
            FLModel(
                params=weights,
                params_type=ParamsType.FULL,
                metrics={"dice": dice},
                meta={FLMetaKey.NUM_STEPS_CURRENT_ROUND: iterations},
            )
        )
    algo.finalize()


if __name__ == "__main__":
    main()
