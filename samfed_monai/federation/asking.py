"""Questions that every site answers with numbers alone, before the first round."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from samfed_monai.core.errors import Problem, Problems
from samfed_monai.federation.envelope import Envelope, Kind
from samfed_monai.federation.failure import Failure
from samfed_monai.federation.inbox import Inbox
from samfed_monai.federation.transport import Task, Transport

logger = logging.getLogger(__name__)


def quorum_of(sites: int, quorum: int | None, *, allow_single_site: bool) -> int:
    """Answers that a round needs: what was asked for, else more than half; never one alone unless that is allowed."""
    least = 1 if allow_single_site else 2
    return max(least, sites // 2 + 1 if quorum is None else quorum)


def quorum_problems(sites: int, quorum: int | None, *, allow_single_site: bool) -> list[Problem]:
    """Why so many sites cannot have rounds with this quorum: one alone without ``allow_single_site``, or too few."""
    if sites < quorum_of(1, 1, allow_single_site=allow_single_site):
        mend = "`--allow_single_site true` (in Python allow_single_site=True) says that this is meant"
        return [Problem("sites", found=str(sites), expected="at least 2, so that no update stands alone", mend=mend)]
    if quorum is not None and not 1 <= quorum <= sites:
        expected = f"a number from 1 to {sites}, the number of sites"
        return [Problem("quorum", found=str(quorum), expected=expected)]
    return []


def ask_all(transport: Transport, task: Task, messages: Mapping[str, Envelope], *, least: int | None) -> None:
    """Sends each site its message and goes on when all agree.

    Args:
        transport: carries messages.
        task: what is asked.
        messages: site to message.
        least: answers that are enough where a run goes on after a stop, in which a site may be away for a while;
            ``None`` needs all.

    Raises:
        Refused: a site cannot take part, or too few answered; every site's reasons at once.
    """
    if not messages:
        return
    rounds = {message.round for message in messages.values()}
    inbox = Inbox(round=min(rounds), sites=messages, like=None, kind=Kind.METRICS)
    replies = transport.exchange(task, messages, quorum=least or len(messages), on_reply=inbox.check)
    failures = {site: reply.reason for site, reply in sorted(replies.items()) if isinstance(reply, Failure)}
    if least is not None and len(messages) - len(failures) >= least:
        for site, reason in failures.items():
            logger.warning("%s does not take part for now: %s", site, reason)
        return
    problems = Problems()
    for site, reason in failures.items():
        problems.add(site, found=reason, expected="a site that can take part")
    problems.refuse_if_any()
