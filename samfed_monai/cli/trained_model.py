"""What ``samfed evaluate`` and ``samfed infer`` make of ``--model``: a run, weights, an adapter, an ONNX file."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from samfed_monai.cli.arguments import absolute
from samfed_monai.config.bundles import find_bundle
from samfed_monai.config.knobs import USE_OF_TEACHER
from samfed_monai.config.overrides import overrides_of
from samfed_monai.config.parse import lookup, split_id, workflow_files
from samfed_monai.core.errors import Problem, Refused
from samfed_monai.core.io import as_file_name, read_json
from samfed_monai.core.model_file import read_header, settings_of
from samfed_monai.data.classes import class_problems, outputs_of, several

if TYPE_CHECKING:
    from torch import Tensor

    from samfed_monai.federation.run_models import RunModels
    from samfed_monai.federation.teacher import TeacherStage
    from samfed_monai.federation.workflow import WorkflowConfig
    from samfed_monai.networks import Teacher


MODEL_HELP = "a finished run's folder, a weights file, or the adapter of a fitted teacher"
SCORED_AS = ("label_resize", "validate#scores#pooled", "validate#scores#skip_empty", "validate#inferer#enabled")
"""Ids of ``train.json`` that decide how images are scored, and may differ from the bundle's in a run."""
_WORDS = ("area", "nearest", "auto")


def is_onnx(models: RunModels | Path) -> TypeGuard[Path]:
    """Whether what :func:`run_or_file` gave is an exported ONNX file, by its name."""
    return isinstance(models, Path) and models.suffix.lower() == ".onnx"


def run_or_file(model: str | Path) -> RunModels | Path:
    """What ``--model`` names.

    Raises:
        Refused: a folder that is no finished run.
    """
    from samfed_monai.federation.run_models import RunModels

    path = Path(model).expanduser().resolve()
    return RunModels(path) if path.is_dir() else path


def shipped_model(bundle: str) -> Path:
    """The weights in a bundle's folder ``models``, which a bundle that may not ship any does not have.

    Raises:
        Refused: there are none.
    """
    from samfed_monai.bundle.wiring import model_path

    root = find_bundle(bundle)
    path = Path(model_path(model=None, bundle_root=root))
    if not path.is_file():
        hint = "name one with --model: a finished run's folder, a weights file, or a teacher's adapter"
        raise Refused([Problem("--model", found="none", expected=f"one: {root.name} ships no weights", hint=hint)])
    return path


def scored_as(models: RunModels | Path) -> dict[str, Any]:
    """Those of :data:`SCORED_AS` with which a run took its own scores; nothing of a weights file."""
    if isinstance(models, Path):
        return {}
    client = models.run.get("config", {}).get("client", {})
    found = {name: lookup(client, split_id(name)) for name in SCORED_AS}
    return {name: value for name, value in found.items() if isinstance(value, bool) or value in _WORDS}


def weights_file(models: RunModels | Path, site: str, scratch: str | Path) -> Path:
    """The file with a site's model; one that lies whole on disk is taken as it is.

    Args:
        models: what :func:`run_or_file` gave.
        site: whose model; "" is the server's.
        scratch: folder for a model that has to be put together.

    Raises:
        Refused: there is no such model here; an ONNX file, which holds none to build.
    """
    if is_onnx(models):
        hint = "name the weights that it was exported from"
        expected = "a run or weights: an ONNX file is run by `samfed infer` alone"
        raise Refused([Problem("--model", found=models.name, expected=expected, hint=hint)])
    if isinstance(models, Path):
        return models
    if models.whole_at_server and not models.personal and (not site or site in models.sites):
        return models.server
    return models.write(Path(scratch) / f"{as_file_name(site or 'server')}.safetensors", site)


def trained_as(model: Path, bundle: str | Path, workflow: str, own: Mapping[str, Any]) -> dict[str, Any]:
    """Ids with which a workflow builds the network of a weights file as it was trained, and ``own`` on top of them.

    Raises:
        Refused: the file was trained on another SAM than the one that is here, or at another image size than ``own``
            names.
    """
    from samfed_monai.core.model_file import base_sam_of, network_overrides, settings_of, size_problems
    from samfed_monai.federation.fingerprint import base_sam
    from samfed_monai.federation.workflow import WorkflowConfig

    ids = {**settings_of(model), **network_overrides(model), **own}
    wanted, root = base_sam_of(model), find_bundle(bundle)
    if problems := size_problems(model, own, _plain_value(root, workflow, "image_size")):
        raise Refused(problems)
    if wanted:
        files = tuple(str(path) for path in workflow_files(root, workflow))
        found = base_sam(WorkflowConfig(root, files, ids), str(ids.get("network_name", "")))
        if found not in (wanted, None):
            expected, hint = (
                f"{wanted[:12]}, on which {model.name} was trained",
                "put that one in place: samfed weights",
            )
            raise Refused([Problem("SAM's weights", found=str(found)[:12], expected=expected, hint=hint)])
    return ids


