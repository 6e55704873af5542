"""Broken and hostile input: one line that says where and what, no traceback, nothing half-written, no code run."""

from __future__ import annotations

import struct
import tracemalloc

import numpy as np
import pytest
import soundfile

from data_prep.audio import load_audio
from data_prep.base import DataError

RATE = 8_000
SECONDS = 40

# ---- Sound.


def noise(seconds=SECONDS, rate=RATE):
    return (0.1 * np.random.RandomState(0).standard_normal(seconds * rate)).astype(np.float32)


def refused(path):
    """What is said of a sound file, which must be one line that names it."""
    with pytest.raises(DataError) as error:
        load_audio(path)
    message = str(error.value)
    assert str(path) in message and "\n" not in message
    return message


def crc(data, polynomial, bits):
    value = 0
    for byte in data:
        value ^= byte << (bits - 8)
        for _ in range(8):
            value = (value << 1) ^ (polynomial if value >> (bits - 1) else 0)
            value &= (1 << bits) - 1
    return value.to_bytes(bits // 8, "big")


def silent_flac(path, blocks, *, rate=44_100, channels=8, block=65_535):
    """Silence as FLAC stores it best: 40 bytes for a block of 65,535 frames, each channel a constant."""
    about = (rate << 44 | (channels - 1) << 41 | 15 << 36 | blocks * block).to_bytes(8, "big")
    stream = b"fLaC" + b"\x80" + (34).to_bytes(3, "big") + struct.pack(">HH", block, block)
    stream += bytes(6) + about + bytes(16)
    for number in range(blocks):
        header = b"\xff\xf8" + bytes([0x70, (channels - 1) << 4 | 8])
        header += chr(number).encode() + struct.pack(">H", block - 1)
        header += crc(header, 0x07, 8)
        frame = header + bytes(3 * channels)
        stream += frame + crc(frame, 0x8005, 16)
    path.write_bytes(stream)


def traced_peak(function):
    tracemalloc.start()
    try:
        result = function()
        return result, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_gigabyte_of_silence_in_a_few_kilobytes(tmp_path, monkeypatch):
    """Whole it needs no more memory than its waveform; above the limit it is refused by its header."""
    path = tmp_path / "silence.flac"
    silent_flac(path, 480)
    assert path.stat().st_size < 25_000
    monkeypatch.setenv("DSAML_MAX_GB", "1")
    message, peak = traced_peak(lambda: refused(path))
    assert "1.01 GB when decoded (8 channels" in message and "$DSAML_MAX_GB" in message
    assert peak < 1e6
    silent_flac(path, 40)
    (waveform, rate), peak = traced_peak(lambda: load_audio(path))
    assert rate == 44_100 and len(waveform) == 40 * 65_535 and not waveform.any()
    assert peak < 4 * len(waveform) + 16e6  # where all channels at once are 84 MB


def test_limits_can_be_changed(tmp_path, monkeypatch):
    path = tmp_path / "x.wav"
    soundfile.write(path, noise(), RATE)
    for name, value, message in (
        ("DSAML_MAX_HOURS", "0.01", "40 s, longer than the limit of 36 s"),
        ("DSAML_MAX_GB", "0.001", "0.00128 GB when decoded (1 channels, 8000 Hz)"),
        ("DSAML_MAX_HOURS", "long", "must be a number above 0"),
        ("DSAML_MAX_GB", "nan", "must be a number above 0"),
    ):
        monkeypatch.setenv(name, value)
        with pytest.raises(DataError) as error:
            load_audio(path)
        assert message in str(error.value) and name in str(error.value)
        monkeypatch.delenv(name)
    monkeypatch.setenv("DSAML_MAX_HOURS", "")
    assert len(load_audio(path)[0]) == SECONDS * RATE


def test_many_channels(tmp_path):
    """A second of 1,024 channels is 33 MB; it is averaged a block at a time."""
    path = tmp_path / "x.wav"
    soundfile.write(path, np.tile(noise(1)[:, None], 64), RATE, subtype="FLOAT")
    np.testing.assert_allclose(load_audio(path)[0], noise(1), atol=1e-6)
    soundfile.write(path, np.zeros((RATE, 1024), np.int16), RATE)
    _, peak = traced_peak(lambda: load_audio(path))
    assert peak < 10e6


@pytest.mark.parametrize("rate", [1, 1_999, 384_001, 768_000])
def test_odd_rates(tmp_path, rate):
    path = tmp_path / "x.wav"
    soundfile.write(path, np.zeros(2 * rate), rate)
    assert f"{rate} Hz; rates from" in refused(path)


@pytest.mark.parametrize(
    ("value", "message"),
    [(np.nan, "not numbers"), (np.inf, "not numbers"), (-np.inf, "not numbers"), (3e38, "not numbers"),
     (1e300, "not numbers"), (-1e11, "samples up to 1e+11")],
)  # fmt: skip
def test_samples_that_are_no_sound(tmp_path, value, message):
    """One of them in two channels; a float32 of 3e38 is finite, the sum of both is not."""
    path = tmp_path / "x.wav"
    samples = np.zeros((100_000, 2))
    samples[70_000] = value
    soundfile.write(path, samples, RATE, subtype="DOUBLE" if value == 1e300 else "FLOAT")
    assert message in refused(path)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "aiff", "au"])
