"""The MONAI FL client that trains and evaluates one site's bundle: ``MonaiAlgo`` with the fixes listed below."""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import fmean
from typing import Any

from monai.engines import SupervisedEvaluator
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems
from monai.fl.utils.exchange_object import ExchangeObject
from monai.networks.utils import get_state_dict
from torch import Tensor, nn

import samfed_monai.config.monai_parser  # noqa: F401 - MONAI FL makes its own parsers
from samfed_monai.bundle.images import SplitDataset
from samfed_monai.config.parse import parsed
from samfed_monai.config.strict import strict_bundle_problems, strict_problems
from samfed_monai.core import training_state
from samfed_monai.core.errors import Refused, refused
from samfed_monai.core.seeds import derive_seed
from samfed_monai.core.training_state import own_random_state, seed_transforms
from samfed_monai.core.validators import one_of, require
from samfed_monai.federation.exchange_object import HEADER, Call, as_network_tensors, metrics_of_parts, sendable
from samfed_monai.federation.site_network import SiteNetwork, split_state
from samfed_monai.handlers.handler_group import HandlerGroup
from samfed_monai.handlers.images_seen import ImagesSeen, identities
from samfed_monai.handlers.rounds import forget_unfinished_run
from samfed_monai.metrics.quality import estimate_of
from samfed_monai.protocol.message import Kind, Message, MessageRefused, message_refused
from samfed_monai.protocol.statistics import Statistic

logger = logging.getLogger(__name__)


def place_at_round(trainer: Any, call: Call, *, local_epochs: int) -> None:
    """Sets a trainer's round, epoch and iteration to the start of ``call.round``, whatever it ran before."""
    if call.round is None:
        return
    state = trainer.state
    state.round, state.rounds = call.round, call.round + 1 if call.rounds is None else call.rounds
    state.epoch = call.round * local_epochs
    state.iteration = state.epoch * (state.epoch_length or 0)


@contextmanager
def restored_after(network: nn.Module, frozen: Collection[str] = ()) -> Iterator[None]:
    """Restores a network after a block that loads weights into it: weights, buffers and modes.

    Args:
        network: the trainer's network.
        frozen: names of frozen weights (most of a SAM), which no message has; they are not copied.
    """
    modes = [(module, module.training) for module in network.modules()]
    before = {name: tensor.detach().clone() for name, tensor in network.state_dict().items() if name not in frozen}
    try:
        yield
    finally:
        network.load_state_dict(before, strict=False)
        for module, mode in modes:
            module.training = mode


#: Configuration id of each split's data loader.
LOADER_IDS = {"validation": "validate#dataloader", "test": "test#dataloader"}


def private_count(parser: Any) -> int:
    """Number of distinct images a bundle trains on: of ``unlabelled#dataset``, else ``train#dataset``; 0 without both.

    It is the length of a data set that neither is nor wraps one of this package's.
    """
    for name in ("unlabelled#dataset", "train#dataset"):
        dataset = parsed(parser, name)
        if isinstance(dataset, SplitDataset):
            return dataset.different_images()
        if isinstance(dataset, Sized):
            return _different_items(dataset)
    return 0


def _different_items(dataset: Any) -> int:
    split_dataset = dataset
    while split_dataset is not None and not isinstance(split_dataset, SplitDataset):
        split_dataset = getattr(split_dataset, "dataset", getattr(split_dataset, "data", None))
    if split_dataset is None:
        return len(dataset)
    with own_random_state(0):  # random numbers drawn here are not used
        return len({identity for index in range(len(dataset)) for identity, _ in identities(dataset[index])})


COMPARED_AFTER = {("current", "validation"): "current", ("best", "test"): "best"}
"""(model, split) of evaluations after which a site without masks compares student and teacher, to a name."""


def expected_metrics(estimates: Sequence[float]) -> dict[str, float]:
    """Mean and number of mask quality estimates as metrics of a message; empty without estimates."""
    return {"expected_dice": fmean(estimates), "expected_images": len(estimates)} if estimates else {}


