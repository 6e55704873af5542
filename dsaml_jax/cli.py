"""The command `dsaml`. Bad input ends in one line that says what to do, and an exit status."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from data_prep.audio import MAX_GB, MAX_HOURS, RATES
from data_prep.base import DataError, printable
from data_prep.features import EMBEDDINGS
from data_prep.shards import STREAM_ABOVE_GB
from dsaml_jax import commands
from dsaml_jax.errors import Interrupted, UsageError
from experiments import NAMES as EXPERIMENTS

_EPILOG = (
    "Every command: --quiet says nothing, --debug shows tracebacks. '{} --help' explains a command."
)

_LIMITS = (
    f"Sound may be {MAX_HOURS:g} hours long ($DSAML_MAX_HOURS changes that) and, all channels decoded\n"
    f"to float32, {MAX_GB:g} GB large ($DSAML_MAX_GB), at {RATES[0]:,} to {RATES[1]:,} Hz."
)


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        _enable_compile_cache()
        if not options.debug:
            _silence_background_threads()
        command: Callable[[argparse.Namespace], None] = options.run
        with _terminable():
            command(options)
        return 0
    except Interrupted as error:
        print(f"dsaml: {error}", file=sys.stderr)
        return 0 if error.signal == signal.SIGTERM else 128 + error.signal
    except _Terminated:
        if not options.goes_on:
            return _fail(options, _Terminated(), "terminated", 128 + signal.SIGTERM)
        print("dsaml: stopped; what is done is kept, and the same command goes on", file=sys.stderr)
        return 0
    except (UsageError, DataError) as error:
        return _fail(options, error, str(error), 2)
    except KeyboardInterrupt as error:
        return _fail(options, error, "interrupted; start the same command again", 130)
    except BrokenPipeError:  # whoever read our output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except MemoryError as error:
        return _fail(options, error, f"not enough memory ({error}); see 'Limits' in the README", 1)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        return _fail(options, error, f"{place}{error.strerror or error}", 1)


def _fail(options: argparse.Namespace, error: BaseException, message: str, status: int) -> int:
    if options.debug:
        raise error
    print(f"dsaml: {printable(' '.join(message.split()))}", file=sys.stderr)
    return status


class _Terminated(BaseException):
    """SIGTERM came to a command that does not catch it itself."""


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Turns SIGTERM into an exception, so that nothing is left half-written."""

    def terminate(number: int, frame: object) -> None:
        raise _Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _silence_background_threads() -> None:
    """Orbax writes in threads and raises their errors again here; nobody needs to read them twice.

    (It also closes its event loop while a failed thread still reports to it.)
    """
    import logging
    import warnings

    from absl import logging as absl_logging

    threading.excepthook = lambda _: None
    sys.unraisablehook = lambda _: None
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    absl_logging.set_verbosity(absl_logging.FATAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL + 1)


def _enable_compile_cache() -> None:
    """Keeps compiled programs between commands, in $DSAML_CACHE or the user's cache folder."""
    import jax

    base = os.environ.get("DSAML_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "dsaml_jax"
    )
    jax.config.update("jax_compilation_cache_dir", base)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


# ---- What they accept.


Add = Callable[..., argparse.ArgumentParser]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dsaml",
        description="Predicts how arousal and valence of music move, for listeners in general and, after one "
        "annotated song, for one listener.",
        epilog=_EPILOG.format("dsaml COMMAND"),
    )
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(
        name: str,
        run: Callable[[argparse.Namespace], None],
        summary: str,
        more: str = "",
        *,
        goes_on: bool = False,
    ) -> argparse.ArgumentParser:
        command = subparsers.add_parser(
            name,
            help=summary,
            description=f"{summary}. {more}",
            formatter_class=argparse.RawTextHelpFormatter,
        )
        command.set_defaults(run=run, goes_on=goes_on)
        command.add_argument("--quiet", action="store_true", help="print nothing but errors")
        command.add_argument("--debug", action="store_true", help="show tracebacks")
        return command

    _add_demo(add)
    _add_prepare(add)
    _add_describe(add)
    _add_train(add)
    _add_evaluate(add)
    _add_personalize(add)
    _add_predict(add)
    _add_convert(add)
    _add_studio(add)
    _add_checkpoint(add)
    _add_runs(add)
    _add_experiment(add)
    return parser


