"""A video file that is played forwards: the frame on screen at any time. PyAV, so FFmpeg.

Time is in seconds since the first frame that can be shown. A frame is on screen from its timestamp to the next one's, so
files of variable rate need no special case.
"""

import os
from collections.abc import Iterator
from io import BytesIO
from typing import NamedTuple

import av
import numpy as np
from av.format import Flags
from av.stream import Disposition
from av.video.reformatter import Interpolation, VideoReformatter

from mim_jax.data.decoders import Info
from mim_jax.data.image import Unreadable

_MAX_PIXELS = 1 << 26  # of a frame: a header of a few bytes may promise gigabytes
_FASTEST = 240.0  # frames per second; above, a file of variable rate gives the rate of its clock
_FOREIGN = ('hls', 'dash', 'concat', 'sdp', 'rtsp', 'image2', 'lavfi')  # may name other files
_AHEAD = 10.0  # seconds that are decoded rather than jumped over, where the file has no index
_BACK = (0.0, 10.0)  # seconds before the wanted time to look for a key frame
_RESIZE = Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INT  # without the last, brightness is off by two
_UNTIMED = 'avi'  # its timestamps follow the order of decoding, so its frames are counted


class Timed(NamedTuple):
    """A decoded frame."""

    time: float  # seconds since the first frame
    picture: av.VideoFrame