def _plain_value(root: Path, workflow: str, name: str) -> Any:
    """What a bundle's files of a workflow say of an id on top, the last one first."""
    files = [read_json(path) for path in workflow_files(root, workflow) if path.is_file()]
    return next((content[name] for content in reversed(files) if name in content), None)


def add_other_size(parser: argparse.ArgumentParser) -> None:
    """Adds ``--allow-other-size``, without which ``--image_size`` is the one that the model was trained at."""
    about = "take --image_size although the model was trained at another one, which lowers its scores"
    parser.add_argument("--allow-other-size", action="store_true", help=about)


_PREFIX = "teacher#"
_READ = {
    "evaluate": frozenset({"validate#scores", "validate#preprocessing", "limit", "classes"}),
    "inference": frozenset({"threshold", "classes"}),
}
"""Ids of a bundle's workflows that are read where a teacher is used in place of a student."""


def add_views(parser: argparse.ArgumentParser) -> None:
    """Adds ``--views``; any other knob of ``teacher.json`` has ``--teacher#`` before it."""
    parser.add_argument(
        "--views",
        type=int,
        choices=(1, 2, 4, 8),
        help="test-time views: mirrors and quarter turns over which probabilities are averaged, each a pass of the "
        "network (default: 1; of a teacher's adapter that of teacher.json, whose other knobs are --teacher#…)",
    )


def is_adapter(arguments: argparse.Namespace) -> bool:
    """Whether ``--model`` names an adapter made by ``samfed teach``.

    Raises:
        Refused: it does not, and the command line says how a teacher is used.
    """
    if "adapter" in read_header(Path(arguments.model).expanduser()):
        return True
    given = [name for name in overrides_of(arguments.extra) if name.startswith(_PREFIX)]
    if given:
        hint = "leave it out, or name the adapter of a teacher as --model"
        found = f"{arguments.model}, which is no teacher's adapter"
        expected = "a teacher's adapter"
        raise Refused([Problem(f"--{name}", found=found, expected=expected, hint=hint) for name in given])
    return False


def evaluate(arguments: argparse.Namespace) -> dict[str, Any]:
    """Scores a teacher as students are scored: on labels of the bundle's ``image_size``, by its ``validate#scores``.

    Images are shown to the teacher at their own size. Tables, masks and ``metrics.json`` are those of a student's
    evaluation; ``metrics.json`` also says what the teacher is.
    """
    from monai.engines import SupervisedEvaluator

    from samfed_monai.core.device import best_device
    from samfed_monai.core.io import write_json
    from samfed_monai.handlers import BatchBar, SiteEvaluation
    from samfed_monai.teacher.inference import TeacherNetwork

    given = {
        "model": absolute(arguments.model),
        "datalist": absolute(arguments.datalist),
        "data_root": absolute(arguments.data_root),
        "site": arguments.site,
        "split": arguments.split,
        "output_dir": absolute(arguments.output_dir),
    }
    config, stage = _checked(arguments, "evaluate", given)
    teacher = stage.fitted(Path(given["model"]))
    scores, preprocessing = config.values("validate#scores", "validate#preprocessing")
    evaluation = SiteEvaluation(
        evaluator=SupervisedEvaluator(
            device=best_device(),
            val_data_loader=[],
            network=TeacherNetwork(teacher),
            prepare_batch=_with_size,
            val_handlers=[scores, BatchBar(what="scoring")],
            decollate=False,
        ),
        scores=scores,
        loaded=True,
        preprocessing=_at_its_own_size(preprocessing),
        batch_size=1,
        limit=config.optional("limit"),
        **given,
    )
    result = evaluation.run() | {"teacher": _about(stage, teacher)}
    write_json(evaluation.output_dir / "metrics.json", result)
    return result


