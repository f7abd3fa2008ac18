"""From a source to a frozen data list with its report beside it: find, look, divide, check, save."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from samfed_monai.data.allotment import Places, divide, draw_measuring, draw_public
from samfed_monai.data.assembly import Options, Prepared, check_first, finish, grouped, look_at
from samfed_monai.data.items import Split
from samfed_monai.data.partitions import Partition
from samfed_monai.data.sources.archives import unpack
from samfed_monai.data.sources.folders import find_folders, without_mask
from samfed_monai.data.sources.found import Found
from samfed_monai.data.sources.isic import find_isic
from samfed_monai.data.sources.published import find_published

__all__ = ["Options", "Prepared", "prepare_folders", "prepare_isic", "prepare_list"]


def prepare_folders(
    root: str | Path, *, public: str | None, options: Options, validation: float = 0.1, test: float = 0.1
) -> Prepared:
    """Makes a list from ``root/<site>/{images,masks}``.

    Args:
        root: the folder of sites; it is the data root of the list.
        public: name of the site whose images are public; all of them need masks. ``None``: no image is public.
        options: see :class:`Options`.
        validation: share of each site's images to validate on, drawn from the labelled ones. A site without masks has
            only unlabelled images.
        test: likewise, to test on.

    Raises:
        Refused: with everything that is wrong with the folders, the files and the list.
    """
    check_first(options, validation=validation, test=test)
    root = Path(root)
    folders = find_folders(root, public=public, output=options.output)
    found = {site: grouped(ones, options) for site, ones in folders.sites.items()}
    everything = [one for ones in found.values() for one in ones]
    facts = look_at(everything, root, options, sites=found, known=folders.problems)
    places: Places = {("", Split.PUBLIC): found.pop(public) if public is not None else []}
    places |= draw_measuring(found, facts, validation, test, beside=places["", Split.PUBLIC], seed=options.seed)
    return finish(places, facts, root, options, caveats=folders.passed_over)


def prepare_isic(
    root: str | Path,
    *,
    options: Options,
    public: str | None = "100",
    sites: int = 4,
    partition: str = Partition.IID,
    alpha: float = 0.5,
    validation: float = 0.1,
    test: float = 0.1,
    unpack_archives: bool = False,
) -> Prepared:
    """Makes a list from the official archives of an ISIC challenge (2016, 2017 or 2018).

    Args:
        root: folder that the archives were unpacked into; it is the data root of the list.
        options: see :class:`Options`.
        public: the public images: a count (``"100"``), a share (``"0.05"``), or the name of an archive's folder;
            ``None``: no image is public.
        sites: number of sites; with ``partition="folder"`` the remaining folders are the sites.
        partition: ``iid``, ``folder``, ``dirichlet-size`` (of the lesion) or ``dirichlet-appearance`` (mean colour).
        alpha: Dirichlet's concentration: small makes sites unlike each other.
        validation: as in :func:`prepare_folders`.
        test: as in :func:`prepare_folders`.
        unpack_archives: unpack ``root/*.zip`` first, each into ``root``.

    Raises:
        Refused: with everything that is wrong with the archives, the files and the list.
    """
    check_first(options, validation=validation, test=test)
    root = Path(root)
    for archive in sorted(root.glob("*.zip")) if unpack_archives else []:
        unpack(archive, root)
    found = grouped(find_isic(root), options)
    lacking = without_mask([one for one in found if one.origin and one.origin == public])
    facts = look_at(found, root, options, sites={"": found}, known=lacking)
    public_ones, rest = draw_public(found, facts, public, options.seed)
    by_site = divide(rest, facts, Partition(partition), sites, alpha, options.seed)
    places = {("", Split.PUBLIC): public_ones}
    places |= draw_measuring(by_site, facts, validation, test, beside=public_ones, seed=options.seed)
    return finish(places, facts, root, options)


def prepare_list(
    split: str | Path,
    data_root: str | Path,
    *,
    options: Options,
    folders: Mapping[str, str] | None = None,
    by_sequence: bool = False,
) -> Prepared:
    """Makes a list from a published one; images that are not at hand are reported, not invented.

    Args:
        split: the published JSON file, or a known name (:data:`~.sources.published.KNOWN`).
        data_root: where the images are; see :func:`~.sources.published.find_published`.
        options: see :class:`Options`.
        folders: client to folder, where names do not tell.
        by_sequence: record which video an image comes from, where that is known of a polyp collection. The list's
            splits stay as they were published; what is drawn from it later (parts of a site, public images to hold
            out) keeps videos whole.

    Raises:
        Refused: with everything that is wrong with the published list, the files and the result.
    """
    root = Path(data_root)
    published = find_published(split, root, folders=dict(folders or {}))
    name = options.name or published.name
    check_first(options, name=name)
    places = {place: grouped(found, options, known=by_sequence) for place, found in published.places.items()}
    sites: dict[str, list[Found]] = {}
    for (site, _), found in places.items():
        sites.setdefault(site, []).extend(found)
    facts = look_at([one for found in places.values() for one in found], root, options, sites=sites)
    return finish(places, facts, root, options, name=name, coverage=published.coverage)
