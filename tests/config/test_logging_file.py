"""Fault 31: a logging configuration that came with a bundle, or from a server, only writes to the console."""

from __future__ import annotations

import pytest

from samfed_monai.config import check_bundle

CONSOLE = """[loggers]
keys=root
[handlers]
keys=console
[formatters]
keys=plain
[logger_root]
level=INFO
handlers=console
[handler_console]
class=StreamHandler
args=(sys.stderr,)
[formatter_plain]
format=%(message)s
"""


def test_the_console_is_fine(bundle):
    (bundle / "configs" / "logging.conf").write_text(CONSOLE)
    assert check_bundle(bundle, "train") == []


@pytest.mark.parametrize(
    ("before", "after", "where"),
    [
        ("class=StreamHandler", "class=__import__('os').system", "class"),
        ("class=StreamHandler", "class=handlers.SocketHandler", "class"),
        ("class=StreamHandler", "class=FileHandler", "class"),
        ("args=(sys.stderr,)", "args=(open('canary', 'w'),)", "args"),
        ("args=(sys.stderr,)", "args=()\nkwargs={'stream': print(1)}", "kwargs"),
        ("args=(sys.stderr,)", "target=other", "target"),
    ],
)
def test_fault_31_logging_configuration_that_does_more_is_refused(bundle, before, after, where):
    (bundle / "configs" / "logging.conf").write_text(CONSOLE.replace(before, after))
    [problem] = check_bundle(bundle, "train")
    assert problem.where == f"logging.conf -> handler_console#{where}"
    assert "a bundle logs to the console and nowhere else" in problem.expected


@pytest.mark.parametrize(
    ("before", "after", "where"),
    [
        ("format=", "defaults={'x': __import__('os').system('id')}\nformat=", "formatter_plain#defaults"),
        ("format=", "Defaults = {}\nformat=", "formatter_plain#defaults"),
        ("format=", "class=my_lab.Formatter\nformat=", "formatter_plain#class"),
        ("level=INFO", "level=INFO\nfilters=x", "logger_root#filters"),
        ("keys=plain", "keys=plain\nclass=x", "formatters#class"),
        ("[loggers]", "[other]\nx=1\n[loggers]", "other#x"),
    ],
)
def test_fault_31_an_option_that_is_not_listed_is_refused(bundle, before, after, where):
    """``defaults`` of a formatter is evaluated from Python 3.12 on."""
    (bundle / "configs" / "logging.conf").write_text(CONSOLE.replace(before, after, 1))
    [problem] = check_bundle(bundle, "train")
    assert problem.where == f"logging.conf -> {where}"


def test_fault_31_what_holds_for_all_sections_is_looked_at_in_each(bundle):
    (bundle / "configs" / "logging.conf").write_text(f"[DEFAULT]\ndefaults={{'x': print(1)}}\n{CONSOLE}")
    assert [problem.where for problem in check_bundle(bundle, "train")] == [
        f"logging.conf -> {section}#defaults"
        for section in ("loggers", "handlers", "formatters", "logger_root", "handler_console", "formatter_plain")
    ]


def test_the_options_of_a_usual_configuration_pass(bundle):
    text = CONSOLE.replace("handlers=console", "handlers=console\nqualname=a\npropagate=0").replace(
        "class=Stream", "level=INFO\nformatter=plain\nclass=Stream"
    )
    text = text.replace("[formatter_plain]", "[formatter_plain]\ndatefmt=%H\nstyle=%\nvalidate=1")
    (bundle / "configs" / "logging.conf").write_text(text)
    assert check_bundle(bundle, "train") == []


def test_fault_31_logging_configuration_that_cannot_be_parsed_is_refused(bundle):
    (bundle / "configs" / "logging.conf").write_text("class=StreamHandler")
    [problem] = check_bundle(bundle, "train")
    assert problem.where == "logging.conf"
