"""Sound files as other programs write them, made by FFmpeg's encoders."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import soundfile

RATE = 44_100


def music(seconds=6.0, rate=RATE, channels=2):
    """`[channels, n]` float32: a tone that glides and swells, noise, and a click after each second."""
    time = np.arange(round(seconds * rate)) / rate
    random = np.random.RandomState(0)
    wave = (
        0.2 * np.sin(2 * np.pi * (200 + 20 * np.sin(time)) * time) * (0.6 + 0.4 * np.sin(3 * time))
    )
    wave += 0.01 * random.randn(len(time))
    wave += 0.2 * (time % 1.0 < 0.004) * random.uniform(-1, 1, len(time))
    return np.stack([wave * (1 - 0.3 * channel / channels) for channel in range(channels)]).astype(np.float32)  # fmt: skip


def encode(
    path, codec, wave, rate=RATE, *, to_rate=None, container=None, codec_options=None, **options
):
    """Writes `[channels, n]`; options are those of the container."""
    with av.open(path, "w", format=container, options=options) as out:
        add_sound(out, codec, wave, rate, to_rate=to_rate, codec_options=codec_options)()


def add_sound(out, codec, wave, rate=RATE, *, to_rate=None, codec_options=None, start=0.0):
    """Adds a stream to an open container; what it returns writes the sound."""
    stream = out.add_stream(codec, rate=to_rate or rate, options=codec_options or {})
    stream.layout = {1: "mono", 2: "stereo", 6: "5.1"}[len(wave)]
    stream.bit_rate = 128_000

    def write():
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(wave), "fltp", stream.layout.name)
        frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), round(start * rate)
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            out.mux(packet)

    return write


def add_pictures(out, seconds, rate=10):
    """Adds grey pictures."""
    stream = out.add_stream("mpeg4", rate=rate)
    stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"

    def write():
        for number in range(round(seconds * rate)):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), number % 200, np.uint8))
            frame.pts, frame.time_base = number, Fraction(1, rate)
            for packet in stream.encode(frame):
                out.mux(packet)
        for packet in stream.encode(None):
            out.mux(packet)

    return write


def copy_sound(source, target, container):
    """Moves packets to another container, as `ffmpeg -c copy` does."""
    with av.open(source) as read, av.open(target, "w", format=container) as out:
        stream = read.streams.audio[0]
        copied = out.add_stream_from_template(stream)
        for packet in read.demux(stream):
            if packet.dts is not None:
                packet.stream = copied
                out.mux(packet)


class Pipe:
    """A file that can only be written to, so that no length is ever put into its header."""

    def __init__(self, file):
        self.write = file.write


WEBM = {"codec": "libopus", "to_rate": 48_000}
FRAGMENTS = {"codec": "aac", "movflags": "frag_keyframe+empty_moov+default_base_moof"}
KINDS = {
    "aac.m4a": {"codec": "aac"}, "fast.m4a": {"codec": "aac", "movflags": "faststart"}, "fragments.mp4": FRAGMENTS,
    "aac.mov": {"codec": "aac"}, "aac.mka": {"codec": "aac"}, "raw.aac": {"codec": "aac", "container": "adts"},
    "mp3.mp4": {"codec": "libmp3lame"}, "alac.m4a": {"codec": "alac"}, "alac.caf": {"codec": "alac"},
    "opus.webm": WEBM, "opus.mka": WEBM, "opus.mp4": WEBM, "opus.ogg": WEBM, "flac.mka": {"codec": "flac"},
    "flac.ogg": {"codec": "flac"}, "wma.wma": {"codec": "wmav2"}, "wavpack.wv": {"codec": "wavpack"},
    "tta.tta": {"codec": "tta"},
}  # fmt: skip
"""File name to how it is made."""


def make(folder, kind, seconds=6.0, channels=2):
    """Path of a file of a kind."""
    path = folder / kind
    encode(path, wave=music(seconds, channels=channels), **KINDS[kind])
    return path


def give_up_opus(folder, seconds=6.0):
    """Ogg Opus that libsndfile opens and cannot decode: short packets, moved there from webm."""
    options = {"frame_duration": "2.5"}
    encode(folder / "short.webm", "libopus", music(seconds, 48_000), 48_000, codec_options=options)
    copy_sound(folder / "short.webm", folder / "short.opus", "ogg")
    return folder / "short.opus"


def write_sound(path):
    """Twenty seconds of noise, the same for every file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.RandomState(0).standard_normal(44_100 * 20)
    soundfile.write(path, 0.1 * noise, 44_100)
