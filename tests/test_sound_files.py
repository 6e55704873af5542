"""Sound of every kind that people have: the same waveform at the same time, or one line that says what is wrong."""

from __future__ import annotations

import contextlib
import struct

import av
import numpy as np
import pytest
import soundfile
from scipy.signal import correlate, resample_poly

from data_prep import audio, decoding, ffmpeg
from data_prep.audio import AUDIO_SUFFIXES, files_below, load_audio, songs_below
from data_prep.base import DataError
from data_prep.folder import read_folder
from data_prep.validation import check
from tests import sound_files
from tests.sound_files import KINDS, RATE, add_pictures, add_sound, encode, make, music
from tests.test_folder_corpus import make_folder, ramp
from tests.test_hostile_input import refused, traced_peak

LOSSLESS = ("alac.m4a", "alac.caf", "flac.mka", "flac.ogg", "wavpack.wv", "tta.tta")

DELAYS = {"raw.aac": 1024 / RATE, "fragments.mp4": 1024 / RATE, "wma.wma": 2048 / RATE}
"""Seconds that FFmpeg's encoders delay sound, in containers that cannot say so: a frame."""


def lag(waveform, rate, expected):
    """Seconds by which a waveform is later than `[n]` at 44.1 kHz, and both where they overlap."""
    if rate != RATE:
        assert rate == 48_000
        expected = resample_poly(expected, 160, 147)
    steps = int(correlate(waveform, expected, method="fft").argmax()) - (len(expected) - 1)
    waveform, expected = waveform[max(steps, 0) :], expected[max(-steps, 0) :]
    both = min(len(waveform), len(expected))
    return steps / rate, waveform[:both], expected[:both]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [1, 2])
def test_the_same_sound_at_the_same_time(tmp_path, kind, channels):
    """Within 1 ms, once a delay is known of that no file of the kind can tell."""
    if channels == 1 and kind in ("wavpack.wv", "tta.tta"):
        return  # one is enough of these
    path = make(tmp_path, kind, channels=channels)
    waveform, rate = load_audio(path)
    expected = music(channels=channels).mean(axis=0)
    late, waveform, expected = lag(waveform, rate, expected)
    assert abs(late - DELAYS.get(kind, 0.0)) < 1e-3
    assert abs(len(waveform) / rate - 6.0) < 0.1  # a frame or two
    error = waveform - expected
    if kind in LOSSLESS:
        assert np.abs(error).max() < (1e-2 if kind in ("wavpack.wv", "tta.tta") else 4e-5)  # 8 bits, 16 bits  # fmt: skip
    else:
        assert np.sqrt((error**2).mean() / (expected**2).mean()) < 0.35  # clicks of noise cost bits
        assert np.corrcoef(waveform, expected)[0, 1] > 0.95


def test_opus_that_libsndfile_gives_up_on(tmp_path):
    """As it comes out of `ffmpeg -c copy`: opened by the one, read by the other, from the beginning."""
    path = sound_files.give_up_opus(tmp_path)
    assert soundfile.info(path).subtype == "OPUS"
    with pytest.raises(soundfile.LibsndfileError):
        soundfile.read(path)
    waveform, rate = load_audio(path)
    late, *_ = lag(waveform, rate, music().mean(axis=0))
    assert abs(late) < 1e-3 and abs(len(waveform) / rate - 6.0) < 0.01


def test_opus_that_libsndfile_ends_early(tmp_path, monkeypatch):
    """Without an error it may stop, too: then it is read from the beginning by the other."""
    path = make(tmp_path, "opus.ogg")
    blocks = decoding._SndFile.blocks
    monkeypatch.setattr(
        decoding._SndFile, "blocks", lambda sound: (block[:96_000] for block in blocks(sound))
    )
    waveform, rate = load_audio(path)
    assert abs(len(waveform) / rate - 6.0) < 0.01


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "opus", "mp3", "aiff", "au", "caf"])
def test_what_libsndfile_decodes_is_as_it_was(tmp_path, monkeypatch, suffix):
    """Bit by bit, and the other decoder is not asked."""
    monkeypatch.setattr(audio, "open_ffmpeg", None)
    path = tmp_path / f"x.{suffix}"
    form = {"format": "OGG", "subtype": "OPUS"} if suffix == "opus" else {}
    soundfile.write(path, music(2.0, 48_000).T, 48_000, **form)
    expected = soundfile.read(path, dtype="float32", always_2d=True)[0].mean(axis=1)
    np.testing.assert_array_equal(load_audio(path)[0], expected)


