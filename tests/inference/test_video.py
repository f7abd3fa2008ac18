"""Videos: which frames are read and when they are shown, what of a broken file is kept, and what ``infer`` makes."""

from __future__ import annotations

import csv
import logging
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samfed_monai.cli.main import main
from samfed_monai.core.errors import Refused
from samfed_monai.inference.forms import MaskForms
from samfed_monai.inference.predictor import Predictor
from samfed_monai.inference.segment import segment
from samfed_monai.inference.video import MARK, OutlineVideo, Video

av = pytest.importorskip("av", reason="PyAV is not installed: pip install samfed-monai[video]")

CODECS = {"mp4": "libx264", "avi": "mpeg4", "mkv": "libx264"}


def encoded(
    path: Path, codec: str, pictures: Sequence[np.ndarray], *, rate: int = 25, start: int = 0, **settings: object
) -> Path:
    """A video of pictures from second ``start`` on; ``settings`` are those of its stream."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=settings.pop("options", {}))
        (stream.height, stream.width), stream.pix_fmt, stream.bit_rate = pictures[0].shape[:2], "yuv420p", 8_000_000
        for name, value in settings.items():
            setattr(stream, name, value)
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts = start * rate + number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def clip(path: Path, frames: int = 20, *, start: int = 0) -> Path:
    """Frame n is grey of 10 (n modulo 20), with a bright corner on the upper left; with noise, no frame is empty."""
    noise = np.random.default_rng(0).integers(0, 9, (48, 64, 3), dtype=np.uint8)
    pictures = [noise + np.uint8(10 * (number % 20)) for number in range(frames)]
    for picture in pictures:
        picture[:16, :16] = 250
    return encoded(path, CODECS[path.suffix[1:]], pictures, rate=10, start=start, gop_size=5)


@pytest.mark.parametrize(("suffix", "start"), [*((suffix, 0) for suffix in CODECS), ("mkv", 600)])
def test_every_nth_frame_is_read_with_time(tmp_path, suffix, start, caplog):
    video = Video(clip(tmp_path / f"clip.{suffix}", start=start))
    assert (video.rate, video.seconds) == (10, 2)
    found = list(video.frames(6))
    assert [frame.number for frame in found] == [1, 7, 13, 19]
    assert [frame.seconds for frame in found] == pytest.approx([0, 0.6, 1.2, 1.8])
    for frame in found:
        assert frame.picture.shape == (48, 64, 3)
        assert frame.picture[20:].mean() == pytest.approx(10 * (frame.number - 1) + 4, abs=4)
    assert caplog.records == []


@pytest.mark.parametrize("suffix", ["avi", "mkv"])
def test_beginning_of_truncated_file_is_kept(tmp_path, suffix, caplog):
    path = clip(tmp_path / f"clip.{suffix}", 60)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    found = list(Video(path).frames(1))
    assert 5 < len(found) < 45
    assert [frame.number for frame in found] == list(range(1, len(found) + 1))
    assert f"{path}: " in caplog.text
    assert "of 6.0 seconds" in caplog.text


def test_damaged_frames_are_skipped_to_next_key_frame(tmp_path, caplog):
    path = clip(tmp_path / "clip.mp4")
    with av.open(str(path)) as container:
        hit = [packet.pos for packet in container.demux(video=0) if packet.pos][7]  # behind the key frame of 5
    content = bytearray(path.read_bytes())
    content[hit + 4 : hit + 12] = bytes(8)
    path.write_bytes(content)
    found = list(Video(path).frames(1))
    numbers = {round(frame.seconds * 10) for frame in found}
    assert {*range(5), *range(10, 20)} <= numbers
    assert numbers != {*range(20)}
    for frame in found:
        assert frame.picture[20:].mean() == pytest.approx(100 * frame.seconds + 4, abs=4), "none is painted over"
    assert "left out; read up to 2.0 of 2.0 seconds" in caplog.text


@pytest.mark.parametrize(("cosine", "sine", "corner"), [(0, 1, (0, -1)), (-1, 0, (-1, -1)), (0, -1, (-1, 0))])
def test_frames_are_rotated_upright(tmp_path, cosine, sine, corner):
    """A phone writes how its picture is to be turned into the track's header; (0, 1) is a quarter turn clockwise."""
    path = clip(tmp_path / "clip.mp4", 3)
    content = path.read_bytes()
    matrix = content.index(b"tkhd") + 4 + 40
    one = [Fraction(each) * 65536 for each in (cosine, sine, 0, -sine, cosine, 0)]
    turned = b"".join(int(each).to_bytes(4, "big", signed=True) for each in one)
    path.write_bytes(content[:matrix] + turned + content[matrix + 24 :])
    (first,) = list(Video(path).frames(3))
    assert first.picture.shape == ((64, 48, 3) if cosine == 0 else (48, 64, 3))
    assert first.picture[corner].mean() > 200
    assert first.picture[0, 0].mean() < 50


