"""Coverage-guided fuzzing of everything that reads other people's files.

Claim: whatever the bytes, a reader returns, or raises the package's own error (or the system's OSError) in one line.
Command: `python experiments/benchmarks/fuzz.py` (needs `pip install atheris`; --seconds for each target, seven minutes in all).
Result: `experiments/results/fuzzing.md`.

Each target runs in a process of its own, begins with small valid files, and ends at its first crash, whose input is kept in
`--scratch`; `--target NAME --replay FILE` reads such a file again.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from timing import measured_on, write_result

Reader = Callable[[Path], object]


def own_annotations(path: Path) -> object:
    """The CSV of `dsaml personalize`."""
    from dsaml_jax.listener import read_annotations

    return read_annotations(path)


def folder_table(path: Path) -> object:
    """The table of a study of one's own."""
    from data_prep.folder import read_annotations

    return read_annotations(path)


def deam_tables(path: Path) -> object:
    """DEAM's three kinds of table, the same bytes as each."""
    from data_prep.base import DataError
    from data_prep.deam import read_averaged, read_raters, read_static

    refused = []
    for read in (read_averaged, read_raters, lambda path: read_static([path])):
        try:
            read(path)
        except DataError as error:
            _require_one_line(error)
            refused.append(error)
    if len(refused) == 3:
        raise refused[0]
    return None


def pmemo_table(path: Path) -> object:
    """PMEmo's table."""
    from data_prep.pmemo import read_dynamic

    return read_dynamic(path)


def sound(path: Path) -> object:
    """A sound file of any format."""
    from data_prep.audio import load_audio

    waveform, rate = load_audio(path)
    assert len(waveform) and np.isfinite(waveform).all() and rate > 0
    return waveform


def run_json(path: Path) -> object:
    """The description of a run."""
    from dsaml_jax.runs import read_run_info

    return read_run_info(path.parent)


def failure_bundle(path: Path) -> object:
    """What a step that failed leaves behind."""
    from dsaml_jax.training import read_bundle

    return read_bundle(path)


# ---- What they begin with.


def csv_seeds(*rows: str) -> Callable[[], list[bytes]]:
    """A table in a few dresses."""
    plain = "\n".join(rows).encode()
    return lambda: [
        plain,
        b"\xef\xbb\xbf" + plain.replace(b"\n", b"\r\n"),
        plain.replace(b",", b' , "') + b'"',
    ]


def sound_seeds() -> list[bytes]:
    """A twentieth of a second in every format that libsndfile writes, and a fifth in some of FFmpeg's."""
    import av
    import soundfile

    samples = 0.1 * np.random.default_rng(0).standard_normal((400, 2))
    seeds = []
    with tempfile.TemporaryDirectory() as folder:
        for suffix in ("wav", "flac", "ogg", "mp3", "aiff", "au", "caf", "w64", "opus"):
            path = Path(folder) / f"x.{suffix}"
            form = {"opus": {"format": "OGG", "subtype": "OPUS"}}.get(suffix, {})
            soundfile.write(path, samples, 8_000, **form)
            seeds.append(path.read_bytes())
        wave = np.zeros((2, 9_600), np.float32)
        for suffix, codec in (
            ("m4a", "aac"),
            ("mka", "alac"),
            ("webm", "libopus"),
            ("wma", "wmav2"),
            ("wv", "wavpack"),
        ):
            path = Path(folder) / f"x.{suffix}"
            with av.open(path, "w") as out:
                stream = out.add_stream(codec, rate=48_000)
                stream.layout, stream.bit_rate = "stereo", 128_000
                frame = av.AudioFrame.from_ndarray(wave, "fltp", "stereo")
                frame.sample_rate = 48_000
                for packet in [*stream.encode(frame), *stream.encode(None)]:
                    out.mux(packet)
            seeds.append(path.read_bytes())
    return seeds


