"""A small composer and synthesiser: music-like sound whose emotional cues are known.

A song is a few sections. Each section has seven cues in [-1, 1], and every cue does to the sound what its
name says. All randomness comes from one `numpy.random.RandomState`, whose streams are frozen, and all
arithmetic is float64 rounded to 16 bits at the end, so a seed gives the same samples everywhere.
"""

from __future__ import annotations

import dataclasses

import numpy as np

SAMPLE_RATE = 44_100
SECONDS = 45.0

CUES = ("mode", "tempo", "loudness", "register", "brightness", "articulation", "density")
"""Minor to major; slow to fast; soft to loud; low to high; dull to bright; legato to staccato; sparse
to busy."""

_SCALES = {-1: (0, 2, 3, 5, 7, 8, 10), 1: (0, 2, 4, 5, 7, 9, 11)}  # natural minor, major
_PROGRESSIONS = ((0, 5, 3, 4), (0, 3, 4, 0), (0, 4, 5, 3), (0, 2, 3, 4), (5, 3, 0, 4))
_TABLE = 4096
_HARMONICS = 12


@dataclasses.dataclass(frozen=True)
class Section:
    """A stretch of music with constant cues.

    Attributes:
      start, end: seconds.
      cues: `[7]` in [-1, 1], in the order of :data:`CUES`; `mode` is -1 or 1.
    """

    start: float
    end: float
    cues: np.ndarray


def compose(random: np.random.RandomState) -> tuple[Section, ...]:
    """Draws a song's sections: a character of its own, from which the sections depart.

    Half of the songs are major. The other cues of the character are uniform; a section moves each by a
    normal step of 0.35, and changes mode once in eight.
    """
    character = random.uniform(-0.85, 0.85, len(CUES))
    major = 1.0 if random.random_sample() < 0.5 else -1.0
    sections = []
    start = 0.0
    while start < SECONDS:
        length = random.uniform(7.0, 15.0)
        end = SECONDS if SECONDS - (start + length) < 5.0 else start + length
        cues = np.clip(character + 0.35 * random.standard_normal(len(CUES)), -1.0, 1.0)
        cues[0] = -major if random.random_sample() < 0.125 else major
        sections.append(Section(start, end, cues))
        start = end
    return tuple(sections)


def cue_curves(sections: tuple[Section, ...], times: np.ndarray) -> np.ndarray:
    """Cues sounding at each time: `[n]` seconds to `[n, 7]`."""
    starts = np.array([section.start for section in sections])
    index = np.searchsorted(starts, times, side="right") - 1
    return np.stack([section.cues for section in sections])[np.maximum(index, 0)]


def render(sections: tuple[Section, ...], random: np.random.RandomState) -> np.ndarray:
    """Plays the sections: pad chords, bass, melody and a noise drum. `[samples]` int16."""
    song = np.zeros(round(SECONDS * SAMPLE_RATE))
    tonic = 48 + random.randint(12)
    progression = _PROGRESSIONS[random.randint(len(_PROGRESSIONS))]
    voice = random.uniform(0.4, 1.0, _HARMONICS)  # the song's own instrument
    bar = 0
    for section in sections:
        cue = dict(zip(CUES, section.cues, strict=True))
        beat = 60.0 / (92.0 * 2.0 ** (0.65 * cue["tempo"]))
        gain = 10.0 ** ((-23.0 + 9.0 * cue["loudness"]) / 20.0)
        table = _wavetable(voice, cue["brightness"])
        scale = _SCALES[int(cue["mode"])]
        shift = round(9.0 * cue["register"])
        held = 0.65 - 0.4 * cue["articulation"]  # share of its slot that a note sounds
        busy = 0.5 + 0.4 * cue["density"]
        degree = random.randint(7)
        time = section.start
        while time < section.end - 0.05:
            chord = progression[bar % len(progression)]
            bar += 1
            length = min(4 * beat, section.end - time)
            for step in (0, 2, 4):
                pitch = tonic + 12 + shift + _pitch(scale, chord + step)
                _play(song, table, time, length * max(held, 0.5), pitch, 0.32 * gain)
            for quarter in range(4):
                onset = time + quarter * beat
                if onset >= section.end - 0.05:
                    break
                _play(
                    song,
                    table,
                    onset,
                    beat * held,
                    tonic + _pitch(scale, chord) + shift // 2,
                    0.6 * gain,
                )
                for half in range(2):
                    at = onset + half * beat / 2
                    draw, move = random.random_sample(2)
                    if at < section.end - 0.05 and draw < busy:
                        degree = int(np.clip(degree + round(5 * move - 2.5), -3, 10))
                        pitch = tonic + 24 + shift + _pitch(scale, degree)
                        _play(song, table, at, beat / 2 * held, pitch, 0.8 * gain)
                    noise = random.standard_normal(1500)
                    if draw < busy - 0.2 and at < section.end - 0.05:
                        _add(song, at, noise * np.exp(-np.arange(1500) / 250.0) * 0.25 * gain)
            time += length
    return np.round(np.clip(song, -1.0, 1.0) * 32767.0).astype(np.int16)


def _pitch(scale: tuple[int, ...], degree: int) -> int:
    octave, step = divmod(degree, len(scale))
    return 12 * octave + scale[step]


def _wavetable(voice: np.ndarray, brightness: float) -> np.ndarray:
    """One period of a tone whose upper harmonics fall off by `brightness`."""
    number = np.arange(1, _HARMONICS + 1)
    amplitude = voice * number ** -(2.0 - 1.3 * brightness)
    phase = 2.0 * np.pi * np.arange(_TABLE) / _TABLE
    table = amplitude @ np.sin(number[:, None] * phase)
    return table / np.sqrt(np.mean(np.square(table)))


def _play(
    song: np.ndarray, table: np.ndarray, onset: float, seconds: float, pitch: float, gain: float
) -> None:
    """Adds a note with a short attack and a decay."""
    frequency = 440.0 * 2.0 ** ((pitch - 69) / 12)
    count = max(int(seconds * SAMPLE_RATE), 64)
    index = np.arange(count)
    tone = table[(index * (frequency * _TABLE / SAMPLE_RATE)).astype(np.int64) % _TABLE]
    attack = np.minimum(index / 400.0, 1.0)
    release = np.minimum((count - index) / min(1500.0, count / 2), 1.0)
    decay = 1.0 - 0.6 * index / count
    _add(song, onset, tone * (attack * release * decay * gain * 0.5))


def _add(song: np.ndarray, onset: float, sound: np.ndarray) -> None:
    first = int(onset * SAMPLE_RATE)
    room = len(song) - first
    song[first : first + len(sound)] += sound[:room]
