"""A MONAI FL client that trains one site's bundle: MonaiAlgo, with its traps closed."""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems, WeightType
from monai.fl.utils.exchange_object import ExchangeObject
from monai.networks.utils import get_state_dict

from samfed_monai.errors import Problem
from samfed_monai.federation import optimizer_state
from samfed_monai.federation.bundle_parts import evaluation_parts, private_count
from samfed_monai.federation.envelope import METRIC_NAMES, TERM_NAME, Envelope, Kind, MessageRefused
from samfed_monai.federation.exchange import HEADER
from samfed_monai.federation.random_state import own_random_state, seed_transforms
from samfed_monai.seeds import derive_seed

if TYPE_CHECKING:
    from torch import Tensor, nn

    from samfed_monai.federation.sharing.base import Sharing

logger = logging.getLogger(__name__)

_OWN = "network."
_KIND = "samfed_kind"


class SamFedAlgo(MonaiAlgo):
    """Trains and evaluates a bundle at one site, for anything that speaks MONAI FL.

    What it adds to ``MonaiAlgo`` (MONAI 1.6.1; the traps are listed in the design notes):

    - weights that arrive must have the network's names, shapes and dtypes and be finite; MONAI reshapes what does not
      fit and loads what is missing halfway;
    - weights that leave are copies, not the live parameters;
    - the position of the trainer (epoch, iteration) and every random number are functions of (seed, site, round), so a
      round gives the same bits in a fresh process, and other clients of the process are not disturbed;
    - a round that failed does not leave Ignite's engine half-run, where the next ``run()`` would silently do nothing;
    - ``train`` and ``evaluate`` after ``abort()`` or ``finalize()`` are refused.

    ``train`` reads ``extra["round"]``, ``["rounds"]`` and ``["seed"]`` and puts the first two on ``trainer.state``.
    ``get_weights`` answers with ``n``, ``seconds``, ``iterations`` and the means of ``trainer.state.term_means``.
    ``evaluate`` reads ``extra["split"]`` (``validation`` or ``test``, the bundle's ``validate#dataloader`` and
    ``test#dataloader``) and answers with Dice, IoU, HD95 and counts; the table per image stays here, in
    :attr:`scores`, and in ``output_dir`` when ``extra["model"]`` names ``best`` or ``last``.

    ``extra["purpose"]`` says what the tensors in ``data`` are for: ``replace`` the network's weights (as in MONAI FL,
    and where nothing is said), ``distil`` from them, or ``keep`` the network as it is. The last two are for bundles
    with a ``sharing`` (:class:`Sharing`), which keep a network of their own: it trains from where it stands, answers
    with what the sharing gives, and its weights are part of :meth:`state_dict`.

    Args:
        bundle_root: the bundle's folder.
        vetted: True when the bundle passed the package's own check (allow-listed ``_target_``s, no ``$`` in knobs);
            silences MONAI's warning that it executes a bundle, and nothing else.
        keep_optimizer: keep the optimizer's moments from round to round; False starts every round without.
        count_ids: configuration ids of the data set whose length is ``n``; the first that exists is taken.
        output_dir: folder of this site's evaluation files; ``None`` writes none.
        **monai: arguments of ``MonaiAlgo``; ``send_weight_diff`` is False here unless given.
    """

    def __init__(
        self,
        bundle_root: str | Path,
        *,
        vetted: bool = False,
        keep_optimizer: bool = True,
        count_ids: tuple[str, ...] = ("unlabelled#dataset", "train#dataset"),
        output_dir: str | Path | None = None,
        **monai: Any,
    ) -> None:
        monai.setdefault("send_weight_diff", False)
        super().__init__(bundle_root=str(bundle_root), **monai)
        self.logger = logger  # MONAI's own prints several lines per call to standard output, across progress bars
        self.vetted, self.keep_optimizer, self.count_ids = vetted, keep_optimizer, count_ids
        self.output_dir = Path(output_dir) if output_dir is not None else None
        #: Tables of the last evaluation of each split: a list of {"id", "dice", "iou", "hd95", "empty"}.
        self.scores: dict[str, list[dict[str, Any]]] = {}
        self._closed = ""
        self._fresh_optimizer: dict[str, Any] = {}
        self._last: dict[str, Any] = {}
        self._seconds = 0.0
        self._received: dict[str, float] = {}
        #: What this site gives and takes where it keeps a network of its own; ``None`` where weights are replaced.
        self.sharing: Sharing | None = None

    def initialize(self, extra: dict | None = None) -> None:
        """Builds the bundle's trainer and evaluator; ``extra[ExtraItems.CLIENT_NAME]`` is the site's name."""
        site = (extra or {}).get(ExtraItems.CLIENT_NAME, "noname")
        logging.getLogger("monai.networks.utils").setLevel(logging.WARNING)  # one line per weight load, likewise
        with own_random_state(derive_seed((extra or {}).get("seed", 0), site, "initialize")), warnings.catch_warnings():
            if self.vetted:
                warnings.filterwarnings("ignore", message="executing the bundle config under")
            super().initialize(extra)
        self._closed = ""
        self.sharing = None
        parser = getattr(self.train_workflow, "parser", None)
        if self.trainer is not None and parser is not None and "sharing" in parser:
            with own_random_state(derive_seed((extra or {}).get("seed", 0), site, "sharing")):
                self.sharing = parser.get_parsed_content("sharing")
        if self.trainer is not None and not self.keep_optimizer:
            self._fresh_optimizer = self.trainer.optimizer.state_dict()

    def train(self, data: ExchangeObject, extra: dict | None = None) -> None:
        """Runs the local epochs of one round from the weights in ``data``."""
        self._refuse_if_closed()
        if self.trainer is None:
            raise RuntimeError("train() was called before initialize()")
        call = {**data.get(HEADER, {}), **(extra or {})}
        started = time.perf_counter()
        if not self._is_personal(call):
            self._check_incoming(data, self.trainer.network)
        _forget_unfinished_run(self.trainer)
        self._place_trainer(call)
        if not self.keep_optimizer:
            self.trainer.optimizer.load_state_dict(self._fresh_optimizer)
        self._received = {}
        with self._undone_if_it_fails(personal=self._is_personal(call)):
            if self._is_personal(call):
                with own_random_state(self._seed(call, "receive")):
                    self._receive(data, call)
                data = self._own_weights(data)
            with own_random_state(self._seed(call, "train")):
                if "round" in call:
                    dataset = getattr(self.trainer.data_loader, "dataset", None)
                    seed_transforms(dataset, derive_seed(call.get("seed", 0), str(self.client_name), call["round"]))
                super().train(data, extra)
        self._seconds = time.perf_counter() - started
        self._last = call
        if not self.send_weight_diff:
            self.global_weights = None  # otherwise the server's old model stays alive here until the next round

    def check(self, extra: dict | None = None) -> dict[str, float]:
        """Says before round 0 whether this site can take part.

        Raises:
            MessageRefused: its public set is not the server's.
        """
        wanted, own = (extra or {}).get("public"), self.sharing.public_hash if self.sharing else ""
        if wanted and wanted != own:
            found, expected = f"a public set with hash {own[:12] or 'none'}", f"that of the server, {wanted[:12]}"
            mend = "give both the same data list, in the same order, with the same masks and image_size"
            raise MessageRefused([Problem("public set", found=found, expected=expected, mend=mend)])
        return {}

    def get_weights(self, extra: dict | None = None) -> ExchangeObject:
        """A copy of the weights with the number of private images, means of the loss terms, and seconds."""
        answer = self._shared() if self._is_personal(extra or {}) else super().get_weights(extra)
        if self.trainer is None or ExtraItems.MODEL_TYPE in (extra or {}):
            return answer
        kind = answer.pop(_KIND, Kind.WEIGHTS)
        live = {tensor.data_ptr() for tensor in get_state_dict(self.trainer.network).values()}
        answer.weights = {k: v.clone() if v.data_ptr() in live else v for k, v in (answer.weights or {}).items()}
        iterations = self.trainer.state.iteration - self.iter_of_start_time
        means = {**self._received, **(getattr(self.trainer.state, "term_means", None) or {})}
        terms = {f"term_{name}": float(value) for name, value in means.items() if math.isfinite(value)}
        answer.metrics = {"seconds": self._seconds, "iterations": iterations, **_sendable(terms)}
        answer[HEADER] = self._header(kind, self._last, private_count(self.train_workflow, self.count_ids))
        return answer

    def evaluate(self, data: ExchangeObject, extra: dict | None = None) -> ExchangeObject:
        """Evaluates the weights in ``data`` on one split of this site; returns means and counts, no table."""
        self._refuse_if_closed()
        if self.evaluator is None:
            raise RuntimeError("evaluate() was called before initialize()")
        call = {**data.get(HEADER, {}).get("extra", {}), **data.get(HEADER, {}), **(extra or {})}
        split, model = call.get("split", "validation"), call.get("model")
        if self._is_personal(call):
            data = self._own_weights(data)
        else:
            self._check_incoming(data, self.evaluator.network)
        _forget_unfinished_run(self.evaluator)
        folder = None
        if self.output_dir is not None and model in ("best", "last"):
            folder = self.output_dir / model / str(self.client_name) / split
        with (
            evaluation_parts(self.evaluator, self.eval_workflow, split, folder),
            own_random_state(self._seed(call, "evaluate")),
        ):
            answer = super().evaluate(data, extra)
            state = self.evaluator.state
            summary = dict(getattr(state, "score_summary", None) or {})
            self.scores[split] = list(getattr(state, "scores", None) or [])
            seen = int(summary.get("n", len(getattr(self.evaluator.data_loader, "dataset", ()))))
        empty = {f"empty_{side}": count for side, count in (summary.get("empty") or {}).items()}
        answer.metrics = _sendable({**(answer.metrics or {}), **empty})
        answer[HEADER] = self._header(Kind.METRICS, call, seen)
        return answer

    def abort(self, extra: dict | None = None) -> None:
        """Stops what runs, and refuses further work until ``initialize`` is called again."""
        self._closed = "aborted"
        super().abort(extra)

    def finalize(self, extra: dict | None = None) -> None:
        """Ends the client, and refuses further work until ``initialize`` is called again."""
        self._closed = "finalized"
        super().finalize(extra)

    def state_dict(self) -> dict[str, Tensor]:
        """What the next round needs and the server does not send, as named tensors.

        The optimizer's state, and the network where this site keeps its own. Guides (EMA, global model) hold nothing
        across rounds: they are re-synced when a round starts.
        """
        if self.trainer is None:
            return {}
        state = optimizer_state.pack(self.trainer.optimizer) if self.keep_optimizer else {}
        if self.sharing is not None:
            state.update({_OWN + name: tensor for name, tensor in get_state_dict(self.trainer.network).items()})
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Puts back what :meth:`state_dict` returned; nothing for an empty one."""
        if not state or self.trainer is None:
            return
        own = {name[len(_OWN) :]: tensor for name, tensor in state.items() if name.startswith(_OWN)}
        rest = {name: tensor for name, tensor in state.items() if not name.startswith(_OWN)}
        if own:
            self.load_network(own)
        if rest:
            optimizer_state.unpack(self.trainer.optimizer, rest)

    def load_network(self, weights: Mapping[str, Tensor]) -> None:
        """Gives this site's own network its weights, for instance those of a warm start.

        Raises:
            MessageRefused: they are those of another network.
        """
        if self.trainer is None:
            raise RuntimeError("load_network() was called before initialize()")
        network = self.trainer.network
        Envelope(Kind.WEIGHTS, str(self.client_name), 0, 1, tensors=dict(weights)).check(
            up=False, like=get_state_dict(network)
        )
        network.load_state_dict(dict(weights))
        if self.sharing is not None:
            self.sharing.reset()

    @contextmanager
    def _undone_if_it_fails(self, *, personal: bool) -> Iterator[None]:
        # a network that stays here must not keep what a failed round did to it: NaN would never leave it again
        if self.trainer is None:
            raise RuntimeError("the client was not initialized")
        network, optimizer = self.trainer.network, self.trainer.optimizer
        before = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()} if personal else {}
        try:
            yield
        except BaseException:
            if before:
                network.load_state_dict(before)
            if self.sharing is not None:
                self.sharing.reset()
            raise
        finally:
            if optimizer_state.drop_if_poisoned(optimizer):
                logger.warning("%s: the optimizer's moments were not finite and were forgotten", self.client_name)

    def _is_personal(self, call: Mapping[str, Any]) -> bool:
        return self.sharing is not None and call.get("purpose", "replace") != "replace"

    def _receive(self, data: ExchangeObject, call: Mapping[str, Any]) -> None:
        if self.sharing is None or call.get("purpose") != "distil":
            return
        kind = Kind(data.get(HEADER, {}).get("kind", Kind.METRICS))
        means = self.sharing.receive(call.get("round", 0), call.get("rounds", 1), kind, dict(data.weights or {}))
        self._received = {name: value for name, value in means.items() if math.isfinite(value)}

    def _shared(self) -> ExchangeObject:
        if self.sharing is None:
            raise RuntimeError("a bundle without sharing has only weights to give")
        kind, tensors = self.sharing.share()
        answer = ExchangeObject(weights=tensors or None)
        answer[_KIND] = kind
        return answer

    def _own_weights(self, data: ExchangeObject) -> ExchangeObject:
        if self.trainer is None:
            raise RuntimeError("the client was not initialized")
        own = ExchangeObject(weights=dict(get_state_dict(self.trainer.network)), weight_type=WeightType.WEIGHTS)
        own[HEADER] = data.get(HEADER, {})
        return own

    def _check_incoming(self, data: ExchangeObject, network: nn.Module) -> None:
        incoming = Envelope(Kind.WEIGHTS, str(self.client_name), 0, 1, tensors=dict(data.weights or {}))
        incoming.check(up=False, like=get_state_dict(network))

    def _place_trainer(self, call: Mapping[str, Any]) -> None:
        if "round" not in call or self.trainer is None:
            return
        state = self.trainer.state
        state.round, state.rounds = call["round"], call.get("rounds", call["round"] + 1)
        state.epoch = call["round"] * self.local_epochs
        state.iteration = state.epoch * (state.epoch_length or 0)

    def _seed(self, call: Mapping[str, Any], what: str) -> int | None:
        if "round" not in call:
            return None
        return derive_seed(call.get("seed", 0), str(self.client_name), call["round"], what)

    def _header(self, kind: Kind, call: Mapping[str, Any], n: int) -> dict[str, Any]:
        whole = {"round": call.get("round", 0), "rounds": call.get("rounds", 1), "seed": call.get("seed", 0)}
        return Envelope(kind, str(self.client_name), n=n, **whole).header()

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise RuntimeError(f"the client was {self._closed}; call initialize() before it works again")


def _sendable(metrics: Mapping[Any, Any]) -> dict[str, float]:
    """Those of ``metrics`` that may leave the site: allow-listed names with plain numbers."""
    numbers = {str(name): getattr(value, "item", lambda value=value: value)() for name, value in metrics.items()}
    return {
        name: value
        for name, value in numbers.items()
        if (name in METRIC_NAMES or TERM_NAME.fullmatch(name)) and type(value) in (int, float)
    }


def _forget_unfinished_run(engine: Any) -> None:
    # After an exception Ignite keeps the dead generator of that run, and the next run() returns at once (0.5.5).
    for name in ("_internal_run_generator", "_dataloader_iter", "_init_iter"):
        if hasattr(engine, name):
            setattr(engine, name, None)
