"""Labels of several classes: class names, label files with a class value in every pixel, and one-hot planes.

A list with one class has binary masks instead. With K named classes a label file holds 0 (background) to K, in the
order of the names; a network has K + 1 logits with a softmax, the background first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samfed_monai.core.errors import Problem, refused

if TYPE_CHECKING:  # the command line needs only the names of classes
    import numpy as np
    from numpy.typing import NDArray

    from samfed_monai.data.reading import Picture

MAX_CLASSES = 14
"""Largest number of classes whose scores fit into one message (:mod:`samfed_monai.protocol.message`)."""

COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))
"""Colours of classes in pictures (Okabe and Ito), in the order of the classes; from the eighth class on they repeat."""


def colour_of(number: int) -> tuple[int, int, int]:
    """Returns the RGB colour of class ``number``, from 1."""
    return COLOURS[(number - 1) % len(COLOURS)]


def is_multiclass(classes: Sequence[str] | None) -> bool:
    """Whether there is more than one class."""
    return classes is not None and len(classes) > 1


def outputs_of(classes: Sequence[str] | None) -> int:
    """Returns the number of logits: 1 for one class (sigmoid), K + 1 for K classes (softmax, background first)."""
    return len(classes) + 1 if classes is not None and len(classes) > 1 else 1


def class_problems(classes: Any, where: str) -> list[Problem]:
    """Returns the problems of a list of class names.

    Args:
        classes: the value of an option or of a key in a file.
        where: its place, for the messages.
    """
    if not isinstance(classes, (list, tuple)) or not 0 < len(classes) <= MAX_CLASSES or not all(map(_is_name, classes)):
        expected, hint = f"a list of 1 to {MAX_CLASSES} names", 'for instance ["kidney", "spleen"]; no @, $ or % first'
        return [Problem(where, repr(classes), expected, hint)]
    repeated = sorted({name for name in classes if list(classes).count(name) > 1})
    return [Problem(where, f"{', '.join(repeated)} more than once", "every name once")] if repeated else []


def _is_name(name: Any) -> bool:
    """Whether it is a class name; @, $ and % begin references and code in JSON."""
    return isinstance(name, str) and name.strip()[:1] not in ("", *"@$%") and not any(ord(each) < 32 for each in name)


def class_threshold_problems(where: str, threshold: float, classes: Sequence[str]) -> list[Problem]:
    """Returns a problem for a threshold with several classes, which nothing would use."""
    expected = "0.5 with several classes (each pixel gets its most probable class)"
    return [Problem(where, repr(threshold), expected, "leave it out")] if classes and threshold != 0.5 else []


def list_class_problems(classes: Any, threshold: Any, where: str) -> Iterator[Problem]:
    """Yields the problems of the classes of a data list; lists of binary masks have no classes.

    Args:
        classes: the value of an option or of a key in a file.
        threshold: the mask threshold of the list.
        where: the place of the classes, for the messages.
    """
    yield from class_problems(classes, where)
    if isinstance(classes, (list, tuple)) and len(classes) == 1:
        found, hint = f"one name, {classes[0]!r}", "leave it out: labels of one class are binary masks"
        yield Problem(where, found, "the names of two classes or more", hint)
    if threshold is not None:
        found, hint = f"a mask threshold ({threshold}) as well", "leave it out: a threshold cuts masks of one class"
        yield Problem(where, found, "one of the two", hint)


def class_mismatch(list_classes: Sequence[str], run_classes: Sequence[str] | None, where: str) -> list[Problem]:
    """Returns a problem if the classes of a data list differ from those of a run.

    Args:
        list_classes: classes of the list; empty for binary masks, whose single class is named by the run.
        run_classes: ``train.json -> classes``.
        where: the list, for the message.
    """
    wanted = list(run_classes or [])
    if list(list_classes) == wanted or not (is_multiclass(list_classes) or is_multiclass(wanted)):
        return []
    found = f"the classes {list(list_classes)}" if list_classes else "binary masks, of one class"
    expected = f"{wanted}, the classes of this run" if wanted else "binary masks, of one class"
    hint = "make it again with `samfed prepare … --classes`: the same names in the same order at every site"
    if list_classes and not is_multiclass(wanted):
        hint = f'give --classes "{list(list_classes)}", or make the list with a single --label'
    return [Problem(where, found=found, expected=expected, hint=hint)]


def read_classes(path: str | Path, classes: Sequence[str] | int) -> Picture:
    """Reads a label of several classes as (H, W) in 0..K.

    Args:
        path: a lossless 8-bit grey image (PNG, TIFF, BMP) of class values; its EXIF orientation is applied.
        classes: the class names, or their number.

    Raises:
        Refused: a file that :func:`samfed_monai.data.read_mask` refuses, or a value above K.
    """
    from samfed_monai.data.reading import read_bytes

    return decode_classes(read_bytes(path), str(path), classes)


def decode_classes(content: bytes, name: str, classes: Sequence[str] | int) -> Picture:
    """Decodes a label from bytes as :func:`read_classes` does."""
    import numpy as np

    from samfed_monai.data.reading import decode_grey

    label = decode_grey(content, name)
    count = classes if isinstance(classes, int) else len(classes)
    if label.max() > count:
        unknown = np.unique(label[label > count])
        shown = ", ".join(map(str, unknown[:6])) + (", …" if len(unknown) > 6 else "")
        names = "" if isinstance(classes, int) else f": the background, {', '.join(classes)}"
        hint = "name all classes of this site's labels, the same at every site, or set other values to 0"
        if label.max() == 255:
            hint += "; if 255 means 'not labelled', use `samfed prepare folders … --label-kind [SITE=]KIND`"
        raise refused(name, f"the class values {shown}", f"0 to {count}{names}", hint)
    return label


def planes_of(label: NDArray[Any], count: int) -> NDArray[np.uint8]:
    """Converts a label to one-hot planes.

    Args:
        label: (H, W) in 0..K.
        count: K.

    Returns:
        (K + 1, H, W) in {0, 1}, the background first; exactly one is 1 in every pixel.
    """
    import numpy as np

    return (label[None] == np.arange(count + 1)[:, None, None]).astype(np.uint8)