def test_every_beginning_of_a_sound_file(tmp_path, suffix):
    """Cut anywhere, it is refused or gives the samples that are there: never others."""
    path = tmp_path / f"x.{suffix}"
    soundfile.write(path, noise(), RATE)
    data, whole = path.read_bytes(), load_audio(path)[0]
    for length in (0, 1, 4, 12, 44, 100, 1_000, len(data) // 3, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        try:
            waveform, _ = load_audio(path)
        except DataError as error:
            assert str(path) in str(error)
        else:
            assert len(waveform) <= len(whole)
            np.testing.assert_allclose(waveform[:-2000], whole[: len(waveform)][:-2000], atol=1e-3)


def test_a_cut_mp3_is_said_to_be_cut(tmp_path):
    """Its header claims the whole: libsndfile's blocks went on with the samples of the block before."""
    path = tmp_path / "x.mp3"
    soundfile.write(path, noise(), RATE)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "cut off; it claims 40.0 s of sound and has 19." in refused(path)


def test_an_mp3_that_does_not_say_its_length(tmp_path):
    """Of a variable rate without a header the length is estimated, here by half too long."""
    path = tmp_path / "x.mp3"
    quiet_then_loud = np.concatenate([np.zeros(60 * RATE), noise(20), np.zeros(40 * RATE)])
    soundfile.write(path, quiet_then_loud, RATE, bitrate_mode="VARIABLE", compression_level=0.3)
    data = path.read_bytes()
    first, second = data.index(b"\xff\xe3"), data.index(b"\xff\xe3", data.index(b"Xing"))
    path.write_bytes(b"ID3\x04\x00\x00\x00\x00\x00\x64" + b"Info" * 25 + data[second:])
    with soundfile.SoundFile(path) as sound:
        claimed = sound.frames
    waveform, _ = load_audio(path)
    assert first == 0 and len(waveform) < claimed - RATE
    assert abs(len(waveform) - len(quiet_then_loud)) < RATE / 2
    assert not np.abs(waveform[85 * RATE :]).max() > 1e-3


@pytest.mark.parametrize("suffix", ["raw", "vox", "gsm", "au", "mp3", "txt", ""])
def test_the_name_of_a_file_says_nothing(tmp_path, suffix):
    """libsndfile takes any bytes for sound where the name ends in .vox, .gsm or .au, and asks more of a .raw."""
    path = tmp_path / f"x.{suffix}"
    soundfile.write(path, noise(), RATE, format="WAV")
    assert len(load_audio(path)[0]) == SECONDS * RATE
    path.write_bytes(b"I am no music.\n" * 100)
    assert "not a sound file" in refused(path)
