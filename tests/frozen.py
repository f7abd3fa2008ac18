"""Checks that a restructuring changed no bit: runs of many variants, recorded in one checkout, compared in another.

Usage::

    python -m tests.frozen record FILE              # in the old checkout, with a copy of this file
    python -m tests.frozen check FILE               # in the new checkout; lists every difference

Each variant runs for two rounds of three steps at 64 px on three synthetic sites. For each run, FILE has the SHA-256 of
each round's model and of all states of sites and server in the round, the loss terms and validation scores of each site
in each round, and the final scores of each site. The SHA-256 is that of names, dtypes, shapes and bytes of the tensors,
not of a file and its header. The images and the teacher, which each checkout creates itself, are compared, too.

Only the command line is used (``python -m samfed_monai``, in the folder above this one), and nothing of the package is
imported, so this file also works with another layout of the package. Results depend on the processor and on the
versions of the installed packages: record and check on one machine, in one environment. For that reason no recorded
file is in the repository, and this is a script, not a test.

It needs MobileSAM's checkpoint in ``$SAMFED_DATA/weights/mobile_sam.pt``.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import deserialize

ROOT = Path(__file__).resolve().parent.parent
ROUNDS = 2
SMALL = [
    "--rounds", ROUNDS, "--image_size", 64, "--local_steps", 3, "--warm_start_steps", 2, "--batch_size", 2,
    "--overlays", "false", "--limit", 5, "--seed", 3,
]  # fmt: skip
TEACHER = ["--teacher#views", 1, "--teacher#size", 64]
LIGHT = ["--network_name", "lite0_fpn", "--encoder_weights", "null"]
SURE = ["--agreement#tau", 0.55]
UNLIKE = ["--encoder_weights", "null", "--public_steps", 2]
# networks of the sites, in turn, and of the server, if it has one
TRUNKS = [
    "--mixed_networks", "['mobile_sam_fpn','lite0_fpn','basic_unet']", "--server_network", "lite0_fpn",
]  # fmt: skip
HSSF = ["--mixed_networks", "['hssf_resnet18']", "--server_network", "hssf_resnet18"]
DEEPLAB = ["--mixed_networks", "['deeplabv3plus_efficientnet_lite0','deeplabv3plus_resnet18']"]

# Thresholds are low and mixing rates high, so that a variant has an effect in such a short run.
VARIANTS: dict[str, list[Any]] = {
    "samfed": TEACHER,
    "no_sam": [*LIGHT, *SURE],
    "ditto": [*LIGHT, *SURE],
    "apple": [*LIGHT, *SURE, "--client_algorithm#rate", 0.1, "--client_algorithm#fraction", 1.0],
    "fedala": [
        *LIGHT, *SURE, "--client_algorithm#rate", 10000,
        "--client_algorithm#first_batches", 3, "--client_algorithm#batches", 2,
    ],
    "fedrep": [*LIGHT, *SURE],
    "semifl": [*LIGHT, *SURE],
    "mean_teacher": LIGHT,
    "unimatch": [*LIGHT, "--terms#unimatch#tau", 0.55],
    "heterogeneous": [*TEACHER, *UNLIKE, *TRUNKS],
    "hssf_compat": [
        *UNLIKE, *HSSF, "--batch_size", 4, "--strategy#floor", 0.0, "--client_algorithm#gate", "always",
    ],
    "fedproto": [*UNLIKE, *DEEPLAB, *SURE, "--terms#prototype#tau", 0.55],
    "fca": [],
    "pfedsam": [],
    "pfedsam_two_stage": [],
    "oracle": LIGHT,
}  # fmt: skip
"""Further options by name. ``samfed`` uses the default network, which starts from the teacher's trunk."""


class Failed(Exception):
    """A command or a run without the results to record."""


