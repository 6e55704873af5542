"""Simulated annotators: what they agree on, where they differ, and what nobody can know.

The numbers are those of DEAM's raters, as the data card of its 1,802 songs counts them with all traces kept
(`data_prep/listeners.py`: songs 1 to 1000 have ratings without ids and tell nothing of people). Each pair is arousal, valence.
`experiments/simulated_listeners.py` puts both beside each other. No result of any model was looked at.

*What they agree on.* Arousal and valence are additive and linear in the cues (Eerola, Friberg, Bresin 2013,
Frontiers in Psychology 4:487: linear cues explain 77-89 % of the variance of ratings, interactions
nothing). For arousal, loudness dominates and tempo follows (Schubert 2004, Music Perception 21:561; Dean,
Bailes, Schubert 2011, PLoS ONE 6:e18591 turn intensity round and arousal turns with it). For the happy-sad
axis mode matters most, then tempo, register, loudness, articulation and timbre (the ranking of Eerola et
al. 2013). Fast is happy and tense, loud is pleasant and tense (Ilie and Thompson 2006, Music Perception
23:319). The *signs and the order* of the weights below are those findings; the spacing is ours, with mode so little ahead
that the levels of songs correlate by 0.50 (DEAM: 0.64, which would take the lead from mode).

*The level of a rating* is song + person + rest, with DEAM's three variances. The person's part goes together in the two
dimensions (0.8). The rest is retest noise (the same person rating the same piece again differs by about 8 % of the
scale, Schubert 2013, Musicae Scientiae 17:350, here 0.16: a standard deviation of 0.14 per rating), and two parts that are
made equal for want of a measured ratio: taste (a person's own weights of the cues) and what this one song means to
them. A person's part and taste can be learned from their songs; the others cannot.

*Movement.* How far a curve departs from its level differs by a factor: between songs by how much the music changes, between people,
and most of all from one rating to the next. What it does is for the smaller part the music and for the larger
an aimless wander, in a proportion that gives DEAM's correlation between the curves of two raters. Some traces never move; some
people draw many of those.

*Reaction.* People answer 1 to 3 s late (Schubert 2004) and move smoothly. DEAM's raters rather move in steps; these do not.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from data_prep.base import DIMENSIONS
from data_prep.synthetic.music import CUES

SHARED_WEIGHTS = np.array(
    # mode, tempo, loudness, register, brightness, articulation, density
    [
        [0.00, 0.45, 0.60, 0.10, 0.20, 0.15, 0.25],
        [0.36, 0.35, 0.15, 0.20, 0.10, 0.12, 0.05],
    ]
)
"""`[2, 7]`, arousal and valence, before scaling to the spread between songs."""

CUE_SPREAD = np.array([0.85, 0.51, 0.51, 0.51, 0.51, 0.51, 0.51])
"""Standard deviation over songs of the mean of a cue in seconds 15 to 45 (3,000 composed songs)."""

# ---- Level: variances of song, person and rest, 0.051, 0.037; 0.044, 0.045; 0.072, 0.099.

SONG_SPREAD = np.sqrt([0.051, 0.037])
PERSON_SPREAD = np.sqrt([0.044, 0.045])
REST_SPREAD = np.sqrt([0.072, 0.099])
RETEST_NOISE = 0.14
PERSON_CORRELATION = 0.8
"""Between a person's parts in arousal and in valence; of the rest of a rating it is 0.2."""

LISTENING_CORRELATION = 0.32
"""Of the rest without taste, so that of the whole rest it is 0.2."""

# ---- Movement: the standard deviation over time of a trace.

TYPICAL_MOVEMENT = np.array([0.064, 0.059])
"""Median of the traces that move."""

MOST_MOVEMENT = 0.45
"""What one trace in a hundred exceeds."""

PERSON_MOVEMENT = np.sqrt(0.2)
"""Standard deviation of its logarithm between people, who move alike in both dimensions (0.95). Its variance in DEAM is 0.18 and
0.20; the limit above takes some of it."""

LISTENING_MOVEMENT = np.sqrt([0.75, 0.83])
"""The same, from one rating of a person to the next."""

LISTENING_MOVEMENT_CORRELATION = 0.27
SONG_MOVEMENT = 0.65
"""Power of the song's own movement by which people move, one number for both dimensions (correlation 0.99)."""

MUSIC_SHARE = np.array([0.25, 0.13])
"""Of a trace's variance over time, what answers the music. Chosen for DEAM's median correlation of two raters."""

FLATTEST = np.array([0.61, 0.81])
"""Share of flat traces of the person who draws most of them."""

FLAT_POWER = 2.2
"""Of a uniform number of the person, times :data:`FLATTEST`: 0.19 and 0.25 of all traces, hardly any of half of the people."""

WANDER_SECONDS = 5.0
_RESPONSE_RATE = 10  # Hz, the grid on which reactions are simulated