class PyAV:
    """A file that is played forwards, with jumps to key frames where they save work."""

    def __init__(self, file: str | bytes):
        self.file, self.container, self.info, self.searchable = file, None, None, True
        try:
            self._rewind()
            if self.next is None:
                raise Unreadable('only one frame' + ' can be decoded' * bool(self.failed))
            self.info = self._describe(self.now.picture)
            self.rate = self.info.rate
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> 'PyAV':
        return self

    def __exit__(self, *_) -> None:
        self.close()

    @property
    def tolerance(self) -> float:
        """Seconds; Matroska rounds to milliseconds."""
        return min(1e-3, 0.25 / self.rate)

    def close(self) -> None:
        self.pictures = self.now = self.next = None  # no circle of references keeps the decoder
        if self.container is not None:
            self.container.close()

    def pixels(self, time: float, size: tuple[int, int], form: str) -> np.ndarray:
        """uint8[*size, C]: the frame on screen at `time`. Times may only grow.

        Raises:
            Unreadable: the file breaks off, or is broken, before it.
        """
        return self.draw(self.at(time).picture, size, form)

    def at(self, time: float) -> Timed:
        """The frame on screen; times may only grow. Errors as `pixels`."""
        if self._jump_pays(time):
            self._jump(time)
        while self.next is not None and self.next.time <= time + self.tolerance:
            self._step()
        self._check(time)
        return self.now

    def between(self, start: float, end: float) -> Iterator[Timed]:
        """The frame on screen at `start` and all after it that come before `end`. Errors as `pixels`."""
        yield self.at(start)
        while self.next is not None and self.next.time < end - self.tolerance:
            self._check(self.next.time - self.tolerance)
            self._step()
            yield self.now
        self._check(end - self.tolerance)

    def draw(self, picture: av.VideoFrame, size: tuple[int, int], form: str) -> np.ndarray:
        """A frame as displayed: uint8[*size, C], C by the pixel format."""
        transposed, flips = _turn(picture)
        height, width = size[::-1] if transposed else size
        small = self.reformatter.reformat(picture, width, height, form, interpolation=_RESIZE, threads=1)
        array = small.to_ndarray()
        array = array[..., None] if array.ndim == 2 else array
        array = array.swapaxes(0, 1) if transposed else array
        return array[:: flips[0], :: flips[1]]

    def _rewind(self) -> None:
        """Opens the file, again if need be, and decodes its first two frames: they show the origin of time and what is coming."""
        self.close()
        self.container = _open(self.file)
        self.stream = _best(self.container)
        self.unit = self.stream.time_base.as_integer_ratio()  # fractions are slow, and these are asked of every packet
        codec = self.stream.codec_context
        if codec.width * codec.height > _MAX_PIXELS:
            raise Unreadable(f'{codec.height} x {codec.width} pixels, more than a frame may have')
        codec.thread_count = 1  # rows are decoded in parallel
        codec.options = {'max_pixels': str(_MAX_PIXELS)}
        self.rate = self.info.rate if self.info else float(self.stream.average_rate or self.stream.guessed_rate or 25)
        self.counted = _is_raw(self.container) or self.container.format.name == _UNTIMED
        self.reformatter, self.origin = VideoReformatter(), 0.0
        self.reached, self.failed, self.broken = 0.0, [], ''
        self.pictures, self.now, self.next = self._decode(), None, None
        self._step()
        if self.next is None:
            raise Unreadable(f'no frame can be decoded{self.broken and ": " + self.broken}')
        self.origin = self.next.time
        self.next, self.reached = self.next._replace(time=0.0), self.reached - self.origin
        self.failed = [time - self.origin for time in self.failed]
        self._step()

    def _step(self) -> None:
        """One frame on."""
        self.now, picture = self.next, next(self.pictures, None)
        if picture is None:
            self.next = None
            return
        before = self.now.time if self.now else -1 / self.rate
        if picture.pts is None or self.counted:
            self.next = Timed(before + 1 / self.rate, picture)
        else:
            time = self._seconds(picture.pts)
            self.next = Timed(max(time, before) if self.now else time, picture)

    def _decode(self) -> Iterator[av.VideoFrame]:
        """Frames in order of presentation to the end of the file; notes the packets that are broken."""
        for packet in self._packets():
            start = None if packet is None or packet.pts is None or self.counted else self._seconds(packet.pts)
            if start is not None:
                self.reached = max(self.reached, start + self._span(packet.duration))
            try:
                if packet is not None and packet.is_corrupt:
                    raise av.InvalidDataError(0, 'damaged packet')
                yield from self.stream.decode(packet)
            except av.FFmpegError as error:
                self.broken = error.strerror or str(error)
                if start is not None:
                    self.failed.append(start)

    def _packets(self) -> Iterator[av.Packet | None]:
        """None last, which makes the decoder give what it holds."""
        try:
            for packet in self.container.demux(self.stream):
                if packet.size:
                    yield packet
        except av.FFmpegError as error:
            self.broken = error.strerror or str(error)
        except IndexError:
            pass  # PyAV's, after the last packet, where a stream appeared on the way
        yield None

    def _span(self, ticks: int | None) -> float:
        """Seconds that so many units of the stream's clock take."""
        return (ticks or 0) * self.unit[0] / self.unit[1]

    def _seconds(self, ticks: int) -> float:
        """When that is, from the first frame on."""
        return self._span(ticks) - self.origin

    def _describe(self, picture: av.VideoFrame) -> Info:
        """Of the whole file."""
        duration = max(self._duration(), self.next.time)
        rate = self.rate
        if rate > _FASTEST:
            rate = _ends(self.file, self.stream.index, rate)[2] / duration
        height, width = picture.height, picture.width
        if aspect := self.stream.sample_aspect_ratio:
            width = round(width * aspect)
        return Info(duration, rate, *((width, height) if _turn(picture)[0] else (height, width)))

    def _duration(self) -> float:
        """What the file says of this stream; what it says of all of them is worth less, so the packets are looked through."""
        if _is_raw(self.container):
            return _ends(self.file, self.stream.index, self.rate)[0]
        if tag := _clock(self.stream.metadata.get('DURATION', '')):  # Matroska's, which has no other of one stream
            return tag - self.origin
        if self.stream.duration and self.stream.duration > 0:
            start = self.stream.start_time
            first = self.origin if start is None else self._span(start)
            return first + self._span(self.stream.duration) - self.origin
        whole = (self.container.duration or 0) / av.time_base
        if whole and len(self.container.streams) == 1:
            return whole + (self.container.start_time or 0) / av.time_base - self.origin
        own, all_streams, _ = _ends(self.file, self.stream.index, self.rate)
        return max(own, whole * (all_streams < whole - 1)) - self.origin

    def _jump_pays(self, time: float) -> bool:
        """There is a key frame between here and the wanted time, or likely so."""
        if not self.searchable or self.counted or self.next is None or time < self.next.time + 1:
            return False
        index = self.stream.index_entries
        found = index.search_timestamp(int((time + self.origin) / self.stream.time_base))
        if found < 0 or found == len(index) - 1:  # some files are indexed no further than they were read
            return time > self.next.time + _AHEAD
        return self._seconds(index[found].timestamp) > self.next.time + 1

    def _jump(self, time: float) -> None:
        """To a key frame not after the time; to the beginning where the file does not let itself be searched."""
        for back in _BACK:
            try:
                ticks = int((max(0.0, time - back) + self.origin) / self.stream.time_base)
                self.container.seek(ticks, stream=self.stream)
            except av.FFmpegError:
                break
            self.pictures, self.now, self.next = self._decode(), None, None
            self._step()
            if self.next is None or self.next.picture.pts is None:
                break
            if self.next.time <= time + self.tolerance:
                self._step()
                return
        self._rewind()
        self.searchable = False

    def _check(self, time: float) -> None:
        """A frame may be held, but not in the place of one that is lost."""
        shown = self.now.time + max(1 / self.rate, self._span(self.now.picture.duration))
        lost = any(self.now.time < failed <= time for failed in self.failed)
        if self.next is None and time > shown + 1 / self.rate:
            lost |= max(self.reached, self.info.duration) > shown + 1 / self.rate
        if lost:
            why = f' ({self.broken})' if self.broken else ''
            raise Unreadable(
                f'cut off or damaged{why}: can be read up to {self.now.time:.2f} s of {self.info.duration:.2f} s'
            )


