"""What a run may be called: a name that is one folder, wherever it becomes one."""

from __future__ import annotations

import re

from samfed_monai.core.errors import Problem, Refused

RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


def require_run_name(name: str, where: str) -> None:
    """Refuses a name that would be a path.

    Args:
        name: of the run.
        where: what messages call it.

    Raises:
        Refused: it is not a name of up to 100 letters, digits, dots, dashes and underscores.
    """
    if not RUN_NAME.fullmatch(name):
        expected = "up to 100 letters, digits, dots, dashes and underscores, a letter or digit first"
        mend = "submit the job with another --run-name"
        raise Refused([Problem(where, found=repr(name[:120]), expected=expected, mend=mend)])