def _add_demo(add: Add) -> None:
    demo = add("demo", commands.demo_command, "Make a corpus, train, evaluate, personalise and write a report",
               "A few minutes on two cores. Start it again to go on after an interruption.", goes_on=True)  # fmt: skip
    demo.add_argument(
        "--quick", action="store_true", help="everything smaller: under two minutes, poor numbers"
    )
    demo.add_argument(
        "--workdir",
        type=Path,
        default=Path("dsaml_demo"),
        help="where everything goes (default: %(default)s)",
    )
    demo.add_argument(
        "--seed", type=int, default=0, help="of the corpus and of training (default: %(default)s)"
    )


def _add_prepare(add: Add) -> None:
    prepare = add("prepare", commands.prepare_command, "Turn a corpus into TFDS shards of features",
                  "Done once; training never touches a sound file. Start it again to go on after an\n"
                  f"interruption, or when the corpus has grown: no sound is decoded twice.\n{_LIMITS}", goes_on=True)  # fmt: skip
    prepare.add_argument("corpus", choices=("deam", "pmemo", "folder", "synthetic"),
                         help="deam, pmemo: your copy of it, see the README\n"
                              "folder: your own study: audio/ and annotations.csv with the columns\n"
                              "  song_id, annotator_id, time [s], arousal, valence (or one of them; in [-1, 1])\n"
                              "synthetic: made here, in DEAM's layout")  # fmt: skip
    prepare.add_argument("--root", type=Path, required=True, help="folder of the corpus (synthetic: where to make it)")  # fmt: skip
    prepare.add_argument("--out", type=Path, help="folder for prepared data")
    prepare.add_argument("--check", action="store_true", help="read every file, list what is missing or damaged, and stop there")  # fmt: skip
    prepare.add_argument("--features", choices=("full", "tiny"), default="full",
                         help="full: 51 x 128 patches, as published\ntiny: 11 x 32, for --preset tiny (default: %(default)s)")  # fmt: skip
    prepare.add_argument("--embedding", choices=EMBEDDINGS, default="spectral",
                         help="global embedding\nspectral: statistics of the mel bands, no weights (default)\n"
                              "imagebind: its audio tower, at the rate it was trained on\n"
                              "imagebind-reference: the same, fed 44.1 kHz as published")  # fmt: skip
    prepare.add_argument("--embedding-per", choices=("clip", "step"), default="clip",
                         help="clip: one embedding per window of 30 s\nstep: one for the 30 s around every step (default: %(default)s)")  # fmt: skip
    prepare.add_argument("--embedding-dtype", choices=("float32", "bfloat16"), default="float32",
                         help="in which ImageBind computes; bfloat16 is for accelerators, 1 %% off (default: %(default)s)")  # fmt: skip
    _add_imagebind_weights(prepare)
    prepare.add_argument("--songs", type=int, help="only so many songs (synthetic: make so many; default 400)")  # fmt: skip
    prepare.add_argument("--audio-start", type=float, metavar="SECONDS",
                         help="deam, pmemo: the sound files are excerpts that begin at this second of the song")  # fmt: skip
    prepare.add_argument("--flat", choices=("keep", "drop"),
                         help="traces of single raters that hardly move: keep them (default), or drop them in the\n"
                              "dimension in which they are flat, as published")  # fmt: skip
    prepare.add_argument("--name", help="folder: name of the corpus (default: that of the folder)")
    prepare.add_argument("--annotators", type=int, default=100, help="synthetic: how many listeners (default: %(default)s)")  # fmt: skip
    prepare.add_argument("--seed", type=int, default=0, help="synthetic: of the corpus (default: %(default)s)")  # fmt: skip
    prepare.add_argument("--workers", type=_positive, help="processes (default: all cores)")
    prepare.add_argument("--beam-runner", metavar="RUNNER",
                         help="write the shards by Apache Beam (extra [beam]): DirectRunner, FlinkRunner, ...\n"
                              "--root and --out must be seen by every worker under the same path")  # fmt: skip
    prepare.add_argument("--beam-options", default="", metavar="FLAGS",
                         help="flags of the runner, in one string: --beam-options='--flink_master=host:8081'")  # fmt: skip


