"""Before anything is sent: whether the plan's sites are those that can be reached, and it leaves them their places."""

from __future__ import annotations

from samfed_monai.core.errors import Problems
from samfed_monai.federation.plan import Places
from samfed_monai.federation.stages.cast import Cast
from samfed_monai.federation.transport import Transport


def require_no_places_of_sites(places: Places) -> None:
    """Refuses a place that was set for a site which is not in this process.

    Raises:
        Refused: with every such place.
    """
    problems = Problems()
    for site, there in sorted(places.sites.items()):
        for name in there:
            expected, mend = "nothing: where a site keeps things is its own affair", "set it at the site"
            problems.add(f"federate.json -> sites#{site}#{name}", found="a place", expected=expected, mend=mend)
    problems.refuse_if_any()


def require_sites(transport: Transport, cast: Cast) -> None:
    """Refuses a transport that reaches others than the sites of the run, or not all of them.

    Raises:
        Refused: with every site that is missing, and everybody who is not named.
    """
    problems, known = Problems(), {*cast.sites, *cast.unseen}
    for site in sorted(known - set(transport.sites)):
        problems.add(f"site {site}", found="nobody of that name", expected="a client that the transport can reach")
    for site in sorted(set(transport.sites) - known):
        expected, mend = "a site of the plan", "name it in federate.json -> sites, or leave it out of the job"
        problems.add(f"site {site}", found="a client that the plan does not name", expected=expected, mend=mend)
    problems.refuse_if_any()