def run_seeds() -> list[bytes]:
    """The description of a small run."""
    from data_prep.features import TINY
    from dsaml_jax.config import preset
    from dsaml_jax.runs import RUN_FILE, RunInfo, write_run_info

    with tempfile.TemporaryDirectory() as folder:
        write_run_info(Path(folder), RunInfo(preset("tiny"), TINY, "synthetic 0123", "a note"))
        return [(Path(folder) / RUN_FILE).read_bytes()]


def bundle_seeds() -> list[bytes]:
    """A bundle of DMER at the smallest width."""
    import jax

    from data_prep.features import TINY
    from dsaml_jax.base import SongBatch
    from dsaml_jax.config import preset, with_settings
    from dsaml_jax.models import DSAML
    from dsaml_jax.runs import initial_variables
    from dsaml_jax.training import Bundle, write_bundle

    small = (
        "width=4",
        "num_heads=1",
        "num_layers=1",
        "ffn_width=1",
        "embedding_width=2",
        "max_position=60",
    )
    config = with_settings(preset("tiny"), [*(f"model.{x}" for x in small), "training.task=dmer"])
    model = DSAML(config.model)
    variables = initial_variables(model, TINY, jax.random.key(0))
    ones = np.ones((1, 4), bool)
    batch = SongBatch(
        log_mel=np.zeros((1, 4, TINY.frames, TINY.mel_bands), np.float32),
        embedding=np.zeros((1, 1, 2), np.float32),
        arousal=np.zeros((1, 4), np.float32), valence=np.zeros((1, 4), np.float32),
        present=ones, labelled=ones,
    )  # fmt: skip
    bundle = Bundle(
        config, 3, "songs 1", variables, None, batch, np.zeros((2, 2), np.uint32), ("1",)
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "step-3.safetensors"
        write_bundle(path, bundle)
        return [path.read_bytes()]


TARGETS: dict[str, tuple[Reader, Callable[[], list[bytes]], str, int]] = {
    "annotations of one's own": (
        own_annotations, csv_seeds("time,arousal,valence", "0.0,0.1,-0.2", "0.5,1,-1"), "x.csv", 2_000,
    ),
    "table of a folder": (
        folder_table, csv_seeds("song_id,annotator_id,time,arousal,valence", "a,b,0.5,0.1,-1"), "x.csv", 2_000,
    ),
    "tables of DEAM": (
        deam_tables,
        lambda: [
            seed for rows in (
                ("song_id,sample_15000ms,sample_15500ms", "1,0.1,-0.2", "2,0.3"),
                ("WorkerId,sample_15000ms,sample_15500ms", "w,0.1,-0.2"),
                ("song_id,arousal_mean,valence_mean", "2001,5,6.5"),
            ) for seed in csv_seeds(*rows)()
        ],
        "x.csv", 2_000,
    ),
    "table of PMEmo": (
        pmemo_table, csv_seeds("musicId,frameTime,Arousal(mean),Valence(mean)", "1,15.5,0.1,0.9"), "x.csv", 2_000,
    ),
    "sound": (sound, sound_seeds, "x.wav", 20_000),
    "run.json": (run_json, run_seeds, "run.json", 4_000),
    "failure bundle": (failure_bundle, bundle_seeds, "x.safetensors", 60_000),
}  # fmt: skip
"""Name -> reader, seeds, name of the file, and the longest input."""


READERS = (
    "data_prep.folder",
    "data_prep.deam",
    "data_prep.pmemo",
    "dsaml_jax.listener.personal",
    "dsaml_jax.training.failures",
)
"""Modules whose branches guide the fuzzer, with those of the package that they load."""


# ---- Running them.


def _require_one_line(error: Exception) -> None:
    text = str(error)
    assert text and len(text.splitlines()) == 1, f"not one line: {text!r}"


def attempt(read: Reader, path: Path, data: bytes) -> bool:
    """Reads these bytes; False if they were refused as they should be. Anything else is raised."""
    from data_prep.base import DataError
    from dsaml_jax.errors import UsageError

    path.write_bytes(data)
    try:
        read(path)
    except (DataError, UsageError) as error:
        _require_one_line(error)
        return False
    except OSError:
        return False
    return True


def fuzz(name: str, seconds: int, scratch: Path) -> None:
    """Runs one target in this process until its time is over or it crashes."""
    try:
        import atheris
    except ImportError:
        sys.exit("this benchmark needs the fuzzer atheris: pip install atheris")
    read, seeds, file, longest = TARGETS[name]
    folder, corpus = scratch / _plain(name), scratch / _plain(name) / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    with atheris.instrument_imports(include=["data_prep", "dsaml_jax"]):
        for module in READERS:
            importlib.import_module(module)
    for number, seed in enumerate(seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    counts = {"inputs": 0, "read": 0}
    path = folder / file

    def one(data: bytes) -> None:
        counts["inputs"] += 1
        counts["read"] += attempt(read, path, data)
        (folder / "counts.json").write_text(json.dumps(counts)) if counts[
            "inputs"
        ] % 50 == 0 else None

    atheris.Setup(
        [sys.argv[0], str(corpus), f"-max_total_time={seconds}", f"-max_len={longest}", "-seed=1",
         "-rss_limit_mb=6000", "-timeout=60", f"-artifact_prefix={folder}/crash-"],
        one,
    )  # fmt: skip
    atheris.Fuzz()


def _plain(name: str) -> str:
    return re.sub(r"\W+", "_", name)


def measure(name: str, seconds: int, scratch: Path) -> str:
    """One line of the table: the target in a process of its own."""
    command = [
        sys.executable,
        __file__,
        "--target",
        name,
        "--seconds",
        str(seconds),
        "--scratch",
        str(scratch),
    ]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    (scratch / _plain(name)).mkdir(parents=True, exist_ok=True)
    (scratch / _plain(name) / "log").write_text(done.stdout + done.stderr)
    print(name, done.returncode, flush=True)
    edges = re.findall(r"cov: (\d+)", done.stderr)
    ran = re.findall(r"^(?:Done |#)(\d+)", done.stderr, re.MULTILINE)
    counts_file = scratch / _plain(name) / "counts.json"
    read = json.loads(counts_file.read_text())["read"] if counts_file.is_file() else 0
    crashes = len(list((scratch / _plain(name)).glob("crash-*")))
    return (
        f"| {name} | {ran[-1] if ran else 0} | {read} | {edges[-1] if edges else '-'} | {crashes} |"
    )


def main() -> None:
    """Fuzzes every target in turn and writes the table; or one of them, here."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--scratch", type=Path, default=Path("fuzzing"))
    parser.add_argument("--target", choices=TARGETS)
    parser.add_argument("--replay", type=Path)
    options = parser.parse_args()
    if options.replay:
        read, _, file, _ = TARGETS[options.target]
        with tempfile.TemporaryDirectory() as folder:
            accepted = attempt(read, Path(folder) / file, options.replay.read_bytes())
        print("read" if accepted else "refused in one line")
        return
    if options.target:
        fuzz(options.target, options.seconds, options.scratch)
        return
    options.scratch.mkdir(parents=True, exist_ok=True)
    rows = [measure(name, options.seconds, options.scratch) for name in TARGETS]
    write_result(
        "fuzzing",
        "# Fuzzing what reads other people's files\n\n"
        f"{measured_on('atheris', 'numpy', 'soundfile', 'safetensors', 'jax')}; {options.seconds} s a target, each in one "
        f"process; `python experiments/benchmarks/fuzz.py --seconds {options.seconds}`.\n\n"
        "| target | inputs | of these read | edges of Python code | crashes |\n|---|---|---|---|---|\n"
        + "\n".join(rows),
    )


if __name__ == "__main__":
    main()