def infer(arguments: argparse.Namespace) -> None:
    """Writes a teacher's masks of a folder of images, with the same refusals as a student's."""
    from monai.data import DataLoader, Dataset
    from monai.engines import SupervisedEvaluator

    from samfed_monai.core.device import best_device
    from samfed_monai.data.image_folder import image_folder
    from samfed_monai.handlers import BatchBar
    from samfed_monai.handlers.mask_writer import MaskWriter
    from samfed_monai.teacher.inference import TeacherNetwork

    given = {
        "model": absolute(arguments.model),
        "dataset_dir": arguments.images,
        "output_dir": absolute(arguments.output),
        "probabilities": arguments.probabilities,
    }
    config, stage = _checked(arguments, "inference", given)
    teacher = stage.fitted(Path(str(given["model"])))
    writer = MaskWriter(
        output_dir=str(given["output_dir"]),
        probabilities=arguments.probabilities,
        threshold=config.value("threshold"),
        images=given["dataset_dir"],
        model_sha256=teacher.sha256,
        image_size=teacher.size,
        classes=arguments.classes,
    )
    records = image_folder(given["dataset_dir"], skip_unreadable=arguments.skip_unreadable)
    evaluator = SupervisedEvaluator(
        device=best_device(),
        val_data_loader=DataLoader(Dataset(records, _native), batch_size=1),
        network=TeacherNetwork(teacher),
        val_handlers=[writer, BatchBar(what="segmenting")],
        decollate=False,
    )
    evaluator.run()


_BUILT = frozenset({"classes", "network_name", "network_def", "network", "model_path", "amp", "device"})
"""Ids of ``inference.json`` that an exported network has settled."""


def classes_of(arguments: argparse.Namespace, models: RunModels | Path) -> list[str]:
    """Names of the classes that ``--model`` tells apart; empty where it knows one, or nobody says.

    Raises:
        Refused: an adapter of several, whose names nobody says.
    """
    given = overrides_of(arguments.extra).get("classes")
    if given is not None and not class_problems(given, "--classes"):
        names = list(given)
    elif is_onnx(models):
        from samfed_monai.networks.onnx_network import OnnxNetwork

        names = OnnxNetwork(models).classes
    elif isinstance(models, Path):
        names = settings_of(models).get("classes", [])
    else:
        names = models.run.get("config", {}).get("client", {}).get("classes") or []
    if isinstance(models, Path) and "adapter" in read_header(models):
        from samfed_monai.networks.sam.adapter import read_header as read_adapter

        outputs = read_adapter(models).outputs
        if outputs_of(names) != outputs:
            expected = f"names of the adapter's {max(1, outputs - 1)}, in the order of its labels"
            hint = "--classes \"['A', 'B']\"" if outputs > 1 else "leave --classes out"
            raise Refused([Problem("--classes", found=str(names or "none"), expected=expected, hint=hint)])
    return names if several(names) else []


def infer_onnx(arguments: argparse.Namespace) -> None:
    """Writes masks of an exported network, with the bundle's own reading, postprocessing and threshold.

    Raises:
        Refused: a file that is no network of ours; ids that it has settled; whatever a student's inference refuses.
    """
    import torch
    from monai.data import set_track_meta
    from monai.engines import SupervisedEvaluator

    from samfed_monai.config.check import check_bundle
    from samfed_monai.core.errors import Problems
    from samfed_monai.federation.workflow import WorkflowConfig
    from samfed_monai.handlers import BatchBar
    from samfed_monai.handlers.mask_writer import MaskWriter
    from samfed_monai.networks.onnx_network import OnnxNetwork

    root, own, problems = find_bundle(arguments.bundle), overrides_of(arguments.extra), Problems()
    file, hint = Path(str(absolute(arguments.model))), "leave it out, or name the weights that were exported"
    for name, value in own.items():
        if split_id(name)[0] in _BUILT:
            problems.add(f"--{name}", found=str(value), expected=f"nothing: {file.name} has settled it", hint=hint)
    if arguments.device not in (None, "cpu"):
        problems.add("--device", found=arguments.device, expected=f"cpu, on which {file.name} is run", hint=hint)
    problems.refuse_if_any()
    runtime = arguments.runtime or "onnxruntime"
    network = OnnxNetwork(file, runtime)
    height, width = network.size
    asked = own.get("image_size", height)
    if height != width or asked != height:
        found, expected = f"{width} x {height} pixels", f"a square of {asked} pixels"
        problems.add(f"{file} -> input", found=found, expected=expected, hint="leave --image_size out, or export anew")
    given = {
        "model": str(file),
        "dataset_dir": arguments.images,
        "output_dir": absolute(arguments.output),
        "probabilities": arguments.probabilities,
        **own,
        **({} if arguments.views is None else {"views": arguments.views}),
        **({"dataset#data#skip_unreadable": True} if arguments.skip_unreadable else {}),
        "image_size": height,
    }
    reads = frozenset({"dataloader", "postprocessing", "inferer", "threshold"})
    problems.extend(check_bundle(root, "inference", overrides=given, reads=reads, asked=own))
    problems.refuse_if_any()
    files = workflow_files(root, "inference")
    config = WorkflowConfig(root, tuple(map(str, files)), {"bundle_root": str(root), **given})
    writer = MaskWriter(
        output_dir=str(given["output_dir"]),
        probabilities=arguments.probabilities,
        threshold=config.value("threshold"),
        images=given["dataset_dir"],
        model=file,
        image_size=height,
        runtime=runtime,
        classes=network.classes,
    )
    set_track_meta(True)  # as the bundle's own `initialize` does
    loader, postprocessing, inferer = config.values("dataloader", "postprocessing", "inferer")
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=loader,
        network=network,
        inferer=inferer,
        postprocessing=postprocessing,
        val_handlers=[writer, BatchBar(what="segmenting")],
        decollate=True,
    )
    evaluator.run()


