"""Which frames of a polyp collection come from one video: tables by frame number.

CVC-ClinicDB: 612 frames of 29 sequences (Bernal et al., CMIG 43, 2015). The ranges are those of the collection's page
as transcribed by https://datasetninja.com/cvc-612; the ``sequence_id`` column of the PNG release's ``metadata.csv``
groups alike. *Checked*: contiguous, disjoint, 612 frames, 29 sequences.

CVC-ColonDB: 380 frames of 15 sequences, one study each (Bernal et al., Pattern Recognition 45(9), 2012,
https://mv.cvc.uab.es/projects/colon-qa/cvccolondb names the 15 studies; 300 frames were released first, 80 frames of
four of the sequences later). *No table is published*: these ranges were told from the frames (each sequence shows one
polyp in one colon) and not confirmed by the authors. *Checked*: contiguous, disjoint, 380 frames, 15 sequences; a
change of scene at every boundary (mean grey difference 28 to 61 between neighbours, against a median of 18 inside); the
60 frames from 149 on that benchmarks call the test set of CVC-300 are sequences 7, 9 and 10. Where you have a better
table, give it with ``--groups``.

CVC-300 is the first 300 frames of CVC-ColonDB again (Vazquez et al., J. Healthc. Eng. 2017, part of EndoSceneStill);
numbered 1 to 300 in the release, and 613 to 912 where it follows the 612 of ClinicDB. It shares ColonDB's groups on
purpose: an image of it that measures beside a public ColonDB is a leak.
"""

from __future__ import annotations

CLINICDB = (
    *((1, 25), (26, 50), (51, 67), (68, 78), (79, 103), (104, 126), (127, 151), (152, 177), (178, 199), (200, 205)),
    *((206, 227), (228, 252), (253, 277), (278, 297), (298, 317), (318, 342), (343, 363), (364, 383), (384, 408)),
    *((409, 428), (429, 447), (448, 466), (467, 478), (479, 503), (504, 528), (529, 546), (547, 571), (572, 591)),
    (592, 612),
)
# sequence number, first and last frame; sequences 4, 8, 12 and 13 are in the later release only
COLONDB = (
    *((1, 1, 38), (2, 39, 60), (3, 61, 76), (5, 77, 97), (6, 98, 148), (7, 149, 155), (9, 156, 203), (10, 204, 208)),
    *((11, 209, 263), (14, 264, 273), (15, 274, 300), (4, 301, 320), (8, 321, 340), (12, 341, 360), (13, 361, 380)),
)


def clinicdb_sequence(frame: str) -> str | None:
    """Group of a frame of CVC-ClinicDB, by its number (``"1"`` to ``"612"``); ``None`` for other names."""
    number = int(frame) if frame.isascii() and frame.isdigit() else 0
    for sequence, (first, last) in enumerate(CLINICDB, start=1):
        if first <= number <= last:
            return f"clinicdb_seq{sequence}"
    return None


def colondb_sequence(frame: str) -> str | None:
    """Group of a frame of CVC-ColonDB, by its number (``"1"`` to ``"380"``); ``None`` for other names."""
    number = int(frame) if frame.isascii() and frame.isdigit() else 0
    return next((f"colondb_seq{sequence}" for sequence, first, last in COLONDB if first <= number <= last), None)


def cvc300_sequence(frame: str) -> str | None:
    """Group of a frame of CVC-300, which is ColonDB's; numbers from 613 on follow those of ClinicDB."""
    number = int(frame) if frame.isascii() and frame.isdigit() else 0
    return colondb_sequence(str(number - 612 if 613 <= number <= 912 else number)) if 0 < number <= 912 else None
