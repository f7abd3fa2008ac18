"""What a client needs from its bundle beyond MONAI FL's own properties: a split's loader, a count, a folder."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samfed_monai.core.errors import Problem, Refused

if TYPE_CHECKING:
    from monai.engines import SupervisedEvaluator

#: Configuration id of each split's data loader.
LOADER_IDS = {"validation": "validate#dataloader", "test": "test#dataloader"}


def private_count(workflow: Any) -> int:
    """Number of images a bundle trains on: ``unlabelled#dataset``, else ``train#dataset``; 0 without both."""
    parser = getattr(workflow, "parser", None)
    for name in ("unlabelled#dataset", "train#dataset"):
        if parser is not None and name in parser:
            dataset = parser.get_parsed_content(name)
            if isinstance(dataset, Sized):
                return len(dataset)
    return 0


@contextmanager
def evaluation_parts(evaluator: SupervisedEvaluator, workflow: Any, split: str, folder: Path | None) -> Iterator[None]:
    """Lends an evaluator another split's data loader, and its score handlers a folder, for the time of a block.

    Args:
        evaluator: the bundle's evaluator.
        workflow: the workflow that it came from.
        split: ``validation`` or ``test``.
        folder: where handlers with an ``output_dir`` write; ``None`` leaves them writing nothing.

    Raises:
        Refused: no such split, or the bundle has no data loader for it.
    """
    loader = _loader(evaluator, workflow, split)
    own_loader, own_length = evaluator.data_loader, evaluator.state.epoch_length
    handlers = [handler for handler in _handlers(workflow) if hasattr(handler, "output_dir")]
    own_folders = [handler.output_dir for handler in handlers]
    evaluator.data_loader = loader
    evaluator.state.epoch_length = len(loader) if isinstance(loader, Sized) else None
    evaluator.state.metrics, evaluator.state.scores, evaluator.state.score_summary = {}, None, None
    for handler in handlers:
        handler.output_dir = folder
    try:
        yield
    finally:
        evaluator.data_loader, evaluator.state.epoch_length = own_loader, own_length
        for handler, own_folder in zip(handlers, own_folders, strict=True):
            handler.output_dir = own_folder


def scored(evaluator: SupervisedEvaluator) -> tuple[list[dict[str, Any]], dict[str, int], int]:
    """What a run of the evaluator left: its table, ``empty_<side>`` counts by name, and how many images were seen."""
    state = evaluator.state
    summary = dict(getattr(state, "score_summary", None) or {})
    seen = int(summary.get("n", len(getattr(evaluator.data_loader, "dataset", ()))))
    empty = {f"empty_{side}": count for side, count in (summary.get("empty") or {}).items()}
    return list(getattr(state, "scores", None) or []), empty, seen


def _loader(evaluator: SupervisedEvaluator, workflow: Any, split: str) -> Any:
    if split not in LOADER_IDS:
        raise Refused([Problem("split", found="another split", expected=f"one of {sorted(LOADER_IDS)}")])
    parser = getattr(workflow, "parser", None)
    if parser is not None and LOADER_IDS[split] in parser:
        return parser.get_parsed_content(LOADER_IDS[split])
    if split == "validation":
        return evaluator.data_loader
    mend = f"define {LOADER_IDS[split]} in evaluate.json"
    raise Refused([Problem(LOADER_IDS[split], found="no such id in the bundle", expected="a data loader", mend=mend)])


def _handlers(workflow: Any) -> list[Any]:
    parser = getattr(workflow, "parser", None)
    if parser is None or "validate#handlers" not in parser:
        return []
    return list(parser.get_parsed_content("validate#handlers") or [])