def test_surround_is_averaged(tmp_path):
    encode(tmp_path / "x.m4a", "aac", music(3.0, channels=6))
    waveform, _ = load_audio(tmp_path / "x.m4a")
    expected = music(3.0, channels=6).mean(axis=0)
    assert lag(waveform, RATE, expected)[0] == 0
    assert 0.8 < np.std(waveform) / np.std(expected) < 1.2


# ---- Videos.


def video(path, *sounds, seconds=6.0, **options):
    """Each sound: a waveform and when it starts."""
    with av.open(path, "w", options=options) as out:
        writers = [add_pictures(out, seconds)]
        writers += [add_sound(out, "aac", wave, start=start) for wave, start in sounds]
        for write in writers:
            write()
    return path


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov"])
def test_of_a_video_the_sound(tmp_path, suffix):
    """Sound that begins later than the pictures keeps its time, as in a player."""
    expected = music().mean(axis=0)
    for start in (0.0, 0.7):
        waveform, rate = load_audio(video(tmp_path / f"x.{suffix}", (music(), start), seconds=3.0))
        late, *_ = lag(waveform, rate, expected)
        assert abs(late - start) < 2e-3 + (0.024 if suffix == "mkv" else 0.0)  # mkv delays the pictures as well  # fmt: skip


def test_of_several_sounds_the_first_alike(tmp_path):
    path = video(tmp_path / "x.mkv", (music(), 0.0), (np.zeros_like(music()), 0.0))
    assert load_audio(path)[0].std() > 0.05


def test_pictures_alone(tmp_path):
    path = video(tmp_path / "x.mp4")
    assert refused(path).endswith("no sound in it")


def test_a_gap_in_the_sound_is_silence(tmp_path):
    """What a recorder lost: later sound keeps its time."""
    first, second = music(2.0), music(2.0)
    with av.open(tmp_path / "x.mka", "w") as out:
        stream = out.add_stream("flac", rate=RATE)
        stream.layout = "stereo"
        frames = []
        for wave, start in ((first, 0), (second, 5 * RATE)):
            frame = av.AudioFrame.from_ndarray(
                (wave * 32767).astype(np.int16).T.reshape(1, -1), "s16", "stereo"
            )
            frame.sample_rate, frame.pts = RATE, start
            frames.append(frame)
        for frame in frames:
            for packet in stream.encode(frame):
                out.mux(packet)
        for packet in stream.encode(None):
            out.mux(packet)
    waveform, _ = load_audio(tmp_path / "x.mka")
    assert abs(len(waveform) / RATE - 7.0) < 0.01
    assert not waveform[round(2.2 * RATE) : round(4.9 * RATE)].any()
    assert waveform[round(5.1 * RATE) :].std() > 0.05


# ---- Lengths, limits, cuts.


def test_a_recording_that_does_not_say_how_long_it_is(tmp_path, monkeypatch):
    """Browsers record webm without a length; raw AAC has none. Both are counted."""
    path = tmp_path / "x.webm"
    with path.open("wb") as file:
        encode(sound_files.Pipe(file), wave=music(), container="webm", **sound_files.WEBM)
    with av.open(path) as container:
        assert container.duration is None or container.streams.audio[0].duration is None
    assert abs(len(load_audio(path)[0]) / 48_000 - 6.0) < 0.05
    raw = make(tmp_path, "raw.aac")
    assert abs(audio.read_sound(raw, lambda sound: sound.frames / sound.rate) - 6.0) < 0.05
    monkeypatch.setenv("DSAML_MAX_HOURS", "0.001")
    for one in (path, raw):
        assert "6 s, longer than the limit of 3.6 s" in refused(one)


def test_limits_hold(tmp_path, monkeypatch):
    path = make(tmp_path, "aac.m4a")
    for name, value, message in (
        ("DSAML_MAX_HOURS", "0.001", "6 s, longer than the limit of 3.6 s"),
        ("DSAML_MAX_GB", "0.001", "0.00212 GB when decoded (2 channels, 44100 Hz)"),
    ):
        monkeypatch.setenv(name, value)
        assert message in refused(path)
        monkeypatch.delenv(name)


def test_memory_is_that_of_the_waveform(tmp_path):
    encode(tmp_path / "x.m4a", "aac", np.zeros((2, RATE * 100), np.float32))
    (waveform, _), peak = traced_peak(lambda: load_audio(tmp_path / "x.m4a"))
    assert len(waveform) > RATE * 99 and peak < 1.2 * 4 * len(waveform) + 8e6


