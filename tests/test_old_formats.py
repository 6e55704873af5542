"""What earlier versions wrote keeps loading: a prepared corpus, a run on it, a bundle of a failed step.

`data/before_dimensions.tar.gz` holds a small corpus in DEAM's layout, prepared and trained on (two steps) when a rating
always had both arousal and valence, and the scores of `dsaml evaluate` at that time.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from data_prep.shards import read_corpus
from dsaml_jax.evaluation import COLUMNS, evaluate
from dsaml_jax.runs import load_model
from dsaml_jax.training.failures import _song_batch


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    folder = tmp_path_factory.mktemp("before")
    with tarfile.open(Path(__file__).parent / "data" / "before_dimensions.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def test_a_prepared_corpus_and_a_run_on_it(before):
    corpus, run = read_corpus(before / "data"), load_model(before / "run")
    assert len(corpus.song_ids) == 24 and corpus.log_mel is not None
    assert run.info.dimensions == ("arousal", "valence")
    assert (run.info.config.training.folds, run.info.config.training.fold) == (0, 0)
    evaluation, _ = evaluate(run, corpus)

    def by_name(rows):
        named = {
            (x["method"].replace("MAML", "Meta-SGD"), x["annotator"], x["support"], x["song"]): x
            for x in rows
        }  # rows had the name of no particular algorithm
        assert len(named) == len(rows)
        return named

    ours, theirs = by_name(evaluation.rows), by_name(json.loads((before / "scores.json").read_text()))  # fmt: skip
    assert {name for name in ours if name[0] in {method for method, *_ in theirs}} == theirs.keys()
    for name, row in theirs.items():
        # CCC and PCC of a nearly constant curve magnify float32's rounding.
        np.testing.assert_allclose([ours[name][x] for x in COLUMNS], [row[x] for x in COLUMNS], atol=1e-3)  # fmt: skip


def test_a_bundle_with_one_mask_for_both():
    batch = _song_batch(
        {
            "log_mel": np.zeros((1, 3, 2, 2)),
            "embedding": np.zeros((1, 1, 2)),
            "arousal": np.zeros((1, 3)),
            "valence": np.zeros((1, 3)),
            "present": np.ones((1, 3), bool),
            "labelled": np.array([[True, False, True]]),
        }
    )
    assert batch.labelled.tolist() == [[[True, True], [False, False], [True, True]]]
