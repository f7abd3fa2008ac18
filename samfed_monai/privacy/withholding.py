"""What few images say is withheld: small counts, scores of few images, and the words that say so."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import replace

from samfed_monai.core.errors import Problem
from samfed_monai.metrics.quality import PREFIX
from samfed_monai.protocol.message import Kind, Message, MessageRefused

#: Numbers that say how long a site worked, not what it saw.
EFFORT = frozenset({"seconds", "iterations", "releases"})
#: The mean expected Dice of a model's masks, and of how many images: no label is needed for it.
EXPECTED = frozenset({"expected_dice", "expected_images"})
#: Word of an answer whose statistics were withheld; its value is the number of images that they would have needed.
WITHHELD = "withheld"


def withhold_small(message: Message, least_images: int) -> Message:
    """``message`` without what fewer than ``least_images`` images say.

    Of many images, counts of empty masks that are above 0 and below ``least_images`` stay (three images without a
    lesion are three images), and HD95 where the counts that go leave fewer images than that. Of several classes, the
    scores of one that fewer images hold stay, and how many hold it where fewer do not. Of whole volumes, all scores
    stay where there are fewer, and those of a class that fewer hold, or lack. Groups of images
    (:mod:`samfed_monai.metrics.quality`) stay where one of them is smaller. The expected Dice of images without labels
    leaves where there are enough of them.
    Scores go, and the count with them; the word ``withheld`` says so, unless there are no images at all. Tensors that
    were learned from so few images are such a statistic too, and cannot be left out of themselves.

    Raises:
        MessageRefused: tensors of fewer than ``least_images`` images.
    """
    if message.n >= least_images:
        return _without_few(message, least_images)
    if message.tensors:
        found, expected = "fewer", f"tensors of at least {least_images} images"
        hint = "join with another site, or agree on another least_images"
        raise MessageRefused([Problem("message -> n", found=found, expected=expected, hint=hint)])
    statistics = message.metrics.keys() - EFFORT.union(EXPECTED)
    if message.kind != Kind.METRICS or not (message.n or statistics):
        few = EXPECTED if message.metrics.get("expected_images", 0) < least_images else frozenset()
        return _without(message, few)
    return without_scores(message, str(least_images))


def without_scores(message: Message, word: str) -> Message:
    """``message`` without scores and their count; ``withheld`` says ``word``, unless there are no images at all."""
    kept = {name: value for name, value in message.metrics.items() if name in EFFORT}
    withheld = {WITHHELD: word} if message.n else {}
    return replace(message, n=0, metrics=kept, extra={**message.extra, **withheld})


def _without_few(message: Message, least_images: int) -> Message:
    counts = {name: value for name, value in message.metrics.items() if name.startswith("empty_")}
    few = {name for name, value in counts.items() if 0 < value < least_images}
    shown = sum(value for name, value in counts.items() if name not in few)
    if shown and 0 < message.n - shown < least_images:
        few.add("hd95")
    for name, value in message.metrics.items():
        if name.startswith("images_class_"):
            number = name.removeprefix("images_class_")
            if 0 < value < least_images:
                few |= {f"{score}_class_{number}" for score in ("dice", "iou", "hd95", "images")}
            elif 0 < message.n - value < least_images:
                few.add(name)
    volumes = message.metrics.get("volume_n", 0)
    for name, value in message.metrics.items():
        if name.startswith("volume_n") and (0 < value < least_images or 0 < volumes - value < least_images):
            which = name.removeprefix("volume_n")
            few |= {other for other in message.metrics if other.startswith("volume_") and other.endswith(which)}
    groups = {name: value for name, value in message.metrics.items() if name.startswith(PREFIX)}
    if any(value < least_images for name, value in groups.items() if name.startswith(f"{PREFIX}images_")):
        few |= groups.keys()
    return _without(message, few)


def _without(message: Message, names: Set[str]) -> Message:
    if not names & message.metrics.keys():
        return message
    return replace(message, metrics={name: value for name, value in message.metrics.items() if name not in names})


def withheld_reason(message: Message) -> str | None:
    """Why an answer holds no statistics: ``withheld: fewer than 5 images``, ``no images``; ``None`` where it does."""
    least = message.extra.get(WITHHELD)
    if least == OWN_NETWORK:
        return "withheld: of what the site keeps, to which no noise is added"
    if least is not None:
        return f"withheld: fewer than {least} images"
    return None if message.n or message.metrics.keys() - EFFORT.union(EXPECTED) else NO_IMAGES


OWN_NETWORK = "0"
"""With differential privacy, the word ``withheld`` of scores of a network that stays at its site, or in part."""

NO_IMAGES = "no images"
"""Why a site without masks has no scores."""
