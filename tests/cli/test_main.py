"""The ``samfed`` command: what it says, its help, what it exits with, also where it is asked to end."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from samfed_monai import __version__
from samfed_monai.cli import main as cli
from samfed_monai.cli.arguments import options_help
from samfed_monai.cli.main import build_parser, main
from samfed_monai.config import find_bundle, packaged_bundles, workflow
from samfed_monai.config.options import option_tables
from samfed_monai.core.errors import Problem, Refused, Stopped
from samfed_monai.core.process_setup import print_safely
from samfed_monai.core.run_log import NAME, RunLog
from samfed_monai.federation import comparison_runs
from samfed_monai.federation.signals import RECEIVED_SIGTERM, Terminated, Termination
from samfed_monai.handlers.evaluation import tables_of

BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "samfed_skin"
KEPT = "completed steps (teacher, soft masks, warm start) are kept in the run's cache"
FEDERATE = ["federate", "samfed_skin", "--datalist", "l.json", "--data-root", "d", "--rounds", "3", "--output-dir", "r"]


def test_log_records_go_to_current_stderr(monkeypatch):
    """A notebook's cell and a test have one of their own."""
    for _ in range(2):
        stream = io.StringIO()
        monkeypatch.setattr(sys, "stderr", stream)
        cli._show_records()
        logging.getLogger("samfed_monai.cli").info("round 1 of 2")
        assert stream.getvalue() == "round 1 of 2\n"


#: Commands that answer at once, each with what it prints.
LIGHT = {
    "--help": "our reading of it",
    "--version": f"samfed {__version__}\n",
    "show samfed_skin --workflow train --variant pfedsam --batch_size 2 --all": "command line",
    "show samfed_skin --workflow federate --variant pfedsam --batch_size 2 --all": "command line",
    "show samfed_skin --workflow evaluate --batch_size 2 --all": "command line",
    "show samfed_skin --workflow inference --batch_size 2 --all": "command line",
    "show samfed_skin --workflow teacher --views 2 --all": "command line",
}


def test_help_and_show_avoid_heavy_imports():
    code = (
        "import contextlib, io, sys\n"
        "import samfed_monai.cli.prepare, samfed_monai.cli.report, samfed_monai.cli.teach\n"
        "from samfed_monai.cli.main import main\n"
        f"for words in {list(LIGHT)}:\n"
        "    with contextlib.suppress(SystemExit): main(words.split())\n"
        "    print('\\f')\n"
        "heavy = {'torch', 'monai', 'numpy', 'ignite', 'PIL', 'matplotlib', 'jinja2', 'timm'}\n"
        "sys.stderr.write(' '.join(sorted(heavy & sys.modules.keys())))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    printed = done.stdout.split("\f\n")
    assert all(text in page for text, page in zip(LIGHT.values(), printed[:-1], strict=True))
    for command in cli.COMMANDS:
        assert f"\n    {command} " in printed[0]


@pytest.mark.parametrize(("encoding", "commands"), [("ascii", ("", *cli.COMMANDS)), ("utf-16", ("infer",))])
def test_help_prints_in_any_encoding(encoding, commands, monkeypatch):
    for command in commands:
        raw = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding))
        monkeypatch.setattr(sys, "stderr", io.StringIO())
        print_safely()
        with pytest.raises(SystemExit) as left:
            main([command, "--help"] if command else [])
        sys.stdout.flush()
        assert left.value.code == 0
        assert f"samfed {command}".strip() in raw.getvalue().decode(encoding)