def _add_describe(add: Add) -> None:
    describe = add("describe", commands.describe_command, "Show the data card of a prepared corpus")
    describe.add_argument("--data", type=Path, required=True, help="folder of prepared data")


def _add_train(add: Add) -> None:
    train = add("train", commands.train_command, "Train, or go on with, a run",
                "The same --workdir with the same settings continues after an interruption. SIGTERM and ctrl-C save\n"
                "first; a second one insists.", goes_on=True)  # fmt: skip
    train.add_argument("--data", type=Path, required=True, help="folder of prepared data")
    train.add_argument("--workdir", type=Path, required=True, help="folder of the run")
    _add_stream_above(train)
    train.add_argument("--task", choices=("pdmer", "dmer"),
                       help="pdmer: meta-learning over annotators (default)\ndmer: the mean curve")  # fmt: skip
    train.add_argument("--protocol", choices=("clean", "reference"),
                       help="clean: hold out people and songs (default)\nreference: as published, hold out songs alone; DMER then learns the corpus's own mean curves.\nPDMER takes people with more than 15 songs with --preset reference")  # fmt: skip
    _add_folds(train)
    train.add_argument("--steps", type=int, help="optimiser steps (default: the preset's)")
    train.add_argument("--seed", type=int, help="of everything random (default: 0)")
    train.add_argument("--preset", choices=("reference", "default", "tiny"), default="default",
                       help="reference: the published settings\ndefault: the same network, adapting as we found better\ntiny: for a CPU, with --features tiny")  # fmt: skip
    train.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                       help="any setting, e.g. --set meta.steps=4; a wrong key lists the known ones")  # fmt: skip
    train.add_argument("--distributed", action="store_true",
                       help="this is one of several processes that train together; each is started with the same\n"
                            "command and sees the same --data and --workdir. Slurm, Open MPI, Kubernetes and TPU pods\n"
                            "say who is who; elsewhere the three options below do")  # fmt: skip
    train.add_argument("--coordinator", metavar="HOST:PORT", help="address of the first process")
    train.add_argument("--processes", type=_positive, metavar="N", help="how many there are")
    train.add_argument("--process", type=int, metavar="I", help="which this is, from 0")


def _add_evaluate(add: Add) -> None:
    evaluate = add("evaluate", commands.evaluate_command, "Score a run on the test songs, beside simple baselines")  # fmt: skip
    evaluate.add_argument("--data", type=Path, required=True, help="folder of prepared data")
    evaluate.add_argument("--workdir", type=Path, required=True, help="folder of the run; results go there")  # fmt: skip
    evaluate.add_argument("--protocol", choices=("clean", "reference"),
                          help="clean: unseen songs and annotators, adapt on another song (default: as trained)\nreference: as published, adapt on the first 30 s of a song, judge the rest")  # fmt: skip
    _add_folds(evaluate)
    _add_stream_above(evaluate)
    evaluate.add_argument("--seen-songs", action="store_true", help="judge also by songs and people that the model was trained on, as of another corpus")  # fmt: skip
    evaluate.add_argument("--dmer", type=Path, help="a DMER run, for the baselines that start from it")  # fmt: skip


