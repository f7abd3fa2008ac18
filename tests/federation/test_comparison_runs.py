"""Many runs, each in a process of its own: finished ones are not repeated, failed ones are reported."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace

import pytest

from samfed_monai.core.errors import Stopped, Terminated, reported
from samfed_monai.core.io import read_json
from samfed_monai.federation.comparison_runs import Run, RunsRefused, configs_of, failure, log_reason, run_all
from tests.waiting import wait_until

CONFIGS = {
    "federate": {"rounds": 3, "image_size": 64},
    "train": {"teacher_adapt": "lora", "batch_size": 4},
    "teacher": {"base": "vit_t"},
    "evaluate": {"split": "test"},
    "metadata": {"version": "0.1.0"},
    "variants/mine": {"_note": "ours", "batch_size": 8},
    "variants/bare": {"teacher_adapt": "off"},
    "variants/other": {"batch_size": 2},
}


@pytest.fixture
def bundle(tmp_path):
    for name, content in CONFIGS.items():
        path = tmp_path / "bundle" / "configs" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content), encoding="utf-8")
    (tmp_path / "list.json").write_text("[]", encoding="utf-8")
    return tmp_path / "bundle"


def done(bundle, variant="mine", extra=(), **about):
    """A run that has its results."""
    folder = bundle.parent / variant
    run = Run(bundle, variant, 0, folder, {"datalist": str(bundle.parent / "list.json"), "rounds": "3"}, extra, about)
    folder.mkdir(exist_ok=True)
    (folder / "results.json").write_text("{}", encoding="utf-8")
    run.mark_done()
    return run


def change(bundle, name, **keys):
    path = bundle / "configs" / f"{name}.json"
    path.write_text(json.dumps({**CONFIGS[name], **keys}, indent=4), encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "key", "read"),
    [
        *((name, "more", True) for name in ("federate", "train", "teacher", "variants/mine")),
        *((name, "more", False) for name in ("evaluate", "metadata", "variants/other")),
        *(("variants/mine", "_note", False), ("evaluate", "batch_size", True)),  # sites score with it
    ],
)
def test_only_changes_of_files_in_use_invalidate_run(bundle, name, key, read):
    run = done(bundle)
    assert run.is_done()
    change(bundle, name, **{key: "reworded"})
    assert run.is_done() is not read


def test_run_without_teacher_ignores_teacher_file(bundle):
    bare, by_override = done(bundle, "bare"), done(bundle, "mine", ("--teacher_adapt", "off"))
    change(bundle, "teacher", more=1)
    assert bare.is_done()
    assert by_override.is_done()
    names = [path.name for path in configs_of(bundle, "bare", {"teacher_adapt": "none"})]
    assert names == ["train.json", "bare.json", "federate.json", "teacher.json"]


def test_data_list_variant_seed_and_options_invalidate_run(bundle):
    run = done(bundle)
    assert run.is_done()
    for change in ({"variant": "bare"}, {"seed": 1}, {"options": {**run.options, "rounds": "4"}}):
        assert not replace(run, **change).is_done()
    seal = (run.folder / "compare.json").read_bytes()
    (run.folder / "compare.json").write_text('{"command": "federate", "bundle": "0"}', encoding="utf-8")
    assert not run.is_done(), "a seal of an older version is none"
    (run.folder / "compare.json").write_bytes(seal)
    (bundle.parent / "list.json").write_text("[1]", encoding="utf-8")
    assert not run.is_done()


def test_row_overrides_invalidate_run_and_titles_do_not(bundle):
    run = done(bundle, "mine", ("--agreement#tau=0.8",), row="tau_8", title="Threshold 0.8")
    assert run.name == "tau_8, seed 0"
    content = read_json(run.folder / "compare.json")
    assert (content["row"], content["title"]) == ("tau_8", "Threshold 0.8")
    assert replace(run, about={"row": "tau_8", "title": "tau"}).is_done()
    assert not replace(run, extra=("--agreement#tau=0.9",)).is_done()


def test_moved_paths_do_not_invalidate_run(bundle, tmp_path):
    paths = {"data-root": "a", "cache-dir": "b"}
    run = done(bundle, "mine", ("--adapter", str(tmp_path / "list.json"), "--rate=0.1"))
    moved = shutil.copytree(tmp_path, tmp_path.parent / f"{tmp_path.name}-moved")
    options = {**run.options, "datalist": str(moved / "list.json"), **paths}
    extra = ("--rate", "1e-1", f"--adapter={moved / 'list.json'}")
    assert Run(moved / "bundle", "mine", 0, moved / "mine", options, extra).is_done()


@pytest.mark.parametrize("option", ["start_from", "masks_from"])
def test_changed_weights_in_folder_invalidate_run(bundle, option):
    (weights := bundle / "models" / "model.safetensors").parent.mkdir()
    weights.write_bytes(b"one")
    run = done(bundle, "mine", (f"--{option}={bundle}",))
    assert run.is_done()
    weights.write_bytes(b"another")
    assert not run.is_done()


@pytest.mark.parametrize(("before", "after"), [("(1, 2)", "(1, 3)"), ("{1}", "{2}"), ("null", "off"), ("1", "1.5")])
def test_changed_value_of_any_type_invalidates_run(bundle, before, after):
    assert not replace(done(bundle, "mine", (f"--sizes={before}",)), extra=(f"--sizes={after}",)).is_done()


def test_file_changed_during_run_invalidates_run(bundle, monkeypatch):
    program = (
        "import pathlib, sys; folder, config = map(pathlib.Path, sys.argv[1:])\n"
        "config.write_text('{\"batch_size\": 1}'); (folder / 'results.json').write_text('{}')"
    )
    command = [sys.executable, "-c", program, str(bundle.parent / "r"), str(bundle / "configs" / "train.json")]
    monkeypatch.setattr(Run, "command", lambda run: command)
    run = Run(bundle, "mine", 0, bundle.parent / "r", {}, ())
    run_all([run])
    assert not run.is_done()
    run_all([run])
    assert run.is_done()


@pytest.mark.parametrize(
    ("omp", "mkl", "expected"), [(None, None, "2 2"), ("1", "3", "1 3"), ("1", None, "1 1"), (None, "1", "1 1")]
)
def test_user_thread_settings_override_defaults(bundle, monkeypatch, omp, mkl, expected):
    for name, given in (("OMP_NUM_THREADS", omp), ("MKL_NUM_THREADS", mkl)):
        monkeypatch.delenv(name, raising=False) if given is None else monkeypatch.setenv(name, given)
    run = Run(bundle, "mine", 0, bundle.parent / "out", {}, (), {})
    script = "import os; print(os.environ['OMP_NUM_THREADS'], os.environ['MKL_NUM_THREADS'])"
    monkeypatch.setattr(Run, "command", lambda self: [sys.executable, "-c", script])
    run_all([run], threads=2)
    assert (run.folder / "log.txt").read_text().strip() == expected
    assert (run.folder / "log.txt").stat().st_mode & 0o777 == 0o600, "its owner's: it may name images"


def test_finished_runs_are_kept_and_failed_runs_repeated(bundle, monkeypatch):
    program = (
        "import pathlib, sys; folder = pathlib.Path(sys.argv[1])\n"
        "with open(folder / 'calls', 'a') as f: f.write('x')\n"
        "if folder.name == 'r9' and not (folder.parent / 'room').exists(): sys.exit('the disk is full')\n"
        "(folder / 'results.json').write_text('{}')"
    )
    monkeypatch.setattr(Run, "command", lambda run: [sys.executable, "-c", program, str(run.folder)])
    runs = [Run(bundle, "mine", seed, bundle.parent / f"r{seed}", {}, ()) for seed in (0, 1, 9)]
    with pytest.raises(Stopped, match=r"1 of 3 runs failed\n    mine, seed 9 \(.*\):\n      the disk is full"):
        run_all(runs, jobs=2)
    (bundle.parent / "room").touch()
    run_all(runs, jobs=2)
    assert [(run.folder / "calls").read_text() for run in runs] == ["x", "x", "xx"]


def test_sigterm_terminates_started_runs(bundle, monkeypatch):
    started = []

    def start(run, threads):
        started.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]))
        return started[-1]

    def ask():
        wait_until(lambda: bool(started), "a started run", seconds=60)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("samfed_monai.federation.comparison_runs._start", start)
    threading.Thread(target=ask, daemon=True).start()
    run = Run(bundle, "mine", 0, bundle.parent / "mine", {"rounds": "3"}, ())
    with pytest.raises(Terminated, match="received SIGTERM"):
        run_all([run])
    assert [process.poll() for process in started] == [-signal.SIGTERM]


REFUSED = "site-1: 4 images\nrefused: 2 problems\n  - a: b\n  - c: d\n"


def run_of(tmp_path, name, text, code=1):
    folder = tmp_path / name
    folder.mkdir()
    (folder / "log.txt").write_text(text, encoding="utf-8")
    return Run(folder, name, 0, folder, {}, ()), code


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("Traceback\nZeroDivisionError: division by zero\n", 1, "ZeroDivisionError: division by zero"),
        (REFUSED, 2, "refused: 2 problems\n        - a: b\n        - c: d"),
        ("refused: 1 problem\n  - of last time\n" + REFUSED, 2, "refused: 2 problems\n        - a: b\n        - c: d"),
        ("samfed: error: unrecognized arguments: x", 2, "samfed: error: unrecognized arguments: x"),
        (REFUSED + "stopped: full\n  to continue: make room", 3, "stopped: full\n        to continue: make room"),
        (REFUSED + "round 1 of 3", 2, "refused: 2 problems\n        - a: b\n        - c: d"),
        ("", 1, "no output"),
        ("round 1 of 3", -9, "the run was ended by signal 9 (9: killed, for instance because memory ran out)"),
    ],
    ids=["fault", "refused", "refused-twice", "usage", "stopped", "of-another-process", "silent", "killed"],
)
def test_last_words_quote_reason_from_log(tmp_path, text, code, words):
    run, code = run_of(tmp_path, "r", text, code)
    assert log_reason(run.folder, code) == words
    assert log_reason(tmp_path, max(code, 1)) == "no output", "nor a log"


def test_failure_distinguishes_refused_from_failed_runs(tmp_path):
    refused, fault = run_of(tmp_path, "a", REFUSED, code=2), run_of(tmp_path, "b", "it broke")
    all_refused = failure([refused], 3)
    assert (type(all_refused), reported(all_refused)) == (RunsRefused, 2)
    assert str(all_refused).splitlines() == [
        "refused: 1 of 3 runs",
        f"    a, seed 0 ({tmp_path / 'a' / 'log.txt'}):",
        "      refused: 2 problems",
        "        - a: b",
        "        - c: d",
        "  to continue: fix the problems, then run the same command again",
    ]
    mixed = failure([refused, fault], 3)
    assert isinstance(mixed, Stopped)
    assert mixed.reason.startswith("2 of 3 runs failed\n    a, seed 0 (")
    assert mixed.reason.endswith("log.txt):\n      it broke")
    assert mixed.resume == "fix the refused runs (1 of them), then run the same command again"
    assert failure([fault], 3).resume == "run the same command again"
