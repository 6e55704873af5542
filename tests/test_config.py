"""Settings: presets, overrides, and the nearest known key for a wrong one."""

from __future__ import annotations

import json

import pytest

from dsaml_jax import UsageError, config


def test_settings_are_typed():
    changed = config.with_settings(
        config.preset("default"),
        ["meta.steps=4", "meta.learning_rate=0.1", "model.use_local=false",
         "model.embedding_width=none", "meta.algorithm=maml"],
    )  # fmt: skip
    assert changed.meta.steps == 4 and changed.meta.learning_rate == 0.1
    assert changed.model.use_local is False and changed.model.embedding_width is None


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("meta.stesp=4", "did you mean meta.steps"),
        ("nonsense=1", "unknown setting|did you mean"),
        ("meta.steps", "write key=value"),
        ("meta.steps=four", "whole number"),
        ("meta.steps=-1", "0 or more"),
        ("model.use_local=maybe", "true or false"),
        ("meta.inner_loss=l1", "none of dsaml, squared_error"),
        ("training.validate_every=7", "multiple"),
        ("training.seed=-1", "training.seed"),
        ("meta.min_songs=1", "more than"),
        ("model.width=10", "multiple"),
        ("meta.learning_rate=nan", "positive number"),
        ("training.learning_rate=-1", "positive number"),
        ("meta.tolerance=1", "meta.tolerance 1.0 must be 0 or more and below 1"),
        ("meta.damping=-0.1", "meta.damping -0.1 must be 0 or more"),
        ("meta.damping=inf", "meta.damping inf must be 0 or more"),
        ("meta.solver=cholesky", "none of cg, neumann"),
    ],
)
def test_wrong_settings_are_explained(setting, message):
    with pytest.raises(UsageError, match=message):
        config.with_settings(config.preset("default"), [setting])


@pytest.mark.parametrize("name", list(config.PRESETS))
def test_there_and_back(name):
    original = config.preset(name)
    values = json.loads(json.dumps(config.to_json(original)))
    assert config.from_json(values, "here") == original
    values["meta"]["unheard_of"] = 1
    with pytest.raises(UsageError, match="unheard_of"):
        config.from_json(values, "here")


def test_reference_preset_is_the_published_one():
    published = config.preset("reference")
    assert (published.meta.steps, published.meta.learning_rate, published.meta.tasks) == (
        16,
        5e-3,
        16,
    )
    assert (published.meta.support_songs, published.meta.query_songs) == (1, 15)
    assert (published.training.steps, published.training.learning_rate) == (2000, 5e-5)
    assert published.meta.algorithm == "fomaml" and published.meta.batch_norm == "batch"
    with pytest.raises(UsageError, match="none of reference, default, tiny"):
        config.preset("huge")


def test_differences_name_both_sides():
    old = config.preset("tiny")
    new = config.with_settings(old, ["meta.steps=9"])
    assert config.differences(old, new) == ["meta.steps: 3 -> 9"]