def _checked(
    arguments: argparse.Namespace, workflow: str, given: Mapping[str, Any]
) -> tuple[WorkflowConfig, TeacherStage]:
    """The bundle's workflow with its overrides, and how its ``teacher.json`` uses the adapter.

    Raises:
        Refused: everything that is wrong with either; an adapter whose header cannot be read.
    """
    from samfed_monai.config.check import check_bundle
    from samfed_monai.config.parse import workflow_files
    from samfed_monai.core.errors import Problems
    from samfed_monai.federation.teacher import TeacherStage
    from samfed_monai.federation.workflow import WorkflowConfig
    from samfed_monai.networks.sam import adapter

    root, own = find_bundle(arguments.bundle), overrides_of(arguments.extra)
    of_teacher = {name.removeprefix(_PREFIX): value for name, value in own.items() if name.startswith(_PREFIX)}
    if arguments.views is not None:
        of_teacher["views"] = arguments.views
    overrides = {**given, **{name: value for name, value in own.items() if not name.startswith(_PREFIX)}}
    problems = Problems()
    asked = [name for name in own if not name.startswith(_PREFIX)]
    problems.extend(check_bundle(root, workflow, overrides=overrides, reads=_READ[workflow], asked=asked))
    problems.extend(check_bundle(root, "teacher", overrides=of_teacher, ready=False, reads=USE_OF_TEACHER))
    problems.refuse_if_any()
    header = adapter.read_header(str(given["model"]))
    files = workflow_files(root, workflow)
    config = WorkflowConfig(root, tuple(map(str, files)), {"bundle_root": str(root), **overrides})
    named = {"base": header.base, "size": header.size, "adapt": header.adapt.value, **of_teacher}
    return config, TeacherStage(root, named, root)  # nothing is fitted: no cache is written


def _about(stage: TeacherStage, teacher: Teacher) -> dict[str, Any]:
    return {**stage.about(teacher, str(stage.overrides["adapt"])), "sha256": teacher.sha256}


def _native(record: Mapping[str, Any]) -> dict[str, Any]:
    from samfed_monai.teacher.exam import read_image_tensor

    image = read_image_tensor(dict(record))[0].float() / 255
    return {"id": record["id"], "image": image, "native_size": tuple(image.shape[-2:])}


def _at_its_own_size(preprocessing: Callable[[Any], Any]) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """The label as students are scored on it, beside the image as it is."""

    def read(record: Mapping[str, Any]) -> dict[str, Any]:
        import torch

        return {**_native(record), "label": torch.as_tensor(preprocessing(dict(record))["label"])}

    return read


def _with_size(
    batch: Mapping[str, Tensor], device: Any = None, non_blocking: bool = False, **_: Any
) -> tuple[Tensor, Tensor, tuple[()], dict[str, Any]]:
    """An evaluator's ``prepare_batch`` that tells the network how large the label is."""
    image, label = (batch[name].to(device, non_blocking=non_blocking) for name in ("image", "label"))
    return image, label, (), {"size": tuple(label.shape[-2:])}
