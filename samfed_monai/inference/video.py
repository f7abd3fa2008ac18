"""Segments every n-th frame of a video; writes masks, a video with their outlines, and the other forms."""

from __future__ import annotations

import logging
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from samfed_monai.core.errors import refused
from samfed_monai.core.io import naming
from samfed_monai.core.text import counted
from samfed_monai.core.validators import installed, require
from samfed_monai.reports.overlays import outlined

if TYPE_CHECKING:
    import av

    from samfed_monai.inference.forms import MaskForms
    from samfed_monai.inference.predictor import Predictor

logger = logging.getLogger(__name__)

PER_SECOND = 2
"""Frames per second that are segmented without ``--every``."""
AT_ONCE = 256
"""Frames on the disk at a time, about 500 MB for full HD."""
MARK = (213, 94, 0)
"""Colour of the frame around a picture whose mask is doubtful: Okabe & Ito's vermilion."""
_CONTAINERS = "mov,avi,matroska,mpeg,mpegts,asf,ogg"
"""Formats that are opened; playlists, which name other files and URLs, are not."""
_MISSING = 1.0  # tolerated seconds between the last frame and the container's length, which may be that of the sound


class Frame(NamedTuple):
    """One picture of a video.

    Args:
        number: from 1.
        seconds: since the start.
        picture: (H, W, 3) uint8, RGB, upright.
    """

    number: int
    seconds: float
    picture: NDArray[np.uint8]


