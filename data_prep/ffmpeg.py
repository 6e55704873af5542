"""FFmpeg's decoders (PyAV), for what libsndfile does not know: m4a, mp4, webm, wma and their kin.

They are told nothing but bytes: no name, no protocol, no file beside. They may use the containers and codecs that
are listed here and no others: no playlists, no pictures.

Encoders delay sound. What a file says of that is taken off, so that curves keep their time; raw AAC (and mp4 in
fragments) says nothing, and is 23 ms late with FFmpeg's encoder; wma 46 ms.
"""

from __future__ import annotations

import io
import mmap
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from data_prep.decoding import BLOCK_SAMPLES, CUT_SECONDS, Damaged, Undecodable

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream
    from av.container import InputContainer
    from av.packet import Packet

GAP_SECONDS = 0.05
"""Sound that comes later than what is before it by more than this has silence before it, as in a player; less is
rounding of times."""

CONTAINERS = ("mov", "matroska", "asf", "aac", "caf", "ogg", "wv", "ape", "tta")
"""FFmpeg's names of what may hold sound: `mov` is m4a, mp4 and 3gp too, `matroska` mkv, mka and webm, `asf` wma."""

CODECS = (
    "aac", "alac", "opus", "vorbis", "flac", "mp3float", "mp3", "mp2float", "mp2", "ac3", "eac3", "wmav1", "wmav2",
    "wmapro", "wmalossless", "wavpack", "ape", "tta", "pcm_u8", "pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_s24be",
    "pcm_s32le", "pcm_s32be", "pcm_f32le", "pcm_f32be", "pcm_f64le", "pcm_f64be", "pcm_alaw", "pcm_mulaw",
)  # fmt: skip
"""FFmpeg's names of the codecs of sound that are decoded."""

_TABLES = re.compile(
    rb"stsz\0{4}(?P<size>.{4})(?P<samples>.{4})|trun[\0\1]\0[\0-\x0f][\0-\5](?P<run>.{4})",
    re.DOTALL,
)
"""Tables of an mp4 that may count samples without a byte for each: all of one size, or a fragment's with defaults."""

_ESTIMATED = ("aac",)
"""Containers whose length FFmpeg guesses by the rate of the first bytes."""

MICROSECONDS = 1e6
"""FFmpeg's unit for a container as a whole."""


@contextmanager
def open_ffmpeg(file: io.FileIO) -> Iterator[_FFmpeg]:
    """Opens a file for FFmpeg's decoders.

    Raises:
      Undecodable: also from the block, where decoding fails.
      Damaged: cut off, or without sound.
    """
    import av

    try:
        yield _FFmpeg(file)
    except (av.FFmpegError, OSError) as error:  # not all of theirs are OSErrors
        if _lacks_its_end(file):
            raise Damaged("cut off") from None
        raise Undecodable(" ".join((error.strerror or "malformed").split())) from None


def _lacks_its_end(file: io.FileIO) -> bool:
    """Whether the outermost boxes of an mp4 say that it is longer than it is."""
    length, place = os.fstat(file.fileno()).st_size, 0
    while place + 8 <= length:
        file.seek(place)
        head = file.read(16)
        size = int.from_bytes(head[8:] if head[:4] == b"\0\0\0\1" else head[:4])
        if size < 8 or (place == 0 and head[4:8] != b"ftyp"):
            return False
        place += size
    return place > length