def test_control_characters_in_names_are_escaped(tmp_path):
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(BUNDLE.parents[1]), "LC_ALL": "C"}
    words = [sys.executable, "-m", "samfed_monai", "check", "\x1b[31m\u202eäöü…", "--datalist", "a\nb"]
    done = subprocess.run(words, env={**environment, "PYTHONIOENCODING": "ascii"}, capture_output=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.isascii()
    assert b"\\x1b[31m\\u202e" in done.stderr
    assert b"\x1b" not in done.stderr + done.stdout


@pytest.mark.parametrize("words", [["--help"], ["variants"]])
def test_closed_pipe_is_reported_in_one_line(words):
    reader, writer = os.pipe()
    os.close(reader)
    environment = {**os.environ, "PYTHONPATH": str(BUNDLE.parents[1])}
    command = [sys.executable, "-m", "samfed_monai", *words]
    done = subprocess.run(command, env=environment, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    closed = b"stopped: the output was closed before the command ended\n"
    assert (done.returncode, done.stderr) == ((0, b"") if words == ["--help"] else (3, closed))


@pytest.mark.parametrize(("streams", "words", "code"), [(">&-", [], 0), ("2>/dev/full", ["nope"], 2)])
def test_closed_stdout_and_full_stderr_are_ignored(streams, words, code):
    command = ["sh", "-c", f'exec "$@" {streams}', "sh", sys.executable, "-m", "samfed_monai", "variants", *words]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(BUNDLE.parents[1])}, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (code, b"")


@pytest.mark.parametrize("place", ["word", "folder"])
def test_non_utf8_path_is_refused(place, tmp_path, monkeypatch, capsys):
    folder = tmp_path / os.fsdecode(b"bef\xfcnde")
    folder.mkdir()
    monkeypatch.chdir(folder if place == "folder" else tmp_path)
    assert main(["report", str(folder) if place == "word" else "run"]) == 2
    where = "command line" if place == "word" else "the current folder"
    assert f"{where}: expected UTF-8 without control characters, found '" in (error := capsys.readouterr().err)
    assert "bef\\xfcnde'" in error


@pytest.mark.parametrize("words", [["fedrate"], ["init", "samfed_skin", "x", "--bogus", "1"], ["federate"]])
def test_wrong_usage_exits_with_2(words, capsys):
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 2
    assert "usage: samfed" in capsys.readouterr().err


@pytest.fixture
def ended(monkeypatch, capsys):
    """Exit code and standard error of a command in which an error is raised."""

    def ended(error, cause=None):
        def fail(*_: object) -> None:
            raise error from cause

        monkeypatch.setattr(workflow, "run_workflow", fail)
        return main(FEDERATE), capsys.readouterr().err

    return ended


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (Refused([Problem("x", found="1", expected="2")]), 2, "refused: 1 problem\n  - x: expected 2, found 1\n"),
        (Stopped("disk full", resume="again"), 3, "stopped: disk full\n  to continue: again\n"),
        (KeyboardInterrupt(), 130, f"interrupted: {KEPT}\n  to continue: run the same command again\n"),
    ],
)
def test_errors_have_exit_code_and_no_traceback(ended, error, code, text):
    assert ended(error) == (code, text)


LOOP = "expected a path without a loop of symbolic links"
COPIED = [("LICENSE", "/b/.x/LICENSE", "[Errno 28] No space left on device: 'LICENSE' -> '/b/LICENSE'")]


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (OSError(28, "", "/r/report.html"), 3, r"disk is full \(/r/report.html\).*\n  to continue: make room"),
        (OSError(28, "", "/sam.pt", None, "/weights/sam.pt"), 3, r"disk is full \(/weights/sam.pt\)"),
        (shutil.Error(COPIED), 3, r"disk is full \(/b/LICENSE\); completed work is kept"),
        (OSError(5, "", "/a.png"), 3, "/a.png failed with 'Input/output error'; completed work is kept\n  to"),
        (OSError(24, "", "/a.png"), 3, "stopped: too many files are open at once\n  to continue: raise the limit"),
        (MemoryError(), 3, "stopped: memory ran out\n  to continue: add memory, or lower batch_size"),
        (BrokenPipeError(32, "Broken pipe"), 3, "stopped: the output was closed before the command ended"),
        (OSError(2, "No usable temporary directory found in ['/']"), 2, "TMPDIR: expected a folder for temporary"),
        (FileNotFoundError(2, "", "/x"), 2, "/x: expected a path that exists or can be created, found No"),
        (FileExistsError(17, "", "/data/list"), 2, "/data/list: expected a folder or a new path, found File exists"),
        (PermissionError(13, "", "/x"), 2, "/x: expected a path that this user may read and write, found Perm"),
        (OSError(30, "", "/data/masks"), 2, "/data/masks: expected a writable path, found Read-only"),
        (OSError(40, "", "/data/loop"), 2, f"/data/loop: {LOOP}"),
        (OSError(37, "", "/r/.lock"), 2, "/r/.lock: expected a path on a disk with file locks, found No locks"),
        (RuntimeError("Symlink loop from '/data/loop'"), 2, f"/data/loop: {LOOP}"),
        (RuntimeError("Could not determine home directory."), 2, "~: expected ~ or ~USER, .* user; write ./~NAME"),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_fault_81_84_system_errors_are_not_reported_as_bugs(monkeypatch, ended, error, code, message, wrapped):
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    wrapped = wrapped and not isinstance(error, BrokenPipeError)
    found, output = ended(RuntimeError("Failed to evaluate"), error) if wrapped else ended(error)
    assert found == code
    assert re.search(message, output)
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(13, "Permission denied"), "Permission denied"),  # of no place
        (ZeroDivisionError(), "this looks like a bug in samfed rather than an error in your input"),
    ],
)
def test_internal_error_keeps_traceback_and_is_reported_as_bug(ended, error, message):
    code, output = ended(error)
    assert code == 1
    assert "Traceback" in output
    assert message in output


