"""Readers read or refuse random, cut and flipped bytes; they raise nothing else."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from samfed_monai.config import check_bundle
from samfed_monai.core.errors import Refused, Stopped
from samfed_monai.core.io import read_json, safe_load
from samfed_monai.data import DataList
from samfed_monai.data.reading import decode_image, decode_mask
from samfed_monai.federation import RoundStore, RunFolder
from samfed_monai.federation.progress import scalars_of
from samfed_monai.federation.run_folder import best_round, calibration_of, skipped
from samfed_monai.protocol import Kind, Message, MessageRefused, from_bytes, to_bytes
from samfed_monai.protocol.guard import ImageCounts
from samfed_monai.reports.run_data import results_so_far
from tests.config.conftest import TRAIN
from tests.federation.test_progress import record
from tests.federation.toys import weights

TEXTS = ["", "..", "/etc/passwd", "$__import__('os')", "@a", "%a", "a#b", "images/a.png", "_target_", "\ud800", "ß\0"]
SCALARS = [*TEXTS, None, True, False, 0, 1, -1, -(2**70), 2**70, 0.5, -0.0, 1e308, float("inf"), float("nan")]
KEYS = [*TEXTS, "image", "mask", "sites", "public", "round", "files"]


def drawn(test: Callable[..., None]) -> Callable[..., None]:
    """Runs a test with many random number generators."""
    examples = settings(max_examples=300, deadline=None)
    return examples(given(random=st.randoms(use_true_random=True))(test))


def damaged(random: Random, contents: list[bytes]) -> bytes:
    """One of ``contents`` with bytes flipped, removed, inserted or cut off at the end; sometimes random bytes."""
    content = bytearray(random.choice(contents))
    for _ in range(random.randint(0, 4)):
        at = random.randrange(max(1, len(content)))
        what = random.choice(["flip", "cut", "drop", "insert", "zero", "other"])
        if what == "flip" and content:
            content[at] ^= 1 << random.randrange(8)
        elif what == "cut":
            del content[at:]
        elif what == "drop":
            del content[at : at + random.randint(1, 16)]
        elif what == "insert":
            content[at:at] = random.randbytes(random.randrange(17))
        elif what == "zero":
            content[at : at + 8] = bytes(8)
        else:
            content = bytearray(random.randbytes(random.randrange(65)))
    return bytes(content)


def any_json(random: Random, depth: int = 3) -> Any:
    kind = random.choice(["list", "object", "text", "scalar", "scalar"]) if depth else "scalar"
    if kind == "list":
        return [any_json(random, depth - 1) for _ in range(random.randrange(5))]
    if kind == "object":
        return {random.choice(KEYS): any_json(random, depth - 1) for _ in range(random.randrange(5))}
    return "".join(map(chr, random.choices(range(0x3000), k=6))) if kind == "text" else random.choice(SCALARS)


def changed(random: Random, content: Any) -> Any:
    """JSON content with some values changed or removed."""
    copy = json.loads(json.dumps(content))
    for _ in range(random.randint(1, 3)):
        inside: Any = copy
        while keys := list(inside) if isinstance(inside, dict) else list(range(len(inside))):
            key = random.choice(keys)
            if isinstance(inside[key], dict | list) and inside[key] and random.random() < 0.5:
                inside = inside[key]
                continue
            if random.random() < 0.8:
                inside[key] = any_json(random)
            else:
                del inside[key]
            break
    return copy


def text(content: Any) -> bytes:
    """Converts to JSON; characters that UTF-8 cannot encode are escaped."""
    return json.dumps(content).encode()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all examples: creating and deleting one for each takes longer than reading."""
    return tmp_path_factory.mktemp("foreign")


def read_or_refused(path: Path, content: bytes, read: Callable[[Path], Any]) -> None:
    path.write_bytes(content)
    with suppress(Refused):
        read(path)


FIELDS = {"site": "a", "round": 0, "rounds": 2, "n": 3}
MASKS = {"public": (torch.arange(48) * 5 % 256).to(torch.uint8).reshape(2, 4, 6)}
MESSAGES = [
    to_bytes(Message(Kind.WEIGHTS, tensors=weights(), metrics={"seconds": 1.5}, **FIELDS)),
    to_bytes(Message(Kind.SOFT_MASKS, tensors=MASKS, extra={"split": "test"}, **FIELDS)),
    to_bytes(Message(Kind.METRICS, metrics={"dice": 0.5}, **FIELDS)),
]
HEADER = Message(Kind.SOFT_MASKS, "a", 0, 2, n=3).header() | {"shapes": {"w": [2, 3]}}


def message_is_read_or_refused(payload: bytes) -> None:
    try:
        message = from_bytes(payload, max_bytes=1 << 16)
    except MessageRefused:
        return
    for like in (weights(), None):
        with suppress(MessageRefused):
            message.check(up=True, like=like, site="a", round=0)