def colonoscopy(count: int) -> list[np.ndarray]:
    """Frames of CVC-ClinicDB that follow one another, 288 rows of 384."""
    folder = Path(os.environ.get("SAMFED_DATA", "")) / "data" / "polyp" / "cvc_clinicdb" / "images"
    if not folder.is_dir():
        pytest.skip("SAMFED_DATA has no CVC-ClinicDB")
    pictures = (Image.open(folder / f"{number}.jpg").convert("RGB") for number in range(1, count + 1))
    return [np.array(picture)[:288, :384] for picture in pictures]


def combing(picture: np.ndarray) -> float:
    """How far rows are from the mean of their neighbours, over how far they are from the mean of those of their field:
    about 0.5 of a picture, more than 2 of two that are woven."""
    grey = picture.astype(np.float32).mean(axis=-1)
    near, field = (np.abs(grey[n:-n] - (grey[: -2 * n] + grey[2 * n :]) / 2).mean() for n in (1, 2))
    return float(near / field)


@pytest.mark.parametrize(("name", "codec", "flags"), [("a.mpg", "mpeg2video", "+ildct+ilme"), ("b.mp4", "libx264", "")])
def test_interlaced_frames_are_deinterlaced_and_reported(tmp_path, caplog, name, codec, flags):
    """The scene moves by 6 pixels from field to field. Some recorders take the signal for a progressive one: the file
    does not say what it is."""
    photo, woven = colonoscopy(1)[0], []
    fields = [np.roll(photo, 6 * number, axis=1) for number in range(24)]
    for first, second in zip(fields[::2], fields[1::2], strict=True):
        woven.append(first.copy())
        woven[-1][1::2] = second[1::2]
    assert combing(woven[0]) > 2
    found = list(Video(encoded(tmp_path / name, codec, woven, options={"flags": flags} if flags else {})).frames(3))
    assert [frame.number for frame in found] == [1, 4, 7, 10]
    assert [frame.seconds for frame in found] == pytest.approx([0, 0.12, 0.24, 0.36], abs=1e-3)
    for frame in found:
        assert combing(frame.picture) < 0.6
        inside = frame.picture[8:-8].astype(float) - fields[2 * frame.number - 2][8:-8]
        assert np.sqrt((inside**2).mean()) < 12, "the picture of the first field, and of no other frame"
    assert f"{tmp_path / name}: interlaced video; 12 of 12 frames were deinterlaced" in caplog.text


def test_progressive_frames_are_unchanged(tmp_path, caplog):
    path = encoded(tmp_path / "clip.mp4", "libx264", colonoscopy(25))
    with av.open(str(path)) as container:
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert np.array_equal([frame.picture for frame in Video(path).frames(1)], decoded)
    assert caplog.records == []


def sound(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def without_packets(path: Path) -> None:
    content = bytearray(clip(path).read_bytes())
    begin, end = content.index(b"mdat") + 4, content.index(b"moov") - 4
    content[begin:end] = bytes(end - begin)
    path.write_bytes(content)


def tiny(path: Path) -> None:
    with av.open(str(path), "w", "matroska") as container:
        stream = container.add_stream("ffv1")
        stream.width, stream.height = 64, 2
        container.mux(stream.encode(av.VideoFrame(64, 2, "yuv420p")))


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (tiny, "64 x 2 pixels"),
        (sound, "no video stream, 1 audio stream"),
        (without_packets, "no frame that can be decoded"),
        (b"no video at all", "no video"),
        (b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n", "no video"),
        (b"", "no video"),
    ],
)
def test_unreadable_video_is_refused(tmp_path, content, found):
    path = tmp_path / "clip.mp4"
    path.write_bytes(content) if isinstance(content, bytes) else content(path)
    with pytest.raises(Refused, match=f"clip.mp4: expected a video.*, found {found}"):
        Video(path)
    with pytest.raises(Refused, match=r"gone.mp4: expected a video.*, found no video \(No such file"):
        Video(tmp_path / "gone.mp4")