class SamFedAlgo(MonaiAlgo):
    """Trains and evaluates a bundle at one site, for any FL system that uses MONAI FL's ``ClientAlgo``.

    Differences from ``MonaiAlgo`` (MONAI 1.6.1):

    - received weights must have the network's names, shapes and dtypes and be finite; MONAI reshapes tensors that do
      not fit, and loads a message that lacks some in part;
    - sent weights are copies, not the live parameters;
    - the trainer's position (epoch, iteration) and every random number are functions of (seed, site, round), so a round
      gives the same bits in a fresh process and leaves other clients' random state alone;
    - a failed round does not leave Ignite's engine half-run, where the next ``run()`` would silently do nothing;
    - trainer and evaluator share one network;
    - after ``abort()``, ``evaluate`` is refused until ``initialize`` or ``train`` is called; after ``finalize()``, both
      ``train`` and ``evaluate`` are refused until ``initialize`` is called.

    An FL system that does not use this package's messages (FLARE's own FedAvg, say) may send NumPy arrays in its own
    precision, and the whole network: frozen and personal parts are ignored, and the reply has the names that were sent,
    except personal ones. With ``send_weight_diff`` the reply is the difference from the received weights; this
    package's own strategies accept full weights only.

    ``train`` reads ``extra["round"]``, ``["rounds"]`` and ``["seed"]`` and puts the first two on ``trainer.state``.
    ``get_weights`` returns ``n``, ``seconds``, ``iterations`` and the means of ``trainer.state.term_means``.
    ``evaluate`` reads ``extra["split"]`` (``validation`` or ``test``, the bundle's ``validate#dataloader`` and
    ``test#dataloader``) and returns Dice, IoU, HD95 and counts; the table per image stays at the site, in
    :attr:`scores`, and in ``output_dir`` when ``extra["model"]`` is ``best`` or ``last``, as in the run's final
    evaluation, which is of test images.

    With a ``client_algorithm`` in the bundle and an ``extra["purpose"]`` other than ``replace``, the site keeps its own
    network (:class:`SiteNetwork`), and its weights are then part of :meth:`state_dict`. If part of a network is
    personal or frozen, messages hold only the shared names, personal values are part of :meth:`state_dict`, and the
    site's own model is evaluated: the received weights with the personal ones.

    Args:
        bundle_root: the bundle's folder.
        vetted: True when the bundle passed the package's own check (allow-listed ``_target_``s, no ``$`` in options);
            only silences MONAI's warning that it executes a bundle.
        keep_optimizer: keep the optimizer's moments from round to round; False resets them in every round.
        output_dir: folder of this site's evaluation files; ``None`` writes none.
        **monai: arguments of ``MonaiAlgo``; ``send_weight_diff`` defaults to False.
    """

    def __init__(
        self,
        bundle_root: str | Path,
        *,
        vetted: bool = False,
        keep_optimizer: bool = True,
        output_dir: str | Path | None = None,
        **monai: Any,
    ) -> None:
        monai.setdefault("send_weight_diff", False)
        super().__init__(bundle_root=str(bundle_root), **monai)
        self._monai_overrides = {name: dict(monai.get(name) or {}) for name in ("train_kwargs", "eval_kwargs")}
        self.logger = logger  # MONAI's own prints several lines per call to standard output, across progress bars
        self.vetted, self.keep_optimizer = vetted, keep_optimizer
        self.output_dir = Path(output_dir) if output_dir is not None else None
        #: Tables of the last evaluation of each split, in ScoreHandler's format.
        self.scores: dict[str, list[dict[str, Any]]] = {}
        if self.config_train_filename is not None and self.eval_workflow is None:
            # called when the workflow resolves @network; the trainer exists by then
            trainer_network = {"_target_": lambda: self.trainer and self.trainer.network}
            self.eval_kwargs = {**self.eval_kwargs, "network": trainer_network}
        #: Called after the evaluations of :data:`COMPARED_AFTER` with the evaluator, which still holds the model, and
        #: the model's name; ``None`` for no call.
        self.on_evaluated: Callable[[SupervisedEvaluator, str], list[float]] | None = None
        self._end_state = ""
        self._fresh_optimizer: dict[str, Any] = {}
        self._last_call: Call | None = None
        self._train_seconds = 0.0
        self._received_metrics: dict[str, float] = {}
        self._sends_frozen = False
        self._validation_loader: Any = None  # the evaluator's own loader, if the bundle has no id for it
        #: Whether the last evaluation left out images of its split.
        self.scored_partially = False
        #: Images used in the last training and in the last evaluation.
        self.trained_on, self._evaluated_images = ImagesSeen(), ImagesSeen()
        #: The site's network and the parts that stay here; ``None`` before :meth:`initialize`.
        self.own: SiteNetwork | None = None
        #: The image-derived statistic that this site sends; ``None`` without ``statistics`` in the bundle.
        self.statistic: Statistic | None = None

    def initialize(self, extra: dict | None = None) -> None:
        """Builds the bundle's trainer and evaluator; ``extra[ExtraItems.CLIENT_NAME]`` is the site's name.

        A relative ``bundle_root`` is resolved against ``extra[ExtraItems.APP_ROOT]``, a folder that the FL system
        fills: that bundle and the overrides given with it must pass the strict check, since MONAI executes their
        contents (GHSA-873f-pvrv-4x83, GHSA-x6pr-233j-x5cw). The FL system's logging configuration is ignored: it is
        code, too.

        Raises:
            Refused: a bundle that came with a job contains code, or names a component that may run some.
        """
        extra = {key: value for key, value in (extra or {}).items() if key != ExtraItems.LOGGING_FILE}
        self._require_no_code(str(extra.get(ExtraItems.APP_ROOT) or ""))
        site = extra.get(ExtraItems.CLIENT_NAME, "noname")
        logging.getLogger("monai.networks.utils").setLevel(logging.WARNING)  # it logs a line per weight load
        with own_random_state(derive_seed(extra.get("seed", 0), site, "initialize")), warnings.catch_warnings():
            if self.vetted:
                warnings.filterwarnings("ignore", message="executing the bundle config under")
            super().initialize(extra)
        self._end_state = ""
        with own_random_state(derive_seed(extra.get("seed", 0), site, "sharing")):
            trains = self.trainer is not None
            if (engine := self.trainer or self.evaluator) is not None:
                self.own = SiteNetwork.of(engine.network, self._parser, trains=trains)
            self.statistic = parsed(self._parser, "statistics") if trains else None
        for engine, images_seen in ((self.trainer, self.trained_on), (self.evaluator, self._evaluated_images)):
            if engine is not None:
                images_seen.attach(engine)
        self._validation_loader = getattr(self.evaluator, "data_loader", None)
        if self.trainer is not None and not self.keep_optimizer:
            self._fresh_optimizer = self.trainer.optimizer.state_dict()

    def _require_no_code(self, app_root: str) -> None:
        if not app_root or Path(self.bundle_root).is_absolute():
            return
        problems = strict_bundle_problems(Path(app_root) / self.bundle_root)
        for name, overrides in self._monai_overrides.items():
            problems += strict_problems(overrides, name, file=True)
        require(problems)

    def train(self, data: ExchangeObject, extra: dict | None = None) -> None:
        """Runs the local epochs of one round from the weights in ``data``."""
        if self._end_state == "aborted":
            self._end_state = ""
        self._refuse_if_closed()
        if self.trainer is None:
            raise RuntimeError("train() was called before initialize()")
        data = self._as_network_tensors(data)
        call = Call.of(self.client_name, extra, data)
        self._require_public_set(call)
        self.trained_on.forget()
        started = time.perf_counter()
        own, keeps_network = self._required_network, self._keeps_network(call)
        if not keeps_network:
            self._require_fit(data.weights, own.shared(get_state_dict(own.network)))
        elif call.purpose == "keep":  # no training in this round
            self._last_call, self._train_seconds, self._received_metrics = call, 0.0, {}
            self.iter_of_start_time, self.trainer.state.term_means = self.trainer.state.iteration, {}
            return
        forget_unfinished_run(self.trainer)
        place_at_round(self.trainer, call, local_epochs=self.local_epochs)
        if not self.keep_optimizer:
            self.trainer.optimizer.load_state_dict(self._fresh_optimizer)
        self._received_metrics = {}
        with training_state.reset_if_not_finite(self.trainer.optimizer, owner=call.site), own.restored_on_error(call):
            if keeps_network:
                with own_random_state(call.derive_seed("receive")):
                    self._received_metrics = own.receive(data, call)
                data = own.with_local_part(data, whole=True)
            with own_random_state(call.derive_seed("train")):
                seed_transforms(getattr(self.trainer.data_loader, "dataset", None), call.derive_seed())
                super().train(data, extra)
        self._train_seconds = time.perf_counter() - started
        self._last_call = call
        if not self.send_weight_diff:
            self.global_weights = None  # frees the server's old model, which MONAI keeps until the next round

    def check(self, extra: Mapping[str, Any] | None = None) -> dict[str, float]:
        """Checks before round 0 whether this site can take part.

        Raises:
            MessageRefused: its public set is not the server's (checked again in every round), or a handler refuses the
                trainer (:class:`HandlerGroup`).
        """
        self._require_public_set(Call.of(self.client_name, extra))
        if self.trainer is not None and (handlers := parsed(self._parser, "train#handlers")) is not None:
            try:
                HandlerGroup(handlers=handlers).check(self.trainer)
            except Refused as refused:
                raise MessageRefused(refused.problems) from None
        return {}

    def count(self) -> int:
        """Number of images that this site trains on, as its replies report it; 0 if it only evaluates."""
        if self.trainer is None:
            return 0
        with own_random_state(derive_seed(0, str(self.client_name), "count")):
            return private_count(self._parser)

    def get_weights(self, extra: dict | None = None) -> ExchangeObject:
        """Returns a copy of the weights with the number of private images, mean loss terms, and seconds."""
        kind, own = Kind.WEIGHTS, self.own
        if own is not None and own.algorithm is not None and Call.of(self.client_name, extra).keeps_network:
            kind, tensors = own.algorithm.share()
            reply = ExchangeObject(weights=tensors or None)
        else:
            reply = super().get_weights(extra)
            if own is not None and reply.weights:
                state = dict(reply.weights)
                frozen = own.split.frozen if self._sends_frozen else ()
                reply.weights = {**own.shared(state), **{name: state[name] for name in frozen if name in state}}
        if self.trainer is None or ExtraItems.MODEL_TYPE in (extra or {}):
            return reply
        live = {tensor.data_ptr() for tensor in get_state_dict(self.trainer.network).values()}
        reply.weights = {k: v.clone() if v.data_ptr() in live else v for k, v in (reply.weights or {}).items()}
        iterations = self.trainer.state.iteration - self.iter_of_start_time
        means = {**self._received_metrics, **(getattr(self.trainer.state, "term_means", None) or {})}
        terms = {f"term_{name}": float(value) for name, value in means.items() if math.isfinite(value)}
        reply.metrics = {"seconds": self._train_seconds, "iterations": iterations, **sendable(terms)}
        call = self._last_call or Call.of(self.client_name)
        reply[HEADER] = call.header(kind, n=private_count(self._parser))
        return reply

    def evaluate(self, data: ExchangeObject, extra: dict | None = None) -> ExchangeObject:
        """Evaluates the weights in ``data`` on one split of this site; returns means and counts, no table."""
        self._refuse_if_closed()
        if self.evaluator is None:
            raise RuntimeError("evaluate() was called before initialize()")
        data = self._as_network_tensors(data)
        call = Call.of(self.client_name, extra, data)
        split, model = call.split, call.model
        own, keeps_network = self._required_network, self._keeps_network(call)
        if not keeps_network:
            self._require_fit(data.weights, own.shared(get_state_dict(own.network)))
        if self.trainer is not None:
            data = own.with_local_part(data, whole=keeps_network)
        forget_unfinished_run(self.evaluator)
        folder = None
        if self.output_dir is not None and model in ("best", "last"):
            folder = self.output_dir / model / str(self.client_name) / split
        self._set_split(self.evaluator, split, folder)
        restored = restored_after(self.evaluator.network, own.split.frozen)
        with own_random_state(call.derive_seed("evaluate")), restored if self.trainer is not None else nullcontext():
            self._evaluated_images.forget()
            with warnings.catch_warnings():  # in every round at a site without masks
                warnings.filterwarnings("ignore", message="`dataloader` is empty")
                reply = super().evaluate(data, extra)
            metrics = self._evaluation_metrics(self.evaluator, split)
            model_name = COMPARED_AFTER.get((str(model), split))
            if self.on_evaluated is not None and model_name is not None:
                metrics = expected_metrics(self.on_evaluated(self.evaluator, model_name)) | metrics
        reply.metrics = sendable({**(reply.metrics or {}), **metrics})
        reply[HEADER] = call.header(Kind.METRICS, n=len(self._evaluated_images.batch.images))
        return reply

    def _set_split(self, evaluator: SupervisedEvaluator, split: str, folder: Path | None) -> None:
        """Sets the evaluator's data loader to that of a split, and ``output_dir`` of its handlers to ``folder``.

        Raises:
            Refused: no such split, or the bundle has no data loader for it.
        """
        require(one_of("split", split, ("validation", "test")))
        parser, name = getattr(self.eval_workflow, "parser", None), LOADER_IDS[split]
        loader = parsed(parser, name, self._validation_loader if split == "validation" else None)
        if loader is None:
            raise refused(name, "no such id in the bundle", "a data loader", f"define {name} in evaluate.json")
        for handler in parsed(parser, "validate#handlers") or ():
            if hasattr(handler, "output_dir"):
                handler.output_dir = folder
        state = evaluator.state
        evaluator.data_loader, state.epoch_length = loader, len(loader) if isinstance(loader, Sized) else None
        state.metrics, state.scores, state.score_summary = {}, None, None

    def _evaluation_metrics(self, evaluator: SupervisedEvaluator, split: str) -> dict[str, float]:
        """Returns the results of the evaluator's run as metrics of a message; the table stays in :attr:`scores`.

        Raises:
            MessageRefused: the scores do not cover each image that was read exactly once.
        """
        state, read = evaluator.state, self._evaluated_images.batch
        summary, dataset = dict(state.score_summary or {}), getattr(evaluator.data_loader, "dataset", None)
        if summary.get("n", read.drawn) != len(read.images):
            found, hint = "scores of other images, or repeated scores", "use ScoreHandler, as bundles do"
            raise message_refused("scores", found, "one score for each image that was read", hint)
        self.scores[split] = rows = list(state.scores or [])
        self.scored_partially = isinstance(dataset, SplitDataset) and len(read.images) < dataset.different_images()
        empty = {f"empty_{side}": number for side, number in (summary.get("empty") or {}).items()}
        expected = expected_metrics([estimate_of(row, summary) for row in rows if "estimate" in row])
        return {**empty, **metrics_of_parts(summary), **expected}

    def abort(self, extra: dict | None = None) -> None:
        """Stops the running engine, and refuses to evaluate until ``initialize`` or ``train`` is called again."""
        self._end_state = "aborted"
        super().abort(extra)

    def finalize(self, extra: dict | None = None) -> None:
        """Ends the client, and refuses further work until ``initialize`` is called again."""
        self._end_state = "finalized"
        super().finalize(extra)

    def state_dict(self) -> dict[str, Tensor]:
        """State that the next round needs and the server does not send, as named tensors.

        It holds the optimizer's state and the network, or the part of it, that this site keeps. Guides (EMA, global
        model) are not part of it: they are re-synced when a round starts.
        """
        state: dict[str, Tensor] = {}
        if self.trainer is not None and self.keep_optimizer:
            state = training_state.pack(self.trainer.optimizer)
        return {**state, **(self.own.state_dict() if self.own is not None else {})}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores the state of :meth:`state_dict`; an empty one leaves network and optimizer unchanged."""
        weights, rest = split_state(state)
        if weights:
            self.load_network(weights)
        if self.own is not None:
            rest = self.own.load_algorithm(rest)
        if rest and self.trainer is not None:
            training_state.unpack(self.trainer.optimizer, rest)

    def load_network(self, weights: Mapping[str, Tensor]) -> None:
        """Loads the weights that stay at this site, for instance those of a warm start.

        Args:
            weights: its whole own network except frozen names, or only its personal names if it keeps no more.

        Raises:
            MessageRefused: they are those of another network.
        """
        own = self._required_network
        expected = own.local_part(whole=own.algorithm is not None)
        self._require_fit(weights, expected or get_state_dict(own.network))
        own.network.load_state_dict(dict(weights), strict=False)
        if own.algorithm is not None:
            own.algorithm.reset()

    def _require_public_set(self, call: Call) -> None:
        if not call.public:  # the site's own hash takes reading all public images
            return
        own_hash = self.own.algorithm.public_hash if self.own is not None and self.own.algorithm is not None else ""
        if call.public != own_hash:
            found, expected = f"hash {own_hash[:12] or 'none'}", f"hash {call.public[:12]}, as at the server"
            hint = "give server and site the same data list, with the same order, masks and image_size"
            raise message_refused("public set", found, expected, hint)

    def _keeps_network(self, call: Call) -> bool:
        """Whether this call leaves the site its own network instead of replacing it with the server's weights."""
        return self._required_network.algorithm is not None and call.keeps_network

    @property
    def _parser(self) -> Any:
        return getattr(self.train_workflow if self.trainer is not None else self.eval_workflow, "parser", None)

    @property
    def _required_network(self) -> SiteNetwork:
        if self.own is None:
            raise RuntimeError("the client was used before initialize()")
        return self.own

    def _as_network_tensors(self, data: ExchangeObject) -> ExchangeObject:
        """Returns a message with this package's header as it is; else its shared part, in this network's dtypes."""
        if HEADER in data or self.own is None or not isinstance(data, ExchangeObject):
            return data
        self._sends_frozen = not set(self.own.split.frozen).isdisjoint(data.weights or {})
        weights = self.own.shared(as_network_tensors(data.weights, get_state_dict(self.own.network)))
        return ExchangeObject(weights=weights, weight_type=data.weight_type)

    def _require_fit(self, weights: Mapping[str, Tensor] | None, like: Mapping[str, Tensor]) -> None:
        Message(Kind.WEIGHTS, str(self.client_name), 0, 1, tensors=dict(weights or {})).check(up=False, like=like)

    def _refuse_if_closed(self) -> None:
        if self._end_state:
            calls = "initialize() or train()" if self._end_state == "aborted" else "initialize()"
            raise RuntimeError(f"the client was {self._end_state}; call {calls} before using it again")
