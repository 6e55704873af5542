"""Small clones of VGMIDI, with its quirks, and MIDI files."""

from __future__ import annotations

import json
from pathlib import Path

import mido

PEOPLE = {
    "age": "26-30", "country": "US", "gender": "Female", "musicianship": 2, "isKnown": False, "ex1_arousal": "1",
    "ex1_description": "secret words", "ex1_valence": "2", "ex2_arousal": "tense", "ex2_valence": "3",
}  # fmt: skip


def person(words: str, **more) -> dict:
    """What somebody answered."""
    return PEOPLE | {"ex1_description": words} | more


def rating(who: dict, arousal, valence) -> dict:
    return who | {"arousal": arousal, "valence": valence}


def write_midi(path: Path, *, seconds: float = 8.0, notes: bool = True, pitch: int = 60) -> Path:
    """A scale in half seconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = mido.MidiFile(ticks_per_beat=480)  # at 120 beats a minute: 960 ticks a second
    track = mido.MidiTrack()
    file.tracks.append(track)
    for step in range(round(seconds * 2)):
        velocity = 80 if notes else 0
        track.append(mido.Message("note_on", note=pitch + step % 12, velocity=velocity, time=0))
        track.append(mido.Message("note_off", note=pitch + step % 12, time=480))
    file.save(path)
    return path


def piece(name: str, *, duration: float = 8.0, measures: int = 4) -> dict:
    return {
        "audio": f"audio/{name}.wav", "duration": duration, "measures": measures,
        "midi": f"Series_NES_The Game_{name}.mid", "name": name,
    }  # fmt: skip


def make_vgmidi(root: Path, *studies: tuple[dict, dict], midi: bool = True) -> Path:
    """Writes studies of pieces and annotations, and a MIDI file of each piece."""
    labelled = root / "labelled"
    (labelled / "annotations").mkdir(parents=True, exist_ok=True)
    for number, (pieces, rated) in enumerate(studies, start=1):
        text = json.dumps({"annotations": rated, "pieces": pieces})
        (labelled / "annotations" / f"vgmidi_raw_{number}.json").write_text(text)
        for place, one in enumerate(pieces.values()):
            if midi:
                write_midi(labelled / "midi" / one["midi"], seconds=one["duration"], pitch=48 + place)  # fmt: skip
    return root


def two_each(names: list[str], people: int, *, measures: int = 4) -> tuple[dict, dict]:
    """A study in which everybody rates two pieces, next to each other."""
    pieces = {f"piece{i}": piece(name, measures=measures) for i, name in enumerate(names)}
    annotations = {}
    for who in range(people):
        for place in (who % len(names), (who + 1) % len(names)):
            level = (place - len(names) / 2) / len(names) + 0.05 * (who % 5)
            curve = [round(level + 0.1 * (i % 3), 3) for i in range(measures)]
            key = f"piece{place}_{who + 1}"
            annotations[key] = rating(person(f"words {who}"), curve, [-x for x in curve])
    return pieces, annotations
