"""What every decoder of sound answers, and libsndfile, the first of the two."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    import soundfile

BLOCK_SAMPLES = 1 << 20
"""Samples, of all channels together, that are decoded at once at most."""

CUT_SECONDS = 1.0
"""A file whose sound ends this much before it says has been cut off."""


class Undecodable(Exception):
    """Why no decoder knows the bytes of a file, in one line without its name."""


class Damaged(Exception):
    """What is wrong with a sound file that is one, likewise."""


class Sound(Protocol):
    """An open sound file.

    Attributes:
      rate: Hz.
      channels: of each frame.
      frames: how many there should be.
      counted: whether it says so itself; of some mp3 files the length is an estimate.
      may_be_given_up: whether another decoder may know better, where this one fails.
    """

    rate: int
    channels: int
    frames: int
    counted: bool
    may_be_given_up: bool

    def blocks(self) -> Iterator[np.ndarray]:
        """All frames from the first, `[n, channels]` float32 each.

        Raises:
          Undecodable: something in it cannot be decoded.
          Damaged: it is cut off, or breaks off.
        """

    def reaches(self, frame: int) -> bool:
        """Whether there is sound at a frame."""


@contextmanager
def open_sndfile(file: io.FileIO) -> Iterator[_SndFile]:
    """Opens a file for libsndfile.

    Raises:
      Undecodable: also from the block, where decoding fails.
    """
    import soundfile

    counted = _says_its_length(file)
    file.seek(0)
    try:
        # It gets no name: by some it would take any bytes for sound, and not all are text.
        with soundfile.SoundFile(file.fileno(), closefd=False) as sound:
            yield _SndFile(sound, counted)
    except soundfile.LibsndfileError as error:
        raise Undecodable(error.error_string.strip() or "malformed") from None
    except RuntimeError as error:
        raise Undecodable(str(error)) from None


class _SndFile:
    """A :class:`Sound`."""

    def __init__(self, sound: soundfile.SoundFile, counted: bool) -> None:
        self._sound = sound
        self.rate, self.channels, self.frames = sound.samplerate, sound.channels, sound.frames
        self.counted, self.may_be_given_up = counted, sound.subtype == "OPUS"

    def blocks(self) -> Iterator[np.ndarray]:
        frames = max(1, BLOCK_SAMPLES // self.channels)
        # Not sound.blocks(): where a file ends early, that goes on with the samples of the block before.
        while len(block := self._sound.read(frames, dtype="float32", always_2d=True)):
            yield block

    def reaches(self, frame: int) -> bool:
        self._sound.seek(frame)
        return len(self._sound.read(1)) > 0


def _says_its_length(file: io.FileIO) -> bool:
    """Whether a file says how long it is. Of an mp3 without a Xing header the length is estimated."""
    file.seek(0)
    tag = file.read(10)
    size = 0
    if tag.startswith(b"ID3") and len(tag) == 10:
        size = 10 + sum(byte << shift for byte, shift in zip(tag[6:], (21, 14, 7, 0), strict=True))
    file.seek(size)
    first = file.read(4096)
    is_mp3 = first[:1] == b"\xff"
    return not is_mp3 or any(name in first for name in (b"Xing", b"Info", b"VBRI"))