def _open(file: str | bytes) -> av.container.InputContainer:
    """A container that may not lead to other files or the network."""
    source = BytesIO(file) if isinstance(file, bytes) else f'file:{os.fspath(file)}'
    try:
        container = av.open(source, options={'protocol_whitelist': 'file'}, metadata_errors='replace')
    except av.InvalidDataError as error:
        raise Unreadable(_no_video(file)) from error
    except (FileNotFoundError, IsADirectoryError, PermissionError):
        raise
    except av.FFmpegError as error:
        raise Unreadable(f'cannot be opened as a video: {error.strerror}') from error
    name = container.format.name
    if name == 'tty' or name.endswith('_pipe') or any(word in name.split(',') for word in _FOREIGN):
        container.close()
        raise Unreadable(_no_video(file) if name == 'tty' else f'not a video, but {container.format.long_name}')
    return container


def _no_video(file: str | bytes) -> str:
    if isinstance(file, bytes):
        head = file[:12]
    else:
        with open(file, 'rb') as stream:
            head = stream.read(12)
    if head[4:8] == b'ftyp':
        return 'MP4 file without its index (moov): was it cut off?'
    return f'not a video: starts with {head!r}'


def _best(container: av.container.InputContainer) -> av.VideoStream:
    """The video; the cover of a record of music is none."""
    stream = container.streams.best('video')
    if stream is None or stream.disposition & Disposition.attached_pic:
        kinds = sorted({stream.type for stream in container.streams} - {'video'})
        raise Unreadable(f'no video stream, {", ".join(kinds) or "nothing"} only')
    if stream.codec_context is None:
        raise Unreadable('the video is in a format that FFmpeg cannot decode')
    return stream


def _turn(picture: av.VideoFrame) -> tuple[bool, tuple[int, int]]:
    """The display matrix: whether rows and columns change places, then the steps (1 or -1) along height and width."""
    matrix = next((data for data in picture.side_data if data.type.name == 'DISPLAYMATRIX'), None)
    if matrix is None:
        return False, (1, 1)
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32, 5).astype(np.int64)
    transposed = abs(b) + abs(c) > abs(a) + abs(d)
    down, right = (b, c) if transposed else (d, a)
    return bool(transposed), (-1 if down < 0 else 1, -1 if right < 0 else 1)


def _is_raw(container: av.container.InputContainer) -> bool:
    """A bare stream without timestamps."""
    return bool(container.format.flags & Flags.no_timestamps.value)


def _clock(text: str) -> float:
    """Seconds of 'HH:MM:SS.fraction'; 0 if it is nothing like it."""
    try:
        hours, minutes, seconds = text.split(':')
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError:
        return 0.0


def _ends(file: str | bytes, index: int, rate: float) -> tuple[float, float, int]:
    """Seconds at which stream `index` and the last of all streams end, and the packets of `index`; nothing is decoded."""
    own = last = 0.0
    count = 0
    with _open(file) as container:
        try:
            for packet in container.demux():
                if not packet.size:
                    continue
                end = float(((packet.pts or 0) + (packet.duration or 0)) * packet.time_base)
                last = max(last, end)
                if packet.stream_index == index:
                    count += 1
                    own = max(own, end if packet.pts is not None and not _is_raw(container) else count / rate)
        except (av.FFmpegError, IndexError):
            pass  # what is before it counts
    return own, last, count