@drawn
def test_damaged_message_is_read_or_refused(random: Random) -> None:
    message_is_read_or_refused(damaged(random, MESSAGES))


@drawn
def test_message_with_changed_header_is_read_or_refused(random: Random) -> None:
    header = changed(random, HEADER)
    shapes = {"shapes": text(header.pop("shapes")).decode()} if "shapes" in header else {}
    metadata = {"samfed": text(header).decode(), **shapes}
    message_is_read_or_refused(save({"w": torch.arange(6, dtype=torch.uint8)}, metadata=metadata))


LIST = {
    "public": [{"image": "p/a.png", "mask": "p/a_m.png"}],
    "sites": {"a": {"unlabelled": [{"image": "a/1.png"}], "test": [{"image": "a/2.png", "mask": "a/2_m.png"}]}},
}


@drawn
def test_damaged_json_is_read_or_refused(folder: Path, random: Random) -> None:
    read_or_refused(folder / "file.json", damaged(random, [text(LIST), text(TRAIN)]), read_json)


@drawn
def test_changed_data_list_is_read_or_refused(folder: Path, random: Random) -> None:
    content = changed(random, LIST) if random.random() < 0.5 else any_json(random)
    read_or_refused(folder / "list.json", text(content), DataList.load)


@drawn
def test_changed_bundle_is_checked_without_error(folder: Path, random: Random) -> None:
    configs = folder / "bundle" / "configs"
    configs.mkdir(exist_ok=True, parents=True)
    (configs / "metadata.json").write_text('{"version": "0.1.0"}')
    content = changed(random, TRAIN) if random.random() < 0.5 else any_json(random)
    (configs / "train.json").write_bytes(text(content))
    for problem in check_bundle(folder / "bundle", "train", ready=False):
        assert str(problem)


RECORD = {**record(1), "files": {"global.safetensors": "0" * 64}}
MODEL = save(weights())


@drawn
def test_damaged_round_is_read_or_stops(folder: Path, random: Random) -> None:
    store = RoundStore(folder / "rounds")
    for number in range(2):
        store.write(number, weights(float(number)), record(number))
    model, cut = ("global.safetensors", damaged(random, [MODEL])), ("round.json", damaged(random, [text(RECORD)]))
    file, content = random.choice([model, cut, ("round.json", text(changed(random, RECORD)))])
    (store.folder / "001" / file).write_bytes(content)

    def resume() -> None:
        records = store.records(1)
        RunFolder(folder).write_table(records)
        ImageCounts({}).remember(records)
        assert [best_round(records), skipped(records), calibration_of(records[1]), scalars_of(records[1])]

    for read in (resume, lambda: results_so_far(folder), lambda: store.weights(1), store.latest):
        with suppress(Stopped, Refused):
            read()


def checkpoint() -> bytes:
    stream = io.BytesIO()
    torch.save(weights(), stream)
    return stream.getvalue()


CHECKPOINT = checkpoint()


@drawn
def test_damaged_weights_are_read_or_refused(folder: Path, random: Random) -> None:
    content = damaged(random, [MODEL, CHECKPOINT])
    for name in ("w.safetensors", "w.pt"):
        read_or_refused(folder / name, content, safe_load)


def pictures() -> list[bytes]:
    pixels = np.arange(12 * 10 * 3, dtype=np.uint8).reshape(12, 10, 3)
    grey = pixels[..., 0]
    images = {"PNG": [pixels, grey, (grey > 99).astype(np.uint8) * 255, grey.astype(np.uint16)]}
    images |= {"JPEG": [pixels, grey], "TIFF": [pixels], "BMP": [pixels]}
    contents = []
    for kind, array in ((kind, array) for kind, arrays in images.items() for array in arrays):
        stream = io.BytesIO()
        Image.fromarray(array).save(stream, kind)
        contents.append(stream.getvalue())
    for values, tags in (
        (pixels.transpose(2, 0, 1).astype(np.uint16), {"photometric": "rgb", "planarconfig": "separate"}),
        (65535 - grey.astype(np.uint16), {"photometric": "miniswhite", "tile": (16, 16)}),
        (grey.astype(np.float32), {"photometric": "minisblack", "bigtiff": True}),
        (np.stack([grey] * 2), {"photometric": "minisblack", "imagej": True}),
    ):
        stream = io.BytesIO()
        tifffile.imwrite(stream, values, **tags)
        contents.append(stream.getvalue())
    return contents


PICTURES = pictures()


@drawn
def test_damaged_image_is_read_or_refused(random: Random) -> None:
    content = damaged(random, PICTURES)
    with suppress(Refused):
        decode_image(content, "a.png")
    with suppress(Refused):
        decode_mask(content, "a.png", 128)
