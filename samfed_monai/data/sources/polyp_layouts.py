"""The official layouts of public polyp collections, and what of each was verified where.

"Seen" means read in public code or pages that open these files, not in the archives themselves, which are not open to
everybody. Every collection is also understood as ``images/`` and ``masks/`` of the same stem, the form in which
benchmarks pass them on.

- **CVC-ClinicDB** (612, 384 x 288): ``Original/1.tif`` with ``Ground Truth/1.tif``; a PNG release has the same two
  folders below ``PNG/`` beside ``TIF/``. Seen: https://polyp.grand-challenge.org/CVCClinicDB/ as described by
  openmedlab's catalogue, huggingface.co/datasets/berkaytrhn/cvc-clinicdb, loaders that open both.
- **CVC-ColonDB** (300, later 380; 574 x 500): ``1.bmp``, its mask ``p1.bmp``, non-informative regions ``s1.bmp`` and
  contours ``c1.bmp`` (https://mv.cvc.uab.es/projects/colon-qa/cvccolondb). That they lie in one folder is not verified;
  any depth is searched. The 380 are passed on as ``images/*.png`` and ``masks/*.png``.
- **CVC-300** (300, EndoSceneStill): ``bbdd/1.bmp`` with ``gtpolyp/1.bmp``, beside ``gtlumen``, ``gtspecular`` and
  ``border``. Seen: loaders of CVC-EndoSceneStill. Benchmarks' ``CVC-300`` is 60 of these.
- **ETIS-LaribPolypDB** (196, 1225 x 966): ``ETIS-LaribPolypDB/1.tif`` with ``Ground Truth/p1.tif``, both inside a
  folder of the collection's name. Seen: several loaders, https://polyp.grand-challenge.org/EtisLarib/. It is known to
  have 34 sequences, but not which frames are whose: no groups.
- **EndoTect** (test set of the segmentation task, 200; https://endotect.com):
  ``EndoTect_2020_Segmentation_Test_Dataset/images`` with ``masks``. Seen: name and ``masks`` folder in loaders; the
  kind of its masks was not verified, so grey ones are cut like Kvasir-SEG's.
- **Kvasir-SEG** (1,000): ``Kvasir-SEG/images/*.jpg`` with ``masks/*.jpg`` of the same name; ``kavsir_bboxes.json`` (the
  spelling is theirs) is not needed. Masks are JPEG, with dozens of grey levels at the border: cut at 128.
  Seen: https://datasets.simula.no/kvasir-seg/ as described by loaders. No groups are published.
- **PolypGen** (Ali et al., Sci. Data 10, 2023): ``data_C1/images_C1/x.jpg`` with ``masks_C1/x_mask.jpg``, to C6; one
  image of C3 ends in a stray ``_`` or ``]`` which its mask lacks. ``sequenceData/positive/seq1/images_seq1`` with
  ``masks_seq1``, to seq23. Seen: audits and loaders of the v3 release. Which centre a sequence comes from was not
  verified: they are a site of their own, in groups. ``negativeOnly`` has no masks and is not read.
- **BKAI-IGH NeoPolyp** (train part 1,000): ``train/train/x.jpeg`` with ``train_gt/train_gt/x.jpeg``; masks are colour
  JPEG, red neoplastic, green not: every colour is polyp, cut at 128 on the brightest channel. ``test`` has no masks.
  Seen: many loaders of the challenge's archive. No groups are published.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from samfed_monai.data.sources.polyp_sequences import clinicdb_sequence, colondb_sequence, cvc300_sequence


def plain(name: str) -> str:
    """A folder's name in lower case, without spaces, dashes, dots and underscores."""
    return re.sub(r"[\W_]", "", name).lower()


@dataclass(frozen=True)
class Pairing:
    """One way in which images and masks lie beside each other.

    Args:
        images: folder of the images, a regular expression on its plain name; named groups are for ``site`` and
            ``group`` below.
        masks: likewise of the masks, beside it; ``None`` where images and masks share a folder.
        image: regular expression on an image's stem; its first group is the key that image and mask share.
        mask: likewise on a mask's stem.
        site: what is added to the collection's name, a template over ``images``' named groups.
        group: group of every image in the folder, likewise.
    """

    images: str
    masks: str | None
    image: str = r"(.+)"
    mask: str = r"(.+?)(?:_mask|_segmentation)?"
    site: str = ""
    group: str = ""


@dataclass(frozen=True)
class Collection:
    """A published collection of polyp images.

    Args:
        name: of the site that it becomes.
        folders: regular expressions on the plain name of its folder or archive.
        pairings: its official layouts, best first.
        threshold: grey level that its masks have to be cut at; ``None`` where they are binary.
        sequence: group of an image by its key, where that is published.
    """

    name: str
    folders: tuple[str, ...]
    pairings: tuple[Pairing, ...] = ()
    threshold: int | None = None
    sequence: Callable[[str], str | None] = field(default=lambda key: None)

    @property
    def layouts(self) -> tuple[Pairing, ...]:
        """The official layouts, then the plain one."""
        return (*self.pairings, Pairing("images?", "masks?"))


COLLECTIONS = (
    Collection(
        "CVC-ClinicDB",
        ("cvcclinicdb.*", "clinicdb", "cvc612.*"),
        (Pairing("original", "groundtruth"), Pairing("bbdd", "gtpolyp")),
        sequence=clinicdb_sequence,
    ),
    Collection(
        "CVC-ColonDB",
        ("cvccolondb.*", "colondb"),
        (Pairing(".*", None, image=r"(\d+)", mask=r"p(\d+)"),),
        sequence=colondb_sequence,
    ),
    Collection("CVC-300", ("cvc300.*",), (Pairing("bbdd", "gtpolyp"),), sequence=cvc300_sequence),
    Collection(
        "ETIS-LaribPolypDB",
        ("etislarib.*", "etis"),
        (Pairing("etislaribpolypdb", "groundtruth", mask=r"p?(\d+)"),),
    ),
    Collection("EndoTect", ("endotect.*",), threshold=128),
    Collection("Kvasir-SEG", ("kvasirseg.*", "kvasir"), threshold=128),
    Collection(
        "PolypGen",
        ("polypgen.*",),
        (
            Pairing("images(?P<centre>c[1-6])", "masks{centre}", image=r"(.+?)[_\]]?", site="-{centre}"),
            Pairing("images(?P<sequence>seq[0-9]+)", "masks{sequence}", site="-sequences", group="polypgen_{sequence}"),
        ),
        threshold=128,
    ),
    Collection("BKAI-IGH-NeoPolyp", ("bkai.*", "neopolyp.*"), (Pairing("train", "traingt"),), threshold=128),
)