def main(arguments: list[str] | None = None) -> int:
    """Records or checks; returns 1 if something differs or failed."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.frozen", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=["record", "check"])
    parser.add_argument("file", type=Path, metavar="FILE", help="the recorded JSON, written or compared with")
    parser.add_argument("--variants", metavar="A,B", help=f"only these of: {', '.join(VARIANTS)}")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="work in DIR and leave everything there")
    options = parser.parse_args(arguments)
    known = json.loads(options.file.read_text()) if options.action == "check" else {"variants": VARIANTS}
    names = options.variants.split(",") if options.variants else list(known["variants"])
    if unknown := [name for name in names if name not in VARIANTS or name not in known["variants"]]:
        parser.error(f"--variants: {', '.join(unknown)} not known, or not in {options.file}")
    checkpoint = Path(os.environ.get("SAMFED_DATA") or ".") / "weights" / "mobile_sam.pt"
    if not checkpoint.is_file():
        parser.error(
            f"no MobileSAM checkpoint at {checkpoint}: set SAMFED_DATA to the folder with weights/mobile_sam.pt"
        )
    with contextlib.ExitStack() as stack:
        folder = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="frozen-")))
        try:
            content = run_all(folder.resolve(), names, checkpoint.resolve())
        except Failed as failed:
            print(failed)
            return 1
    if options.action == "record":
        options.file.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
        failures = [name for name, record in content["variants"].items() if "failed" in record]
        print(f"{options.file}: {len(names)} variants" + (f"; failed: {', '.join(failures)}" if failures else ""))
        return 1 if failures else 0
    known["variants"] = {name: known["variants"][name] for name in names}
    differences = list(compare(known, content))
    print("\n".join(differences) if differences else f"no difference in {len(names)} variants")
    return 1 if differences else 0


def run_all(folder: Path, names: list[str], checkpoint: Path) -> dict[str, Any]:
    """Runs the variants ``names`` in ``folder`` and returns the results to record."""
    folder.mkdir(parents=True, exist_ok=True)
    inputs, records = prepare(folder, checkpoint), {}
    for name in names:
        start = time.monotonic()
        try:
            records[name] = run_variant(folder, name)
        except Failed as failed:
            records[name] = {"failed": str(failed)}
            print(failed)
        print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)
    return {"inputs": inputs, "variants": records}


def prepare(folder: Path, checkpoint: Path) -> dict[str, Any]:
    """Renders the images and trains the teacher that all variants share."""
    samfed(folder, "weights", "mobile_sam", "--from", checkpoint)
    sizes = ("--sites", 3, "--images-per-site", 6, "--public", 6, "--size", 64, 64)
    samfed(
        folder, "prepare", "synthetic", folder / "images", *sizes, "--labelled", "--no-report",
        "--output", folder / "list.json",
    )  # fmt: skip
    fit = ("--adapt", "decoder", "--epochs", 1, "--views", 1, "--size", 64, "--evaluate_limit", 2)
    samfed(folder, "teach", "samfed_skin", *_data(folder), *fit, "--output", folder / "teacher.safetensors")
    return {
        "list": hashlib.sha256((folder / "list.json").read_bytes()).hexdigest(),
        "teacher": tensors_hash(folder / "teacher.safetensors"),
    }


def run_variant(folder: Path, name: str) -> dict[str, Any]:
    """Runs one variant from scratch and returns its results."""
    run, kept = folder / "runs" / name, folder / "rounds" / name
    for old in (run, kept):
        shutil.rmtree(old, ignore_errors=True)
    adapter = ("--adapter", folder / "teacher.safetensors") if VARIANTS[name][: len(TEACHER)] == TEACHER else ()
    samfed(
        folder, "federate", "samfed_skin", "--variant", name, *_data(folder), *SMALL, *VARIANTS[name],
        *adapter, "--cache-dir", folder / "cache", "--output-dir", run,
        rounds=run / "rounds", kept=kept,
    )  # fmt: skip
    results = json.loads((run / "results.json").read_text())
    rounds = {}
    for number in range(ROUNDS):
        stored = kept / f"{number:03d}"
        if not (stored / "round.json").is_file():
            raise Failed(f"{name}: round {number} was not there long enough to be kept; run it again")
        record = json.loads((stored / "round.json").read_text())
        files = sorted(record["files"])
        if missing := [file for file in files if not (stored / file).is_file()]:
            raise Failed(f"{name}: {', '.join(missing)} of round {number} went before it was kept; run it again")
        rounds[f"{number}"] = {
            "tensors": {file: tensors_hash(stored / file) for file in files},
            "sites": {
                site: {part: entry[part] for part in ("status", "reason", "n", "terms", "validation")}
                for site, entry in record["sites"].items()
            },
        }
    shutil.rmtree(kept)
    models = {which: {"round": model["round"], "sites": model["sites"]} for which, model in results["models"].items()}
    return {"rounds": rounds, "scores": results["sites"], "models": models}


def samfed(folder: Path, command: str, *words: Any, rounds: Path | None = None, kept: Path | None = None) -> None:
    """Runs ``samfed COMMAND`` and keeps each round that appears in ``rounds``, some of which a finished run removes.

    Raises:
        Failed: the exit code is not 0; with the last lines of the output.
    """
    log = (kept or folder / command).with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ, "SAMFED_WEIGHTS": str(folder / "weights"), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    line = [sys.executable, "-m", "samfed_monai", command, *map(str, words)]
    with open(log, "wb") as output:
        process = subprocess.Popen(line, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None:
                if rounds and kept:
                    keep_new(rounds, kept)
                time.sleep(0.05)
        except BaseException:
            process.terminate()
            process.wait()
            raise
    if process.returncode:
        end = "\n".join(log.read_text(errors="replace").splitlines()[-8:])
        raise Failed(f"{' '.join(line[2:])}\nended with exit code {process.returncode}:\n{end}")


def keep_new(rounds: Path, kept: Path) -> None:
    """Links the files of new rounds; a round's folder is complete, since it is renamed, and never changes."""
    for folder in rounds.glob("[0-9][0-9][0-9]"):
        if not (kept / folder.name).exists():
            for path in sorted(folder.rglob("*")):
                if path.is_file():
                    target = kept / folder.name / path.relative_to(folder)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with contextlib.suppress(FileNotFoundError):  # just removed; run_variant reports it
                        os.link(path, target)


def tensors_hash(path: Path) -> str:
    """SHA-256 of names, dtypes, shapes and bytes of a safetensors file, in the order of names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(deserialize(path.read_bytes()), key=lambda pair: pair[0]):
        digest.update(json.dumps([name, tensor["dtype"], list(tensor["shape"]), len(tensor["data"])]).encode())
        digest.update(tensor["data"])
    return digest.hexdigest()


def compare(known: Any, now: Any, place: str = "") -> Iterator[str]:
    """Yields a line for each value that differs: ``variants samfed rounds 1 … : recorded A, now B``."""
    if isinstance(known, dict) and isinstance(now, dict):
        for key in sorted(known.keys() | now.keys()):
            yield from compare(known.get(key), now.get(key), f"{place} {key}".strip())
    elif known != now:
        yield f"{place}: recorded {_short(known)}, now {_short(now)}"


def _short(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(value)
    return text if len(text) <= 300 else f"{text[:297]}..."


def _data(folder: Path) -> tuple[Any, ...]:
    return "--datalist", folder / "list.json", "--data-root", folder / "images"


if __name__ == "__main__":
    sys.exit(main())
