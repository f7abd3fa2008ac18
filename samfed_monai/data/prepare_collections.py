"""From public polyp collections to a frozen data list: one hospital, one site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from samfed_monai.data.allotment import Places, draw_measuring
from samfed_monai.data.assembly import Options, Prepared, check_first, finish, grouped, look_at
from samfed_monai.data.items import Split
from samfed_monai.data.sources.archives import unpack
from samfed_monai.data.sources.folders import without_mask
from samfed_monai.data.sources.found import Found
from samfed_monai.data.sources.polyp import Polyps, collection_of, find_polyps
from samfed_monai.errors import Problem, Refused


def prepare_polyp(
    root: str | Path,
    *,
    options: Options,
    public: str | None = "CVC-ColonDB",
    leave_out: Sequence[str] = (),
    validation: float = 0.1,
    test: float = 0.1,
    by_sequence: bool = True,
    unpack_archives: bool = False,
) -> Prepared:
    """Makes a list from the polyp collections in a folder, each in a folder of its own, as it was released.

    Every collection is a site (PolypGen: each of its centres, and its sequences). Masks that are not binary are cut at
    the level that their collection needs, unless the options say otherwise.

    Args:
        root: folder of collections; it is the data root of the list. See :func:`~.sources.polyp.find_polyps`.
        options: see :class:`Options`. A ``groups`` file replaces what is known of the images it names.
        public: the collection whose images are public; ``None``: none, every collection is a site.
        leave_out: collections to pass over.
        validation: share of each site's images to validate on.
        test: likewise, to test on.
        by_sequence: whether frames of one video stay in one split, where the videos are known; otherwise images are
            drawn one by one, as the published lists do, and the report warns.
        unpack_archives: unpack ``root/*.zip`` first, each into a folder of its name.

    Raises:
        Refused: with everything that is wrong with the collections, the files and the list.
    """
    check_first(options, validation=validation, test=test)
    root = Path(root)
    for archive in sorted(root.glob("*.zip")) if unpack_archives else []:
        unpack(archive, root / archive.stem)
    polyps = find_polyps(root)
    sites = {site: grouped(ones, options, known=True) for site, ones in polyps.sites.items()}
    for name in leave_out:
        for site in _named(name, sites, "--leave-out"):
            del sites[site]
    public_site = _one(public, sites) if public is not None else None
    unseen = [site for name in options.unseen for site in _named(name, sites, "--unseen")]
    threshold = polyps.threshold if options.mask_threshold is None else options.mask_threshold
    options = replace(options, unseen=unseen, mask_threshold=threshold)
    lacking = without_mask(sites[public_site]) if public_site else []
    facts = look_at([one for ones in sites.values() for one in ones], root, options, sites=sites, known=lacking)
    drawn = {site: ones if by_sequence else [one.with_group(None) for one in ones] for site, ones in sites.items()}
    places: Places = {("", Split.PUBLIC): drawn.pop(public_site) if public_site else []}
    places |= draw_measuring(drawn, facts, validation, test, beside=places["", Split.PUBLIC], seed=options.seed)
    known = {one.image: one for ones in sites.values() for one in ones}
    places = {place: [known[one.image] for one in ones] for place, ones in places.items()}
    return finish(places, facts, root, options, caveats=_caveats(polyps, places, unseen, validation, test))


def _named(name: str, sites: Mapping[str, list[Found]], where: str) -> list[str]:
    """The sites that a name means: one of them, or those of the collection that it names."""
    collection = collection_of(name)
    if name in sites:
        return [name]
    found = [site for site in sites if collection is not None and collection_of(site) == collection]
    if not found:
        mend = "give the name of a collection in the folder"
        raise Refused([Problem(where, found=repr(name), expected=f"one of {list(sites)}", mend=mend)])
    return found


def _one(public: str, sites: Mapping[str, list[Found]]) -> str:
    found = _named(public, sites, "--public")
    if len(found) > 1:
        raise Refused([Problem("--public", found=repr(public), expected=f"one of {found}", mend="name one centre")])
    if len(sites) < 2:
        mend = "put at least one collection beside it"
        raise Refused([Problem("--public", found=f"only {found[0]}", expected="a site beside it", mend=mend)])
    return found[0]


def _caveats(polyps: Polyps, places: Places, unseen: Sequence[str], validation: float, test: float) -> list[str]:
    sentences = [f"the folder {name} is no known collection and was not read" for name in polyps.unknown]
    for (site, split), ones in places.items():
        asked = {Split.VALIDATION: validation, Split.TEST: test}.get(split, 0)
        if asked and not ones and site not in unseen:
            sentences.append(
                f"{site} has no {split.value} images: what it has without a mask, or shares with the public set or "
                "another site by bytes or by sequence, may not measure"
            )
    return sentences