@pytest.mark.parametrize("kind", ["fast.m4a", "aac.m4a", "alac.m4a", "opus.webm", "aac.mka", "fragments.mp4", "tta.tta", "wavpack.wv"])  # fmt: skip
def test_half_a_file_is_said_to_be_cut(tmp_path, kind):
    """As far as the container tells: raw AAC, Ogg and wma do not."""
    path = make(tmp_path, kind)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "cut off" in refused(path)


@pytest.mark.parametrize("kind", [*KINDS, "short.opus"])
def test_every_beginning_of_a_file(tmp_path, kind):
    """Cut anywhere, it is refused or gives the samples that are there: never others."""
    path = make(tmp_path, kind, 3.0) if kind in KINDS else sound_files.give_up_opus(tmp_path, 3.0)
    data, whole = path.read_bytes(), load_audio(path)[0]
    for length in [
        0,
        1,
        4,
        12,
        44,
        100,
        1000,
        *(len(data) * part // 17 for part in range(1, 17)),
        len(data) - 1,
    ]:
        path.write_bytes(data[:length])
        try:
            waveform, _ = load_audio(path)
        except DataError as error:
            assert str(path) in str(error) and "\n" not in str(error)
        else:
            assert len(waveform) <= len(whole) + 4096
            kept = (
                min(len(waveform), len(whole)) - 5000
            )  # the last frames overlap with what is gone
            np.testing.assert_allclose(waveform[: max(kept, 0)], whole[: max(kept, 0)], atol=1e-3)


@pytest.mark.parametrize("kind", ["fast.m4a", "fragments.mp4", "opus.webm", "wma.wma", "raw.aac", "alac.caf", "opus.ogg", "wavpack.wv"])  # fmt: skip
def test_damaged_bytes(tmp_path, kind):
    """Any byte may be another: a waveform within the limits or one line, in time and in memory."""
    path = make(tmp_path, kind, 2.0)
    data, random = path.read_bytes(), np.random.RandomState(0)
    for _ in range(40):
        damaged = bytearray(data)
        for place in random.randint(0, min(len(data), random.choice([100, 1000, 10**9])), 5):
            damaged[place] = random.choice([0, 127, 128, 255, random.randint(256)])
        path.write_bytes(damaged)
        try:
            waveform, rate = load_audio(path)
        except DataError as error:
            assert str(path) in str(error) and "\n" not in str(error)
        else:
            assert len(waveform) and np.isfinite(waveform).all() and audio.RATES[0] <= rate <= audio.RATES[1]  # fmt: skip


def test_bytes_that_are_none(tmp_path):
    random = np.random.RandomState(0)
    for beginning in (
        b"",
        b"\0\0\0\x20ftypM4A ",
        b"\x1aE\xdf\xa3",
        b"OggS",
        b"\xff\xf1",
        b"0&\xb2u\x8ef\xcf\x11",
    ):
        for suffix in (".m4a", ".webm", ".txt"):
            path = tmp_path / f"x{suffix}"
            path.write_bytes(beginning + random.bytes(5000))
            assert (
                "not a sound file" in (said := refused(path))
                or "cut off" in said
                or "no sound" in said
            )
            path.write_bytes(beginning)
            refused(path)


@pytest.mark.parametrize(
    ("kind", "name", "place", "value"),
    [
        ("fast.m4a", b"mdhd", 16, 2**32 - 2), ("fast.m4a", b"mvhd", 16, 2**32 - 2), ("fast.m4a", b"stts", 12, 2**31),
        ("fast.m4a", b"stsz", 8, None), ("fast.m4a", b"stco", 8, 2**31), ("fragments.mp4", b"trun", 8, 2**30),
    ],
)  # fmt: skip
def test_huge_claims(tmp_path, kind, name, place, value):
    """Refused, or decoded as if it had said nothing; neither takes memory for what is claimed."""
    path = make(tmp_path, kind)
    data = bytearray(path.read_bytes())
    at = data.index(name) + place
    data[at - 4 : at + 8 if value is None else at + 4] = (
        data[at - 4 : at] + (struct.pack(">II", 1, 2**31) if value is None else struct.pack(">I", value))
    )  # fmt: skip
    path.write_bytes(data)
    try:
        waveform, _ = load_audio(path)
    except DataError as error:
        assert "\n" not in str(error)
    else:
        assert len(waveform) < 7 * RATE
    if name in (b"stsz", b"trun"):
        assert "counts more samples than it can hold" in refused(path)


def test_a_title_in_no_known_alphabet(tmp_path):
    """Old programs write titles as they like; nobody reads them here."""
    path = tmp_path / "x.m4a"
    with av.open(path, "w") as out:
        out.metadata["title"] = "a title"
        add_sound(out, "aac", music(2.0))()
    data = path.read_bytes()
    assert data.count(b"a title") == 1
    path.write_bytes(data.replace(b"a title", b"\xff\xfe\xe9itle"))
    waveform, _ = load_audio(path)
    assert len(waveform) > RATE


def test_a_codec_that_is_not_decoded(tmp_path):
    """Only those that are listed are given to FFmpeg's decoders."""
    encode(tmp_path / "x.mka", "adpcm_ms", music(2.0))
    assert "coded as adpcm_ms, which this cannot decode" in refused(tmp_path / "x.mka")


# ---- No other file.


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:6.0,\n{other}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile '{other}'\n", "file '{other}'\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 96\na=rtpmap:96 opus/48000\n",
        "[playlist]\nFile1={other}\nNumberOfEntries=1\n", "{other}\n",
        "<?xml version='1.0'?><MPD type='static' mediaPresentationDuration='PT6S'><Period><AdaptationSet mimeType='audio/mp4'>"
        "<Representation id='1' bandwidth='1'><BaseURL>{other}</BaseURL></Representation></AdaptationSet></Period></MPD>",
    ],
    ids=["m3u8", "ffconcat", "concat", "sdp", "pls", "m3u", "dash"],
)  # fmt: skip
@pytest.mark.parametrize("suffix", [".m4a", ".m3u8", ".webm", ".mp4"])
def test_a_playlist_is_no_sound(tmp_path, monkeypatch, text, suffix):
    """However it is called; no other file is opened, by whatever address."""
    other = make(tmp_path, "aac.m4a")
    asked = []
    monkeypatch.setattr(ffmpeg, "_open_nothing", lambda *what: asked.append(what))
    path = tmp_path / f"list{suffix}"
    for address in (other, other.name, f"file:{other}", other.as_uri()):
        path.write_text(text.format(other=address))
        assert "not a sound file" in refused(path)
    assert not asked