def _add_personalize(add: Add) -> None:
    personalize = add("personalize", commands.personalize_command, "Adapt a model to one listener by one annotated song", _LIMITS)  # fmt: skip
    personalize.add_argument("--checkpoint", type=Path, required=True, help="folder of a run")
    personalize.add_argument("--audio", type=Path, required=True, help="the song")
    personalize.add_argument("--annotations", type=Path, required=True,
                             help="CSV with the columns time [s], arousal, valence; values in [-1, 1], any rate")  # fmt: skip
    personalize.add_argument("--out", type=Path, required=True, help="folder for the personal model")  # fmt: skip
    _add_strength(personalize)
    _add_imagebind_weights(personalize)


def _add_predict(add: Add) -> None:
    predict = add("predict", commands.predict_command, "Predict curves of sound files: SONG.csv and SONG.png", _LIMITS)  # fmt: skip
    predict.add_argument("--checkpoint", type=Path, required=True, help="folder of a run or of a personal model")  # fmt: skip
    predict.add_argument("songs", type=Path, nargs="+", metavar="SONG", help="any file libsndfile reads, 5 s or more")  # fmt: skip
    predict.add_argument("--out", type=Path, required=True, help="folder for the results")
    _add_imagebind_weights(predict)


def _add_studio(add: Add) -> None:
    studio = add("studio", commands.studio_command, "Annotate a song in the browser and get a model of your ears (needs the extra [studio])",
                 "Starts a local web page and prints its links; Ctrl-C ends it, the same command goes on.\n"
                 "Everything that is done there is kept in the study's folder.", goes_on=True)  # fmt: skip
    studio.add_argument("--checkpoint", type=Path, required=True, help="folder of a run")
    studio.add_argument("--songs", type=Path, required=True, help="folder with sound files of 5 s to 15 minutes")  # fmt: skip
    studio.add_argument("--study", type=Path, default=Path("dsaml_study"), help="folder for what people do (default: %(default)s)")  # fmt: skip
    studio.add_argument("--everyone", type=Path, metavar="RUN", help="a DMER run, for everyone's curves (default: what the checkpoint began from)")  # fmt: skip
    studio.add_argument("--blind", action="store_true", help="a listening study: participants see no curves before they have rated")  # fmt: skip
    studio.add_argument("--ratings", type=_positive, default=10, metavar="N", help="songs that each participant rates (default: %(default)s)")  # fmt: skip
    studio.add_argument("--no-uploads", action="store_true", help="participants cannot bring songs")
    studio.add_argument("--host", default="127.0.0.1", help="address to listen on; others than this machine's own need a\n"
                        "password for the owner in $DSAML_STUDIO_PASSWORD (default: %(default)s)")  # fmt: skip
    studio.add_argument("--port", type=int, default=8765, help="0: any that is free (default: %(default)s)")  # fmt: skip
    studio.add_argument("--allow-host", action="append", default=[], metavar="NAME[:PORT]",
                        help="a further name that browsers call this server by, such as a proxy's")  # fmt: skip
    _add_strength(studio)
    _add_imagebind_weights(studio)


def _add_convert(add: Add) -> None:
    convert = add("convert", commands.convert_command, "Bring published weights over (needs the extra [torch])")  # fmt: skip
    convert.add_argument("kind", choices=("reference", "imagebind"),
                         help="reference: the state_dict of the published implementation -> a checkpoint\n"
                              "imagebind: imagebind_huge.pth -> its audio tower as safetensors")  # fmt: skip
    convert.add_argument("file", type=Path, help="the .pth file")
    convert.add_argument("--out", type=Path, required=True, help="folder of the checkpoint, or the .safetensors file")  # fmt: skip