def test_federate_arguments_become_config_ids(monkeypatch):
    seen: list[object] = []
    monkeypatch.setattr(workflow, "run_workflow", lambda *given: seen.extend(given))
    words = ["--variant", "no_sam", "--image_size", "128", "--a#b", "true", "--local-steps", "8", "--round", "9"]
    assert main([*FEDERATE, *words]) == 0
    assert seen[:2] == ["samfed_skin", "federate"]
    assert seen[2] == {
        "datalist": str(Path("l.json").resolve()),
        "data_root": str(Path("d").resolve()),
        "rounds": 3,
        "output_dir": str(Path("r").resolve()),
        "variant": "no_sam",
        "image_size": 128,
        "a#b": True,
        "local_steps": 8,
        "round": 9,  # no abbreviation is guessed: an unknown id when the bundle is checked
    }
    seen.clear()
    assert main(["federate", "my_bundle"]) == 0
    assert seen == ["my_bundle", "federate", {}]


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("infer samfed_skin . --output-dir m --overlay looks", "did you mean --overlays?"),
        ("federate samfed_skin --output runs/first", "did you mean --output-dir?"),
        ("federate samfed_skin --views 1", "this id belongs to teacher.json (here: --teacher#views) and inference"),
        ("flare export samfed_skin --datalist l --job j --verify", "known here: adapter, after, agreement, "),
    ],
)
def test_misspelt_command_option_is_suggested(words, hint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(words.split()) == 2
    unknown = f"command line -> {words.split('--')[-1].split()[0]}: expected an id of this workflow, found "
    assert f"{unknown}an unknown id; {hint}" in capsys.readouterr().err


def test_misspelt_variant_is_refused_with_suggestion(capsys):
    assert main(["variants", "no_sm"]) == 2
    error = capsys.readouterr().err
    assert "a bundle's folder, one of ['samfed_polyp', 'samfed_skin'], or a variant, found 'no_sm'" in error
    assert error.endswith("did you mean 'no_sam'?\n")
    assert main(["variants", "no_sam", "--path", "samfed"]) == 2
    assert "--path: expected a bundle, or nothing, found the variant no_sam; leave" in capsys.readouterr().err


def test_check_reports_bad_values_without_running_code(tmp_path, capsys):
    copy = tmp_path / "mine"
    shutil.copytree(BUNDLE, copy)
    path = copy / "configs" / "federate.json"
    content = json.loads(path.read_text()) | {"image_size": 33}
    path.write_text(json.dumps(content))
    assert main(["check", str(copy), "--workflow", "federate"]) == 2
    assert "image height: expected a multiple of 32, at least 32 pixels, found 33 pixels" in capsys.readouterr().err
    path.write_text(json.dumps({**content, "extra": {"_target_": "$print"}}))
    main(["check", str(copy), "--workflow", "federate"])
    assert "image height" not in capsys.readouterr().err
    path.write_text(json.dumps({**content, "initialize": [*content["initialize"], "$print('canary')"]}))
    assert main(["check", str(copy), "--workflow", "federate"]) == 0
    output = capsys.readouterr().out
    assert "not checked: whether a run accepts the values, as they could run code (--strict says where)" in output
    assert "canary" not in output
    assert "not checked: names" not in output
    path.write_text(json.dumps({**content, "image_size": 64, "imports": ["$import math"]}))
    assert main(["check", str(copy), "--workflow", "federate"]) == 0
    assert "not checked: names of networks, rules and guides, as modules in imports" in capsys.readouterr().out


def test_init_copies_bundle_and_never_overwrites(tmp_path, capsys):
    assert main(["init", "samfed_skin", str(tmp_path / "new" / "mine")]) == 0
    copy = tmp_path / "new" / "mine"
    assert str(copy) in capsys.readouterr().out
    names = {path.name for path in (BUNDLE / "configs").iterdir()}
    assert {path.name for path in (copy / "configs").iterdir()} == names
    assert (copy / "models").is_dir()
    assert list((tmp_path / "new").iterdir()) == [copy]
    assert main(["init", "samfed_skin", str(copy)]) == 2
    assert "expected a new name, found" in capsys.readouterr().err
    assert (main(["init", "samfed_skni", str(tmp_path / "x")]), (tmp_path / "x").exists()) == (2, False)
    assert "did you mean 'samfed_skin'?" in capsys.readouterr().err


def test_bundles_are_found_by_path_and_name(tmp_path):
    assert packaged_bundles()["samfed_skin"] == BUNDLE
    assert find_bundle("samfed_skin") == find_bundle(BUNDLE) == BUNDLE
    with pytest.raises(Refused, match="expected a bundle folder, found no such folder"):
        find_bundle(tmp_path / "none")
    with pytest.raises(Refused, match=r"expected a bundle's folder, or one of \['samfed_polyp', .*, found 'my_bundle'"):
        find_bundle("my_bundle")
    with pytest.raises(Refused, match=r"found a folder without configs/metadata\.json"):
        find_bundle(tmp_path)


def test_evaluate_prints_row_per_site():
    row = {"n": 20, "dice": 0.8, "iou": 0.7, "hd95": 12.345, "empty": {"both": 1, "prediction": 2, "label": 0}}
    of_classes = {"classes": {"liver": {"n": 9, "dice": 0.6, "iou": 0.5, "hd95": 3.0}}}
    volumes = {"volumes": {"dice": 0.9, "hd95_mm": 2.5, "n": 3, "measured": 1}}
    sites = {"site-1": row | of_classes, "site-2": {**row, "hd95": None}}
    assert tables_of({"split": "test", "sites": sites, "average": row | volumes}).splitlines() == [
        "test          n   Dice   IoU    HD95  empty",
        "site-1        20  0.800  0.700  12.3  3",
        "site-1 liver  9   0.600  0.500  3.0",
        "site-2        20  0.800  0.700  -     3",
        "average       20  0.800  0.700  12.3  3",
        "whole volumes  n  Dice   HD95 mm  of",
        "average        3  0.900  2.5      1",
    ]


def test_comparison_run_has_command_line(tmp_path):
    paths = {"rounds": "3", "cache-dir": None}
    run = comparison_runs.Run(tmp_path, "no_sam", 2, tmp_path / "r", paths, ("--limit", "8"))
    assert run.command()[1:] == [
        *("-m", "samfed_monai", "federate", str(tmp_path), "--rounds", "3", "--output-dir", str(tmp_path / "r")),
        *("--variant", "no_sam", "--seed", "2", "--limit", "8"),
    ]


def test_repeated_command_option_is_refused_unless_list(capsys):
    words = ["federate", "samfed_skin", "--output-dir", "a", "--verify", "--verify"]
    assert build_parser().parse_known_args(words)[0].output_dir == "a"
    with pytest.raises(SystemExit, match="2"):
        build_parser().parse_known_args([*words, "--output_dir=b"])
    assert "--output-dir: expected it once, found it again; leave one out" in capsys.readouterr().err
    words = ["prepare", "coco", "x", "--test-only", "--output", "l.json", "--category", "a", "--category=b,c"]
    assert build_parser().parse_known_args(words)[0].categories == ["a", "b", "c"]


def test_overrides_are_separated_from_positional_arguments_and_home_is_expanded(monkeypatch):
    pair = ["--threshold", "0.4"]
    words = ["infer", *pair, "samfed_skin", "--output-dir", "masks", "a.png", "--seed=1", "b.png", "--amp"]
    found, extra = build_parser().parse_known_args(words)
    assert (found.bundle, found.sources, extra) == ("samfed_skin", ["a.png", "b.png"], [*pair, "--seed=1", "--amp"])
    found, extra = build_parser().parse_known_args(["export", "--to", "onnx", *pair])
    assert (found.model, extra) == (None, pair), "not a model of that name"
    monkeypatch.setenv("HOME", "/home/ada")
    found, extra = build_parser().parse_known_args(["infer", "b", "~/a.png", "--output_dir=~", "--model_x=~/b"])
    assert (found.sources, found.output_dir, extra) == (["/home/ada/a.png"], "/home/ada", ["--model_x=/home/ada/b"])


FILES = {"federate": ["federate.json", "train.json"], "teach": ["teacher.json"]}
FILES |= {"evaluate": ["evaluate.json"], "infer": ["inference.json"], "export": ["inference.json"]}
OF_IMAGES = {"dataset_dir", "output_dir", "probabilities", "batch_size", "amp", "views"}
NOT_LISTED = {"federate": {"epochs", "site"}, "teach": {"score"}, "infer": {"bundle_root", "dataset_dir"}}
NOT_LISTED |= {"evaluate": {"encoder_weights"}, "export": {"bundle_root", "model", *OF_IMAGES}}


@pytest.mark.parametrize("command", FILES)
def test_help_lists_every_option_that_is_read_within_80_columns(command, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == 0
    shown = capsys.readouterr().out
    tables = [table for file in FILES[command] for name, table in option_tables()[file].items() if name != "paths"]
    options = {option for table in tables for option in table}
    # spelled as an option of the command, or as the id
    listed = {each for each in options if re.search(rf"  --{each.replace('_', '[-_]')}\s", shown)}
    assert options - listed == NOT_LISTED[command]
    assert max(map(len, shown.splitlines())) <= 80
    assert "](" not in shown  # no Markdown links


def test_option_help_has_description_and_shared_default(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    lines = {line.split()[0]: line for line in options_help("train.json").splitlines() if line.startswith("  --")}
    assert lines["--batch_size"] == "  --batch_size          labelled images in a step, and as many unlabelled ones [4]"
    assert "--seed" in lines
    assert "\n  --seed " not in options_help("train.json", without=["--seed"])


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        ("teach B --datalist L --data-root D --output A", "completed epochs are kept"),
        ("federate B", KEPT),
        (
            "compare B --datalist L --data-root D --rounds 1 --output-dir R",
            "finished runs and rounds of unfinished runs",
        ),
        ("flare simulate B --datalist L --data-root D --output-dir R", "stored rounds are kept"),
        ("report R", "completed work is kept"),
    ],
)
def test_fault_82_sigterm_runs_cleanup_and_reports_what_is_kept(monkeypatch, capsys, words, kept):
    closed, before, parse = [], signal.getsignal(signal.SIGTERM), cli._parse

    def ended(arguments):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        finally:
            closed.append(True)

    def parsed(parser, argv, into):
        parse(parser, argv, into)
        into.run = ended

    monkeypatch.setattr(cli, "_parse", parsed)
    assert cli.main(words.split()) == 3
    assert closed == [True], "locks and children are let go"
    assert signal.getsignal(signal.SIGTERM) == before
    error = capsys.readouterr().err
    assert error.startswith(f"stopped: received SIGTERM; {kept}")
    assert error.endswith("to continue: run the same command again\n")


def test_run_log_has_one_line_for_termination(tmp_path):
    def work():
        with RunLog().kept() as log, Termination():
            log.into(tmp_path)
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Terminated):
        work()
    assert (tmp_path / NAME).read_text().splitlines()[0].endswith(f"ERROR   {RECEIVED_SIGTERM}")
    assert len((tmp_path / NAME).read_text().splitlines()) == 1
