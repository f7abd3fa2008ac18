"""Labels of several classes: their names, files that hold a class value in every pixel, and planes of one class each.

A list with one class has binary masks and none of this. With K named classes a label file holds 0 (background) to K,
in the order of the names; a network has K + 1 logits, of which the first is the background's, and their softmax.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samfed_monai.core.errors import Problem, Problems, refused

if TYPE_CHECKING:  # the command line asks for names of classes alone
    import numpy as np
    from numpy.typing import NDArray

    from samfed_monai.data.reading import Picture

MOST = 14
"""Largest number of classes: the scores of as many fit into one message (:mod:`samfed_monai.protocol.message`)."""

COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))
"""Colours of classes in pictures, those of Okabe and Ito, in the order of the classes; the eighth has the first's."""


def colour_of(number: int) -> tuple[int, int, int]:
    """The colour of class ``number``, from 1."""
    return COLOURS[(number - 1) % len(COLOURS)]


def several(classes: Sequence[str] | None) -> bool:
    """Whether these names are those of more than one class."""
    return classes is not None and len(classes) > 1


def outputs_of(classes: Sequence[str] | None) -> int:
    """Logits of a pixel: 1 for one class (a sigmoid), K + 1 for K classes (a softmax with the background first)."""
    return len(classes) + 1 if classes is not None and len(classes) > 1 else 1


def class_problems(classes: Any, where: str) -> list[Problem]:
    """What is wrong with a list of names of classes.

    Args:
        classes: the content of an option or a file.
        where: its place, for the messages.
    """
    problems, hint = Problems(), 'for instance ["kidney", "spleen"]'
    if not isinstance(classes, (list, tuple)) or not 0 < len(classes) <= MOST or not all(map(_is_name, classes)):
        problems.add(where, found=repr(classes), expected=f"a list of 1 to {MOST} names", hint=hint)
    elif twice := sorted({name for name in classes if list(classes).count(name) > 1}):
        problems.add(where, found=f"{', '.join(twice)} more than once", expected="every name once")
    return list(problems)


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and bool(name.strip()) and not any(ord(character) < 32 for character in name)


def list_class_problems(classes: Any, threshold: Any, where: str) -> list[Problem]:
    """What is wrong with the classes of a data list, which has none where its labels are binary masks.

    Args:
        classes: the content of an option or a file.
        threshold: that of the list's masks.
        where: the place of the classes, for the messages.
    """
    problems = Problems()
    problems.extend(class_problems(classes, where))
    if isinstance(classes, (list, tuple)) and len(classes) == 1:
        found, hint = f"one name, {classes[0]!r}", "leave it out: labels of one class are binary masks"
        problems.add(where, found=found, expected="the names of two classes or more", hint=hint)
    if threshold is not None:
        found, hint = f"a mask threshold ({threshold}) beside it", "leave it out: a threshold cuts masks of one class"
        problems.add(where, found=found, expected="one of the two", hint=hint)
    return list(problems)


def other_classes(of_list: Sequence[str], of_run: Sequence[str] | None, where: str) -> list[Problem]:
    """What keeps a data list from being learned from by networks of these classes.

    Args:
        of_list: classes of the list; empty for binary masks, whose one class has whatever name the run gives it.
        of_run: ``train.json -> classes``.
        where: the list, for the message.
    """
    wanted = list(of_run or [])
    if list(of_list) == wanted or not (several(of_list) or several(wanted)):
        return []
    found = f"the classes {list(of_list)}" if of_list else "binary masks, of one class"
    expected = f"{wanted}, the classes of this run" if wanted else "binary masks, of one class"
    if of_list and not several(wanted):
        hint = f'give --classes "{list(of_list)}", or make the list with a single --label'
    else:
        hint = "make it again with `samfed prepare … --classes`: the same names in the same order at every site"
    return [Problem(where, found=found, expected=expected, hint=hint)]


def read_classes(path: str | Path, classes: Sequence[str] | int) -> Picture:
    """Reads a label of several classes as (H, W) in 0..K.

    Args:
        path: a lossless 8-bit grey image (PNG, TIFF, BMP) of class values, upright or turned by its EXIF.
        classes: the classes' names, or how many there are.

    Raises:
        Refused: what :func:`samfed_monai.data.read_mask` refuses of any file; a value that no class has.
    """
    from samfed_monai.data.reading import read_bytes

    return decode_classes(read_bytes(path), str(path), classes)


def decode_classes(content: bytes, name: str, classes: Sequence[str] | int) -> Picture:
    """:func:`read_classes` on bytes."""
    import numpy as np

    from samfed_monai.data.reading import decode_grey

    label = decode_grey(content, name)
    count = classes if isinstance(classes, int) else len(classes)
    if label.max() > count:
        alien = np.unique(label[label > count])
        shown = ", ".join(map(str, alien[:6])) + (", …" if len(alien) > 6 else "")
        names = "" if isinstance(classes, int) else f": the background, {', '.join(classes)}"
        hint = "name every class that this site's labels have, at all sites alike, or set what is none of them to 0"
        if label.max() == 255:
            hint += "; if 255 is what was not labelled, say so: `samfed prepare folders … --label-kind [SITE=]KIND`"
        found, expected = f"the class values {shown}", f"0 to {count}{names}"
        raise refused(name, found=found, expected=expected, hint=hint)
    return label


def planes_of(label: NDArray[Any], count: int) -> NDArray[np.uint8]:
    """A label as planes of one class each.

    Args:
        label: (H, W) in 0..K.
        count: K.

    Returns:
        (K + 1, H, W) in {0, 1}, the background's first; exactly one of them is 1 in every pixel.
    """
    import numpy as np

    return (label[None] == np.arange(count + 1)[:, None, None]).astype(np.uint8)