def test_a_reference_to_another_file_is_not_followed(tmp_path, monkeypatch):
    """A mov may say that its samples are in another file (`dref`)."""
    asked = []
    monkeypatch.setattr(ffmpeg, "_open_nothing", lambda *what: asked.append(what))
    path = make(tmp_path, "fast.m4a")
    data = bytearray(path.read_bytes())
    at = data.index(b"url ")
    data[at : at + 8] = b"alis" + b"\0\0\0\0"  # no longer in this file
    path.write_bytes(data)
    with contextlib.suppress(DataError):
        load_audio(path)
    assert not asked


# ---- Where they are looked for.


def test_folders_of_folders(tmp_path):
    for name in (
        "a.m4a",
        "one/a.webm",
        "one/a.wma",
        "two/deep/a.mp3",
        ".hidden/b.mp3",
        "one/.c.mp3",
        "two/x.txt",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "two" / "link.mp3").symlink_to(tmp_path / "a.m4a")
    assert len(files_below(tmp_path)) == 4
    found = {
        name: path.relative_to(tmp_path).as_posix() for name, path in songs_below(tmp_path).items()
    }
    assert found == {"a": "a.m4a", "one/a": "one/a.wma", "two/deep/a": "two/deep/a.mp3"}


def test_suffixes_are_those_of_what_is_decoded():
    made = {f".{kind.rpartition('.')[2]}" for kind in KINDS}
    assert made <= set(AUDIO_SUFFIXES)


def test_a_study_of_m4a(tmp_path):
    """The check before preparing: whole ones are used, one that is cut is named."""
    root = make_folder(
        tmp_path / "lab",
        [row for song in ("good", "cut") for row in ramp(song, "ann", [1, 1.5, 2])],
    )
    for song in ("good", "cut"):
        make(root / "audio", "fast.m4a").rename(root / "audio" / f"{song}.m4a")
    cut = root / "audio" / "cut.m4a"
    cut.write_bytes(cut.read_bytes()[:20_000])
    for thorough in (False, True):
        checked = check(read_folder(root), thorough=thorough, workers=1)
        assert [song.song_id for song in checked.songs] == ["good"]
        assert len(checked.damaged) == 1 and "cut.m4a: cut off" in checked.damaged[0]