def _add_checkpoint(add: Add) -> None:
    checkpoint = add("checkpoint", commands.checkpoint_command, "Look at the checkpoints of a run, check or export them")  # fmt: skip
    checkpoint.add_argument("action", choices=("ls", "verify", "export"),
                            help="ls: steps, scores, sizes\nverify: read every number and compare checksums\n"
                                 "export: the best one as safetensors")  # fmt: skip
    checkpoint.add_argument("directory", type=Path, help="folder of a run or of a personal model")
    checkpoint.add_argument("--out", type=Path, metavar="FILE", help="export: the .safetensors file")  # fmt: skip


def _add_runs(add: Add) -> None:
    runs = add("runs", commands.runs_command, "See how runs are doing, also while they train")
    runs.add_argument("action", choices=("ls", "show", "replay"),
                      help="ls: a line for each run at or below PATH\nshow: one run, and its report as a page\n"
                           "replay: compute a step again whose loss was not finite, from the file it left")  # fmt: skip
    runs.add_argument("path", type=Path, metavar="PATH", nargs="?", default=Path(),
                      help="ls: a folder (default: this one); show: a run; replay: its failures/step-N.safetensors")  # fmt: skip


def _add_experiment(add: Add) -> None:
    experiment = add("experiment", commands.experiment_command, "Run all variants of a table, with statistics and figures",
                     "Start it again to go on; models and scores that are there are used again, also by other\n"
                     "experiments with the same --out.", goes_on=True)  # fmt: skip
    experiment.add_argument("name", choices=tuple(EXPERIMENTS), help="see experiments/README.md")
    experiment.add_argument("--data", type=Path, help="folder of prepared data, of any corpus (default: a synthetic one is made in OUT/data)")  # fmt: skip
    experiment.add_argument("--dataset", help="name that the corpus must have; synthetic: may be made here")  # fmt: skip
    experiment.add_argument("--folds", type=int, metavar="K",
                            help="run K folds over people and songs and judge them together; 0: the corpus's own split\n"
                                 "(default: its own split, or 5 folds where that leaves nobody to be judged)")  # fmt: skip
    experiment.add_argument("--out", type=Path, required=True, help="folder for models, tables and figures")  # fmt: skip
    experiment.add_argument("--seeds", type=_positive, metavar="N", help="seeds 0 to N-1 of training (default: the scale's)")  # fmt: skip
    size = experiment.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="the smallest that runs: to try it, the numbers mean nothing")  # fmt: skip
    size.add_argument("--standard", action="store_true", help="what two cores manage, for --features tiny (default without --data)")  # fmt: skip
    size.add_argument("--full", action="store_true", help="the published size, for an accelerator (default with --data)")  # fmt: skip
    experiment.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                            help="a setting of every model, as for 'dsaml train'")  # fmt: skip


def _add_strength(command: argparse.ArgumentParser) -> None:
    command.add_argument("--strength", type=float, metavar="SHARE",
                         help="how far to adapt, from 0 to 1; all the way gains more in the mean, for fewer listeners\n"
                              "(default: the checkpoint's, 0.4 with our presets)")  # fmt: skip


def _add_imagebind_weights(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--imagebind-weights",
        type=Path,
        metavar="FILE",
        default=os.environ.get("DSAML_IMAGEBIND"),
        help="for ImageBind embeddings: what 'dsaml convert imagebind' wrote (default: $DSAML_IMAGEBIND)",
    )


def _add_stream_above(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--stream-above",
        type=float,
        metavar="GB",
        default=STREAM_ABOVE_GB,
        help="features larger than this stay on disk and are streamed (default: %(default)g)",
    )


def _add_folds(command: argparse.ArgumentParser) -> None:
    command.add_argument("--folds", type=int, metavar="K",
                         help="deal people and songs into K parts by a hash of their ids, and hold one part out\n"
                              "(default: the corpus's own split)")  # fmt: skip
    command.add_argument("--song-folds", type=int, metavar="K", help="parts of the songs, where not as many as of the people")  # fmt: skip
    command.add_argument("--fold", type=int, metavar="F", help="which part is held out, from 0 (default: 0)")  # fmt: skip


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number


if __name__ == "__main__":
    sys.exit(main())
