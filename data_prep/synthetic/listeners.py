"""Simulated annotators: what they agree on, where they differ, and what nobody can know.

*What they agree on.* Arousal and valence are additive and linear in the cues (Eerola, Friberg, Bresin 2013,
Frontiers in Psychology 4:487: linear cues explain 77-89 % of the variance of ratings, interactions
nothing). For arousal, loudness dominates and tempo follows (Schubert 2004, Music Perception 21:561; Dean,
Bailes, Schubert 2011, PLoS ONE 6:e18591 turn intensity round and arousal turns with it). For the happy-sad
axis mode matters most, then tempo, register, loudness, articulation and timbre (the ranking of Eerola et
al. 2013). Fast is happy and tense, loud is pleasant and tense (Ilie and Thompson 2006, Music Perception
23:319). The *signs and the order* of the weights below are those findings; the spacing is ours.

*Reaction.* People answer 1 to 3 s late (Schubert 2004) and move smoothly.

*What nobody can know.* The same person rating the same piece again differs by about 8 % of the scale
(Schubert 2013, Musicae Scientiae 17:350), here 0.16: a standard deviation of 0.14 per rating. Half of that
variance is a shift of the whole song, half moves.

*Where they differ.* DEAM's raters differ by 0.337 in arousal and 0.312 in valence in songs 2 to 1000, whose raters nobody knows (0.344
and 0.381 in songs 1001 to 2000, 0.340 and 0.349 in all). What retest noise leaves
of that variance is split in three equal parts, for want of a published ratio: how a person uses the
scale (an offset, in every song), their taste (the weights of their cues and their gain), and what this one song
means to them (an offset in this song only). The first two can be learned from a song; the third cannot.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from data_prep.synthetic.music import CUES

DIMENSIONS = ("arousal", "valence")

SHARED_WEIGHTS = np.array(
    # mode, tempo, loudness, register, brightness, articulation, density
    [
        [0.00, 0.45, 0.60, 0.10, 0.20, 0.15, 0.25],
        [0.60, 0.35, 0.15, 0.20, 0.10, 0.12, 0.05],
    ]
)
"""`[2, 7]`, arousal and valence, before scaling to the spread between songs."""

SONG_SPREAD = np.array([0.28, 0.23])
"""Standard deviation of songs' mean levels in DEAM (arousal, valence)."""

RATER_SPREAD = np.array([0.337, 0.312])
"""Standard deviation between raters at one moment of one song, in DEAM's songs 2 to 1000."""

RETEST_NOISE = 0.14
CUE_SPREAD = np.array([1.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5])
"""Standard deviation of the composer's cues over songs."""

GAIN_SPREAD = 0.2
_RESPONSE_RATE = 10  # Hz, the grid on which reactions are simulated


@dataclasses.dataclass(frozen=True)
class Listener:
    """One simulated annotator.

    Attributes:
      weights: `[2, 7]` of arousal and valence.
      offset: `[2]`.
      gain: of the whole response.
      lag: seconds.
      smoothing: time constant of the reaction, seconds.
    """

    weights: np.ndarray
    offset: np.ndarray
    gain: float
    lag: float
    smoothing: float


def shared_weights() -> np.ndarray:
    """`[2, 7]`, scaled so that song levels spread as DEAM's do."""
    spread = np.sqrt(np.square(SHARED_WEIGHTS * CUE_SPREAD).sum(axis=1))
    return SHARED_WEIGHTS * (SONG_SPREAD / spread)[:, None]


def stable_part() -> np.ndarray:
    """`[2]` standard deviation of each of the three equal parts of stable difference."""
    return np.sqrt((np.square(RATER_SPREAD) - RETEST_NOISE**2) / 3.0)


def draw_listener(random: np.random.RandomState) -> Listener:
    """A person."""
    shared, part = shared_weights(), stable_part()
    # Gain scales the shared response; the rest of the taste is spread over all cues alike.
    by_gain = GAIN_SPREAD * SONG_SPREAD
    by_weights = np.sqrt(np.square(part) - np.square(by_gain))
    spread = by_weights / np.sqrt(np.square(CUE_SPREAD).sum())
    taste = random.standard_normal(shared.shape) * spread[:, None]
    return Listener(
        weights=shared + taste,
        offset=random.standard_normal(2) * part,
        gain=float(1.0 + GAIN_SPREAD * random.standard_normal()),
        lag=random.uniform(1.0, 3.0),
        smoothing=random.uniform(0.5, 2.0),
    )


def rate_song(
    listener: Listener,
    cues_at: np.ndarray,
    times: np.ndarray,
    random: np.random.RandomState,
) -> np.ndarray:
    """The curves a listener draws for a song.

    Args:
      listener: who.
      cues_at: `[m, 7]` cues at 10 Hz from second 0.
      times: `[n]` seconds at which the answer is sampled.
      random: consumed; what differs from one listening to the next.

    Returns:
      `[n, 2]` arousal and valence in [-1, 1].
    """
    felt = cues_at @ listener.weights.T * listener.gain
    felt = _delay_and_smooth(felt, listener.lag, listener.smoothing)
    index = np.clip(np.round(times * _RESPONSE_RATE).astype(int), 0, len(felt) - 1)
    noise = RETEST_NOISE / np.sqrt(2.0)
    song_offset = random.standard_normal(2) * np.sqrt(np.square(stable_part()) + noise**2)
    wander = _slow_noise(len(times), random) * noise
    return np.clip(felt[index] + listener.offset + song_offset + wander, -1.0, 1.0)


def cue_grid(seconds: float) -> np.ndarray:
    """Times of the 10 Hz grid `[m]`, on which :func:`rate_song` wants the cues."""
    return np.arange(int(seconds * _RESPONSE_RATE)) / _RESPONSE_RATE


def _delay_and_smooth(x: np.ndarray, lag: float, smoothing: float) -> np.ndarray:
    """Exponential smoothing of a signal that arrives `lag` seconds late."""
    from scipy.signal import lfilter

    shift = round(lag * _RESPONSE_RATE)
    late = np.concatenate([np.repeat(x[:1], shift, axis=0), x])[: len(x)]
    keep = np.exp(-1.0 / (smoothing * _RESPONSE_RATE))
    smooth, _ = lfilter([1.0 - keep], [1.0, -keep], late, axis=0, zi=late[:1] * keep)
    return np.asarray(smooth)


def _slow_noise(steps: int, random: np.random.RandomState, seconds: float = 5.0) -> np.ndarray:
    """`[n, 2]` stationary AR(1) noise of variance 1 with the given correlation time at 2 Hz."""
    from scipy.signal import lfilter

    keep = np.exp(-0.5 / seconds)
    draws = random.standard_normal((steps, 2)) * np.sqrt(1.0 - keep**2)
    draws[0] /= np.sqrt(1.0 - keep**2)
    return np.asarray(lfilter([1.0], [1.0, -keep], draws, axis=0))


assert SHARED_WEIGHTS.shape == (len(DIMENSIONS), len(CUES))