class _Nameless:
    """The bytes of a file; FFmpeg's libraries make much of names."""

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        self.read, self.tell = file.read, file.tell

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Moves to an offset, or answers that it cannot; headers may ask for any."""
        try:
            return self._file.seek(offset, whence)
        except (OSError, OverflowError):
            return -1


def _require_honest_tables(file: io.FileIO) -> None:
    """Refuses an mp4 that counts more samples than it has bytes: FFmpeg keeps 40 bytes in memory for each."""
    length = os.fstat(file.fileno()).st_size
    if not length:
        return
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for found in _TABLES.finditer(content):
            size, samples, run = (int.from_bytes(field or b"") for field in found.groups())
            if max(size * samples, run) > length:
                raise Damaged("counts more samples than it can hold")


def _open_nothing(*_: Any) -> NoReturn:
    raise PermissionError("a sound file may not open another file")


@contextmanager
def _container(file: io.FileIO) -> Iterator[tuple[InputContainer, AudioStream]]:
    """A file from its beginning, and the stream that players would choose."""
    import av
    from av.audio.stream import AudioStream
    from av.container import InputContainer

    file.seek(0)
    allowed = {
        "format_whitelist": ",".join(CONTAINERS),
        "codec_whitelist": ",".join(CODECS),
        "protocol_whitelist": "none",
    }
    told = int(av.__version__.split(".")[0]) < 19  # later ones take a title in any alphabet anyway
    titles: dict[str, Any] = {"metadata_errors": "replace"} if told else {}
    with av.open(_Nameless(file), options=allowed, io_open=_open_nothing, **titles) as container:
        assert isinstance(container, InputContainer)
        stream = container.streams.best("audio")
        if not isinstance(stream, AudioStream):
            raise Damaged("no sound in it")
        codec = None if stream.codec_context is None else stream.codec_context.name
        if codec not in CODECS:
            raise Damaged(
                f"its sound is coded as {codec or 'nobody knows what'}, which this cannot decode"
            )
        yield container, stream


class _FFmpeg:
    """A :class:`Sound`. The file is read once without decoding: its header alone may be wrong about its length."""

    counted, may_be_given_up = True, False

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        _require_honest_tables(file)
        with _container(file) as (container, stream):
            self._origin = (container.start_time or 0) / MICROSECONDS
            first, heard, reached = None, 0.0, 0.0
            for packet in _packets(container):
                is_sound = packet.stream_index == stream.index
                if is_sound and first is None:
                    first = next(iter(stream.decode(packet)), None)
                if packet.pts is not None and packet.time_base is not None:
                    end = float((packet.pts + (packet.duration or 0)) * packet.time_base)
                    reached = max(reached, end - self._origin)
                    if is_sound:
                        heard = max(heard, end - self._origin)
            claimed = _claimed_seconds(container, stream)
            there = heard if stream.duration else reached
        if first is None:
            raise Damaged("no sound in it")
        if claimed - there > CUT_SECONDS:
            raise Damaged(f"cut off; it claims {claimed:.1f} s and has {there:.1f} s")
        # Not the header's: of some AAC the rate and the channels are known when it is decoded.
        self.rate, self.channels = first.sample_rate, first.layout.nb_channels
        self.frames = round(heard * self.rate)

    def blocks(self) -> Iterator[np.ndarray]:
        import av

        filled = 0
        with _container(self._file) as (container, stream):
            for packet in _packets(container, stream):
                try:
                    frames = stream.decode(packet)
                except av.FFmpegError:
                    raise Damaged(
                        f"damaged or cut off after {filled / self.rate:.1f} s; encode it again"
                    ) from None
                for frame in frames:
                    for block in self._in_time(frame, filled):
                        yield block
                        filled += len(block)

    def _in_time(self, frame: AudioFrame, filled: int) -> Iterator[np.ndarray]:
        """A frame, and before it silence where the file has none up to its time."""
        if frame.sample_rate != self.rate:
            raise Damaged(f"its rate changes from {self.rate} to {frame.sample_rate} Hz")
        if frame.pts is not None and frame.time_base is not None:
            begins = float(frame.pts * frame.time_base) - self._origin
            missing = round(begins * self.rate) - filled
            if missing > GAP_SECONDS * self.rate:
                yield from _silence(missing, self.channels)
        yield _samples(frame)

    def reaches(self, frame: int) -> bool:
        return frame < self.frames  # it has been read


def _packets(container: InputContainer, *streams: AudioStream) -> Iterator[Packet]:
    """Packets of a container, without those that the end of the file has cut in two."""
    import av

    try:
        yield from (packet for packet in container.demux(*streams) if not packet.is_corrupt)
    except av.FFmpegError:
        return  # whoever counts what came before sees that it is cut off


def _claimed_seconds(container: InputContainer, stream: AudioStream) -> float:
    """How long the header says that the sound is, or all that is there; 0 where it does not say."""
    if container.format.name in _ESTIMATED:
        return 0.0
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) / MICROSECONDS


def _silence(frames: int, channels: int) -> Iterator[np.ndarray]:
    most = max(1, BLOCK_SAMPLES // channels)
    for done in range(0, frames, most):
        yield np.zeros((min(most, frames - done), channels), np.float32)


def _samples(frame: AudioFrame) -> np.ndarray:
    """`[n, channels]` float32, integers brought to [-1, 1)."""
    samples: np.ndarray = frame.to_ndarray()
    channels = frame.layout.nb_channels
    samples = samples.T if frame.format.is_planar else samples.reshape(-1, channels)
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128) / 128
    if samples.dtype.kind == "i":
        return samples.astype(np.float32) / float(2 ** (8 * samples.itemsize - 1))
    with np.errstate(over="ignore"):  # infinite samples are refused by whoever asks
        return samples.astype(np.float32)