class Video:
    """A video file (MP4, AVI, MKV, …) that PyAV reads.

    Args:
        path: the file.

    Raises:
        Refused: PyAV is not installed; not a video, no video stream, or no frame that can be decoded.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        require(installed("av", "video", str(path), "no PyAV", "the package PyAV to read videos"))
        with self._opened() as (container, stream):
            self.rate = float(stream.average_rate or stream.guessed_rate or 25)
            # the first timestamp need not be 0, and Matroska's duration counts from 0
            late = container.start_time or 0 if "matroska" in container.format.name else 0
            self.seconds = max(((container.duration or 0) - late) / 1e6, stream.frames / self.rate)
        if next(self.frames(1), None) is None:
            hint = "copy it again from its source, or save it as MP4 (H.264)"
            raise refused(path, found="no frame that can be decoded", expected="a video", hint=hint)

    def frames(self, every: int) -> Iterator[Frame]:
        """Yields every n-th frame from the first on, deinterlaced if needed.

        Frames from a damaged one to the next key frame are left out. Warnings at the end report lost and interlaced
        frames.
        """
        with self._opened() as (container, stream):
            reading = _Reading(container, stream, self.rate)
            for frame in filtered(reading.checked_for_interlacing(), "bwdif", "mode=send_frame:deint=interlaced"):
                number, time, turns = reading.queued.popleft()
                if (number - 1) % every == 0:
                    yield Frame(number, time, np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns)))
        if reading.interlaced:
            of = f"{reading.interlaced} of {counted(reading.read, 'frame')}"
            logger.warning("%s: interlaced video; %s were deinterlaced", self.path, of)
        if reading.left_out or reading.end < self.seconds - _MISSING:
            damaged = counted(reading.left_out, "damaged frame is", "damaged frames are")
            lost, all_seconds = f"{damaged} left out; " if reading.left_out else "", max(reading.end, self.seconds)
            logger.warning("%s: %sread up to %.1f of %.1f seconds", self.path, lost, reading.end, all_seconds)

    @contextmanager
    def _opened(self) -> Iterator[tuple[Any, Any]]:
        import av

        av.logging.set_level(None)  # PyAV would log to standard error
        try:
            container = av.open(str(self.path), options={"protocol_whitelist": "file", "format_whitelist": _CONTAINERS})
        except (av.error.FFmpegError, OSError) as error:
            hint = "copy it again from its source: a truncated MP4 cannot be read"
            raise refused(self.path, f"no video ({error.strerror})", "a video: MP4, AVI, MKV", hint) from None
        with container:
            if not container.streams.video:
                found = f"no video stream, {counted(len(container.streams.audio), 'audio stream')}"
                raise refused(self.path, found, "a video: MP4, AVI, MKV")
            stream = container.streams.video[0]
            if min(stream.width, stream.height) < 3:  # which the filter bwdif cannot process
                raise refused(self.path, f"{stream.width} x {stream.height} pixels", "a video of at least 3 x 3 pixels")
            stream.thread_type = "SLICE"  # frame threads keep failing after the first error
            stream.codec_context.options = {"err_detect": "explode"}  # else missing parts are concealed
            yield container, stream


class _Reading:
    """Decodes the intact frames of an opened video, and counts the rest."""

    def __init__(self, container: Any, stream: Any, rate: float) -> None:
        self.packets, self.rate = container.demux(stream), rate
        self.read = self.left_out = self.interlaced = 0
        self.end = 0.0  # of the last intact frame, in seconds
        self.queued: deque[tuple[int, float, int]] = deque()  # number, seconds and turns of frames in the filters

    def checked_for_interlacing(self) -> Iterator[av.VideoFrame]:
        for frame in filtered(self._intact(), "idet"):
            self.interlaced += frame.interlaced_frame
            yield frame

    def _intact(self) -> Iterator[av.VideoFrame]:
        intact, start = True, None
        for frame in self._decoded():
            intact = frame is not None and not frame.is_corrupt and (intact or frame.key_frame)
            self.left_out += not intact
            if frame is None:
                continue
            self.read += 1
            time = (self.read - 1) / self.rate if frame.time is None else float(frame.time)
            start = time if start is None else start
            if intact:
                self.end = time - start + 1 / self.rate
                self.queued.append((self.read, time - start, frame.rotation // 90))
                yield frame

    def _decoded(self) -> Iterator[Any]:
        """Yields frames in presentation order, and ``None`` for a packet that cannot be decoded."""
        import av

        while True:
            try:
                yield from next(self.packets).decode()
            except StopIteration:
                return
            except av.error.FFmpegError:
                yield None


def filtered(frames: Iterable[av.VideoFrame], name: str, options: str = "") -> Iterator[av.VideoFrame]:
    """Passes frames through an FFmpeg filter, one output frame for each, in order.

    ``idet`` marks frames whose two fields are from different moments, whatever the file's flag; ``bwdif`` makes a frame
    from the first field of marked frames.

    Args:
        frames: frames, whose size and format may change.
        name: name of the filter.
        options: options of the filter.
    """
    import av

    graph: av.filter.Graph | None = None
    graph_shape = None

    def pushed(frame: av.VideoFrame | None) -> Iterator[av.VideoFrame]:
        if graph is not None:
            graph.vpush(frame)
        with suppress(av.error.BlockingIOError, av.error.EOFError):
            while graph is not None:
                yield graph.vpull()

    for frame in frames:
        shape = (frame.width, frame.height, frame.format.name)
        if shape != graph_shape:
            yield from pushed(None)
            graph, graph_shape = av.filter.Graph(), shape
            base = frame.time_base or Fraction(1, 1000)
            buffer = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=base)
            graph.link_nodes(buffer, graph.add(name, options), graph.add("buffersink")).configure()
        yield from pushed(frame)
    yield from pushed(None)


class OutlineVideo:
    """Writes pictures as an MP4 that plays at the speed of the source.

    Args:
        path: the file.
        rate: approximate number of pictures per second.
    """

    def __init__(self, path: Path, rate: float) -> None:
        import av

        self.container = av.open(str(path), "w")
        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        options = {"mbtree": "0"}  # mbtree reads uninitialised memory, so the same pictures would give other bytes
        stream = self.container.add_stream(codec, rate=Fraction(rate).limit_denominator(1000), options=options)
        self.stream = cast("av.VideoStream", stream)
        self.stream.pix_fmt = "yuv420p"
        self.stream.codec_context.time_base = Fraction(1, 1000)
        self._last = -1

    def add(self, picture: NDArray[np.uint8], seconds: float, *, marked: bool) -> None:
        """Appends a picture (H, W, 3), with a frame around it if it is marked."""
        import av

        height, width = (side - side % 2 for side in picture.shape[:2])  # the encoder needs even sides
        if self._last < 0:
            self.stream.height, self.stream.width = height, width
        if marked:
            border = max(3, min(height, width) // 50)
            inside = picture[border:-border, border:-border].copy()
            picture = np.full_like(picture, MARK)
            picture[border:-border, border:-border] = inside
        shown = av.VideoFrame.from_ndarray(picture, "rgb24")
        shown = shown.reformat(self.stream.width, self.stream.height, "yuv420p")
        self._last = max(round(seconds * 1000), self._last + 1)
        shown.pts, shown.time_base = self._last, Fraction(1, 1000)
        self.container.mux(self.stream.encode(shown))

    def close(self) -> None:
        self.container.mux(self.stream.encode())
        self.container.close()


def segment_video(
    predictor: Predictor, video: Video, output: str, forms: MaskForms, *, every: int | None, probabilities: bool
) -> None:
    """Writes ``<name>/<frame number>.png`` for every n-th frame, the other forms, and an outline video ``<name>.mp4``.

    Args:
        predictor: the predictor.
        video: the video.
        output: folder for the masks.
        forms: the other forms.
        every: n; ``None`` takes :data:`PER_SECOND` frames per second.
        probabilities: whether to write probability maps too.
    """
    name, every = video.path.stem, every or max(1, round(video.rate / PER_SECOND))
    frames, total, doubtful = video.frames(every), 0, 0
    with tempfile.TemporaryDirectory(prefix="samfed-") as scratch:
        place = Path(scratch) / "outlines.mp4"
        overlay = OutlineVideo(place, video.rate / every) if "overlays" in forms.folders else None
        while batch := list(islice(frames, AT_ONCE)):
            with tempfile.TemporaryDirectory(dir=scratch) as folder:
                (Path(folder) / name).mkdir()
                for frame in batch:
                    with naming(path := Path(folder) / name / f"{frame.number:06d}.png"):
                        Image.fromarray(frame.picture).save(path, compress_level=1)
                assessed = predictor.write(folder, output, probabilities=probabilities, parts=True, forms=forms)
            for frame in batch:
                frame_name = f"{name}/{frame.number:06d}"
                mask, found = forms.mask_in(Path(output) / f"{frame_name}.png"), assessed[frame_name]
                file = {"file_name": video.path.name, "frame": frame.number}
                forms.add(frame_name, frame.picture, mask, file, found, seconds=frame.seconds)
                if overlay:
                    overlay.add(outlined(frame.picture, mask), frame.seconds, marked=found.doubtful)
                total, doubtful = total + 1, doubtful + found.doubtful
        if overlay:
            overlay.close()
            forms.write_file("overlays", f"{name}.mp4", place.read_bytes())
    made = f"masks of {counted(total, 'frame')} (1 of every {every}), {doubtful} doubtful"
    logger.info("%s: %s, in %s", video.path.name, made, Path(output) / name)