@dataclasses.dataclass(frozen=True)
class Listener:
    """One simulated annotator.

    Attributes:
      weights: `[2, 7]` of arousal and valence.
      offset: `[2]`.
      movement: factor of the standard deviation of a trace over time.
      flat: `[2]` chance that a trace never moves.
      lag: seconds.
      smoothing: time constant of the reaction, seconds.
    """

    weights: np.ndarray
    offset: np.ndarray
    movement: float
    flat: np.ndarray
    lag: float
    smoothing: float


def shared_weights() -> np.ndarray:
    """`[2, 7]`, scaled so that song levels spread as DEAM's do."""
    spread = np.sqrt(np.square(SHARED_WEIGHTS * CUE_SPREAD).sum(axis=1))
    return SHARED_WEIGHTS * (SONG_SPREAD / spread)[:, None]


def taste_spread() -> np.ndarray:
    """`[2]` standard deviation of what taste does to the level of a rating, and of what one song means to a person."""
    return np.sqrt((np.square(REST_SPREAD) - RETEST_NOISE**2) / 2.0)


def draw_listener(random: np.random.RandomState) -> Listener:
    """A person."""
    taste = random.standard_normal((len(DIMENSIONS), len(CUES)))
    spread = taste_spread() / np.sqrt(np.square(CUE_SPREAD).sum())
    return Listener(
        weights=shared_weights() + taste * spread[:, None],
        offset=_pair(random, PERSON_CORRELATION) * PERSON_SPREAD,
        movement=float(np.exp(PERSON_MOVEMENT * random.standard_normal())),
        flat=FLATTEST * random.random_sample() ** FLAT_POWER,
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
    index = np.clip(np.round(times * _RESPONSE_RATE).astype(int), 0, len(cues_at) - 1)
    felt = cues_at @ listener.weights.T
    felt = _delay_and_smooth(felt, listener.lag, listener.smoothing)[index]
    once = np.sqrt(np.square(taste_spread()) + RETEST_NOISE**2)
    level = felt.mean(axis=0) + listener.offset + _pair(random, LISTENING_CORRELATION) * once

    factor = np.exp(LISTENING_MOVEMENT * _pair(random, LISTENING_MOVEMENT_CORRELATION))
    movement = TYPICAL_MOVEMENT * _song_movement(cues_at[index]) * listener.movement * factor
    movement = np.minimum(movement, MOST_MOVEMENT)
    movement = np.where(random.random_sample(2) < listener.flat, 0.0, movement)
    wander = _standard(_slow_noise(len(times), random))
    course = _standard(np.sqrt(MUSIC_SHARE) * _standard(felt) + np.sqrt(1.0 - MUSIC_SHARE) * wander)
    return np.clip(level + movement * course, -1.0, 1.0)


def cue_grid(seconds: float) -> np.ndarray:
    """Times of the 10 Hz grid `[m]`, on which :func:`rate_song` wants the cues."""
    return np.arange(int(seconds * _RESPONSE_RATE)) / _RESPONSE_RATE


def _song_movement(cues: np.ndarray) -> float:
    """By how much a song moves people, about 1, from its cues `[n, 7]`: both dimensions together, in units of their levels' spread."""
    spread = (cues @ shared_weights().T).std(axis=0) / SONG_SPREAD
    return float((np.sqrt(np.square(spread).mean()) / _USUAL_SONG) ** SONG_MOVEMENT)


_USUAL_SONG = 0.475  # median of 3,000 composed songs


def _pair(random: np.random.RandomState, correlation: float) -> np.ndarray:
    """`[2]` standard normal numbers that correlate."""
    first, second = random.standard_normal(2)
    return np.array([first, correlation * first + np.sqrt(1.0 - correlation**2) * second])


def _standard(curves: np.ndarray) -> np.ndarray:
    """Each column of `[n, 2]` to mean 0 and standard deviation 1; a constant one to 0."""
    centred = curves - curves.mean(axis=0)
    spread = centred.std(axis=0)
    return centred / np.where(spread > 1e-9, spread, np.inf)


def _delay_and_smooth(x: np.ndarray, lag: float, smoothing: float) -> np.ndarray:
    """Exponential smoothing of a signal that arrives `lag` seconds late."""
    from scipy.signal import lfilter

    shift = round(lag * _RESPONSE_RATE)
    late = np.concatenate([np.repeat(x[:1], shift, axis=0), x])[: len(x)]
    keep = np.exp(-1.0 / (smoothing * _RESPONSE_RATE))
    smooth, _ = lfilter([1.0 - keep], [1.0, -keep], late, axis=0, zi=late[:1] * keep)
    return np.asarray(smooth)


def _slow_noise(steps: int, random: np.random.RandomState) -> np.ndarray:
    """`[n, 2]` stationary AR(1) noise of variance 1 at 2 Hz."""
    from scipy.signal import lfilter

    keep = np.exp(-0.5 / WANDER_SECONDS)
    draws = random.standard_normal((steps, 2)) * np.sqrt(1.0 - keep**2)
    draws[0] /= np.sqrt(1.0 - keep**2)
    return np.asarray(lfilter([1.0], [1.0, -keep], draws, axis=0))


assert SHARED_WEIGHTS.shape == (len(DIMENSIONS), len(CUES))
