"""Bytes from outside, drawn, cut and flipped: a reader reads them or refuses them, and raises nothing else."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from samfed_monai.config import check_bundle
from samfed_monai.core.errors import Refused, Stopped
from samfed_monai.core.io import read_json, safe_load
from samfed_monai.data import DataList
from samfed_monai.data.reading import decode_image, decode_mask
from samfed_monai.federation import RoundStore
from samfed_monai.protocol import Kind, Message, MessageRefused, from_bytes, to_bytes
from tests.config.conftest import TRAIN
from tests.federation.toys import weights

EXAMPLES = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))

TEXTS = ["..", "/etc/passwd", "$__import__('os')", "@a", "%a", "a#b", "images/a.png", "_target_", "\ud800"]
NUMBERS = st.one_of(st.booleans(), st.integers(-(2**70), 2**70), st.floats())
SCALARS = st.one_of(st.none(), NUMBERS, st.text(max_size=12), st.sampled_from(TEXTS))
KEYS = st.one_of(
    st.text(max_size=8), st.sampled_from(["image", "mask", "sites", "public", "_target_", "round", "files"])
)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12
)


@st.composite
def damaged(draw: st.DrawFn, contents: list[bytes]) -> bytes:
    """One of ``contents``, with bytes flipped, taken out, put in, or its end cut off; sometimes any bytes at all."""
    content = bytearray(draw(st.sampled_from(contents)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        what = draw(st.sampled_from(["flip", "cut", "drop", "insert", "zero", "other"]))
        if what == "flip" and content:
            content[at] ^= 1 << draw(st.integers(0, 7))
        elif what == "cut":
            del content[at:]
        elif what == "drop":
            del content[at : at + draw(st.integers(1, 16))]
        elif what == "insert":
            content[at:at] = draw(st.binary(max_size=16))
        elif what == "zero":
            content[at : at + 8] = bytes(8)
        else:
            content = bytearray(draw(st.binary(max_size=64)))
    return bytes(content)


@st.composite
def changed(draw: st.DrawFn, content: Any) -> Any:
    """JSON content in which some values are others, or gone."""
    copy = json.loads(json.dumps(content))
    for _ in range(draw(st.integers(1, 3))):
        inside: Any = copy
        while True:
            keys = list(inside) if isinstance(inside, dict) else list(range(len(inside)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(inside[key], (dict, list)) and inside[key] and draw(st.booleans()):
                inside = inside[key]
                continue
            if draw(st.integers(0, 4)):
                inside[key] = draw(JSON)
            else:
                del inside[key]
            break
    return copy


def text(content: Any) -> bytes:
    """As JSON; what UTF-8 cannot say is escaped."""
    return json.dumps(content).encode()


def drawn(test: Callable[..., None], strategy: Any) -> Callable[..., None]:
    """A test of drawn content."""
    return EXAMPLES(given(strategy)(test))


# ---- messages
def _messages() -> list[bytes]:
    masks = {"public": (torch.arange(48) * 5 % 256).to(torch.uint8).reshape(2, 4, 6)}
    fields = {"site": "a", "round": 0, "rounds": 2, "n": 3}
    return [
        to_bytes(Message(Kind.WEIGHTS, tensors=weights(), metrics={"seconds": 1.5}, **fields)),
        to_bytes(Message(Kind.SOFT_MASKS, tensors=masks, extra={"split": "test"}, **fields)),
        to_bytes(Message(Kind.METRICS, metrics={"dice": 0.5}, **fields)),
    ]


def _message_is_read_or_refused(payload: bytes) -> None:
    try:
        message = from_bytes(payload, max_bytes=1 << 16)
    except MessageRefused:
        return
    for like in (weights(), None):
        with suppress(MessageRefused):
            message.check(up=True, like=like, site="a", round=0)


def _header_is_read_or_refused(header: Any) -> None:
    shapes = header.pop("shapes", None) if isinstance(header, dict) else None
    metadata = {"samfed": text(header).decode()} | ({} if shapes is None else {"shapes": text(shapes).decode()})
    _message_is_read_or_refused(save({"w": torch.arange(6, dtype=torch.uint8)}, metadata=metadata))


HEADER = Message(Kind.SOFT_MASKS, "a", 0, 2, n=3).header() | {"shapes": {"w": [2, 3]}}
test_a_damaged_message = drawn(_message_is_read_or_refused, damaged(_messages()))
test_another_header = drawn(_header_is_read_or_refused, changed(HEADER))


# ---- JSON, data lists, bundles
LIST = {
    "public": [{"image": "p/a.png", "mask": "p/a_m.png"}],
    "sites": {"a": {"unlabelled": [{"image": "a/1.png"}], "test": [{"image": "a/2.png", "mask": "a/2_m.png"}]}},
}


def _with_file(content: bytes, read: Callable[[Path], Any], name: str = "file.json") -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        with contextlib.suppress(Refused):
            read(path)


def _json_is_read_or_refused(content: bytes) -> None:
    _with_file(content, read_json)


def _list_is_read_or_refused(content: Any) -> None:
    _with_file(text(content), DataList.load)


def _bundle_is_checked(content: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "configs").mkdir()
        (Path(folder) / "configs" / "metadata.json").write_text('{"version": "0.1.0"}')
        (Path(folder) / "configs" / "train.json").write_bytes(text(content))
        for problem in check_bundle(Path(folder), "train", ready=False):
            assert str(problem)


test_damaged_json = drawn(_json_is_read_or_refused, damaged([text(LIST), text(TRAIN)]))
test_another_list = drawn(_list_is_read_or_refused, st.one_of(changed(LIST), JSON))
test_another_bundle = drawn(_bundle_is_checked, st.one_of(changed(TRAIN), JSON))


# ---- rounds and weights
@functools.cache
def _written() -> tempfile.TemporaryDirectory:
    folder = tempfile.TemporaryDirectory()
    for number in range(2):
        RoundStore(Path(folder.name) / "rounds").write(number, weights(float(number)), {"round": number})
    return folder


def _rounds(folder: Path) -> RoundStore:
    shutil.copytree(Path(_written().name) / "rounds", folder / "rounds")
    return RoundStore(folder / "rounds")


RECORD = {"round": 1, "files": {"global.safetensors": "0" * 64}}


def _round_is_read_or_stops(record: bytes | None, model: bytes | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = _rounds(Path(folder))
        if record is not None:
            (store.folder / "001" / "round.json").write_bytes(record)
        if model is not None:
            (store.folder / "001" / "global.safetensors").write_bytes(model)
        for read in (lambda: store.records(1), lambda: store.weights(1), store.latest, lambda: store.records(0)):
            with contextlib.suppress(Stopped, Refused):
                read()


def _record_is_read_or_stops(content: bytes) -> None:
    _round_is_read_or_stops(content, None)


def _model_is_read_or_stops(content: bytes) -> None:
    _round_is_read_or_stops(None, content)


MODEL = save(weights())
RECORDS = st.one_of(damaged([text(RECORD)]), changed(RECORD).map(text))
test_a_damaged_record = drawn(_record_is_read_or_stops, RECORDS)
test_a_damaged_model = drawn(_model_is_read_or_stops, damaged([MODEL]))


def _torch_file() -> bytes:
    stream = io.BytesIO()
    torch.save(weights(), stream)
    return stream.getvalue()


def _weights_are_read_or_refused(content: bytes) -> None:
    for name in ("w.safetensors", "w.pt"):
        _with_file(content, safe_load, name)


test_damaged_weights = drawn(_weights_are_read_or_refused, damaged([MODEL, _torch_file()]))


# ---- images
def _pictures() -> list[bytes]:
    pixels = np.arange(12 * 10 * 3, dtype=np.uint8).reshape(12, 10, 3)
    images = {
        "PNG": [pixels, pixels[..., 0], (pixels[..., 0] > 99).astype(np.uint8) * 255, pixels[..., 0].astype(np.uint16)],
        "JPEG": [pixels, pixels[..., 0]],
        "TIFF": [pixels],
        "BMP": [pixels],
    }
    contents = []
    for kind, arrays in images.items():
        for array in arrays:
            stream = io.BytesIO()
            Image.fromarray(array).save(stream, kind)
            contents.append(stream.getvalue())
    for values, tags in (
        (pixels.transpose(2, 0, 1).astype(np.uint16), {"photometric": "rgb", "planarconfig": "separate"}),
        (65535 - pixels[..., 0].astype(np.uint16), {"photometric": "miniswhite", "tile": (16, 16)}),
        (pixels[..., 0].astype(np.float32), {"photometric": "minisblack", "bigtiff": True}),
        (np.stack([pixels[..., 0]] * 2), {"photometric": "minisblack", "imagej": True}),
    ):
        stream = io.BytesIO()
        tifffile.imwrite(stream, values, **tags)
        contents.append(stream.getvalue())
    return contents


def _picture_is_read_or_refused(content: bytes) -> None:
    for read in (lambda: decode_image(content, "a.png"), lambda: decode_mask(content, "a.png", 128)):
        with contextlib.suppress(Refused):
            read()


test_a_damaged_picture = drawn(_picture_is_read_or_refused, damaged(_pictures()))
