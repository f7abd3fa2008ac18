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
    ],
)
def test_fault_31_logging_configuration_that_does_more_is_refused(bundle, before, after, where):
    (bundle / "configs" / "logging.conf").write_text(CONSOLE.replace(before, after))
    [problem] = check_bundle(bundle, "train")
    assert problem.where == f"logging.conf -> handler_console#{where}"
    assert "a bundle logs to the console and nowhere else" in problem.expected


def test_fault_31_logging_configuration_that_cannot_be_parsed_is_refused(bundle):
    (bundle / "configs" / "logging.conf").write_text("class=StreamHandler")
    [problem] = check_bundle(bundle, "train")
    assert problem.where == "logging.conf"