def test_outline_video_keeps_speed_and_marks_doubtful_frames(tmp_path):
    made = OutlineVideo(tmp_path / "o.mp4", 2)
    for number in range(4):  # of an odd size, which H.264 does not have
        made.add(np.full((61, 81, 3), 90, np.uint8), number / 2, marked=number == 2)
    made.close()
    found = list(Video(tmp_path / "o.mp4").frames(1))
    assert [frame.seconds for frame in found] == pytest.approx([0, 0.5, 1, 1.5])
    for frame in found:
        assert frame.picture.shape == (60, 80, 3)
        assert frame.picture[30, 40] == pytest.approx(90, abs=6)
        assert frame.picture[0, 40] == pytest.approx(MARK if frame.number == 3 else (90, 90, 90), abs=25)


OUTLINES = """
import sys; from pathlib import Path; import numpy as np; from samfed_monai.inference.video import OutlineVideo
made, (y, x) = OutlineVideo(Path(sys.argv[1]), 2), np.mgrid[:240, :320]
for n in range(20):
    made.add(np.stack([x * 3 + n * 7, y * 2 + n * 3, x + y + n], -1).astype(np.uint8), n / 2, marked=n % 3 == 0)
made.close()
"""


def test_outline_video_is_reproducible(tmp_path):
    """Else the same command would be refused for the file that it wrote before. glibc fills what it gives by this."""
    for fill in ("1", "85"):
        words = [sys.executable, "-c", OUTLINES, tmp_path / f"{fill}.mp4"]
        subprocess.run(words, env={**os.environ, "MALLOC_PERTURB_": fill}, check=True)
    assert (tmp_path / "1.mp4").read_bytes() == (tmp_path / "85.mp4").read_bytes()


def test_infer_writes_masks_timed_table_and_video(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.full((48, 64, 3), 180, np.uint8)).save("photo.png")
    path = clip(tmp_path / "clip.mkv")
    predictor = Predictor("samfed_skin", overrides={"image_size": 224})
    files = {"overlays": "looks", "areas": "areas.csv", "coco": None, "page": "looks.html"}
    also = MaskForms(predictor.model.bundle, [], **files)
    monkeypatch.setattr("samfed_monai.inference.video.AT_ONCE", 3)
    with caplog.at_level(logging.INFO):
        segment(predictor, [str(path), "photo.png"], "masks", also)
    assert re.search(r"clip\.mkv: masks of 4 frames \(1 of every 5\), \d doubtful, in masks/clip", caplog.text)
    names = [f"clip/{number:06d}" for number in (1, 6, 11, 16)]
    assert sorted(str(mask.relative_to("masks"))[:-4] for mask in Path("masks").rglob("*.png")) == [*names, "photo"]
    with open("areas.csv", newline="") as stream:
        rows = {row["name"]: row for row in csv.DictReader(stream)}
    assert [rows[name]["seconds"] for name in (*names, "photo")] == ["0.0", "0.5", "1.0", "1.5", ""]
    for name, row in rows.items():
        assert int(row["foreground_pixels"]) == (np.array(Image.open(f"masks/{name}.png")) > 0).sum()
        assert (float(row["expected_dice"]) < 0.7) == (row["doubtful"] == "yes")
    assert sorted(each.name for each in Path("looks").iterdir()) == ["clip.mp4", "photo.png"]
    assert len(list(Video(Path("looks/clip.mp4")).frames(1))) == 4
    assert Path("looks.html").read_text().count("<article") == 5
    Path("masks/clip/000006.png").write_bytes(b"corrected")
    also = MaskForms(predictor.model.bundle, [], page="again.html")
    with pytest.raises(Refused, match=r"^refused: 1 problem\n.*clip/000006\.png: expected none, or the same mask"):
        segment(predictor, [str(path), "photo.png"], "masks", also)
    assert Path("again.html").read_text().count("<article") == 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["photo.png", "--every", "2"], "--every: expected a video file among the images, not a folder, found 2"),
        (["clip.mkv", "--every", "0"], "--every: expected a whole number from 1, found 0"),
        (["clip.mkv", "other/clip.mkv"], "clip: expected one image or volume of that name, found several"),
        (["clip.mkv", "--dicom-seg", "segments"], "--dicom-seg: expected DICOM objects to refer to"),
    ],
)
def test_invalid_video_options_are_refused_before_inference(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 48)).save("photo.png")
    Path("other").mkdir()
    for path in ("clip.mkv", "other/clip.mkv"):
        clip(Path(path), 3)
    assert main(["infer", "samfed_skin", *words, "--output-dir", "masks"]) == 2
    assert message in capsys.readouterr().err
    assert not Path("masks").exists()
