"""Options: types, choices, ranges, and messages that name the field and the remedy."""

import dataclasses
import importlib.util
from pathlib import Path

import pytest

from pujax.config import Config, flatten, given_class_prior, require_known_field, resolve

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.py"))


def with_value(path, value):
    config = Config()
    *groups, leaf = path.split(".")
    owner = config
    for group in groups:
        owner = getattr(owner, group)
    setattr(owner, leaf, value)
    return config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_recipe_loads_and_resolves(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = resolve(module.get_config())
    assert f"--config configs/{path.name}" in module.__doc__
    assert config.teacher.model and config.distill.model


def test_tuples_given_as_text_are_split():
    config = with_value("baselines", ("labelled_only,random",))
    config.data.mean = ("0.1,0.2,0.3",)
    resolved = resolve(config)
    assert resolved.baselines == ("labelled_only", "random")
    assert resolved.data.mean == (0.1, 0.2, 0.3)
    assert resolve(with_value("baselines", ("",))).baselines == ()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("scorer.loss", "nnpuu", "scorer.loss is 'nnpuu'; did you mean 'nnpu'"),
        ("mining.selection", "best", "choose from"),
        ("distill.robust", "worst", "did you mean 'worst_case'"),
        ("distill.batch_size", 0, "distill.batch_size is 0; it must be greater than 0"),
        ("distill.learning_rate", float("nan"), "distill.learning_rate is nan"),
        ("scorer.class_prior", "1.5", "use 'estimate' or a number between 0 and 1"),
        ("scorer.class_prior", "much", "use 'estimate' or a number between 0 and 1"),
        ("scorer.positives_per_batch", 128, "must be less than scorer.batch_size"),
        ("distill.labelled_per_batch", 128, "must be less than distill.batch_size"),
        ("distill.noise_adaptation", 1.0, "less than 1"),
        ("baselines", ("rnadom",), "baselines contains 'rnadom'"),
        ("data.channels", 2, "data.channels is 2"),
        ("data.mean", (0.1, 0.2), "data.mean needs one number"),
        ("data.mean", ("0.1,much",), "data.mean is 0.1,much; give numbers as a,b,c"),
        ("distill.milestones", (0.5, 2.0), "distill.milestones is 2.0"),
        ("distill.momentum", 1.0, "distill.momentum is 1.0"),
        ("distill.steps_per_call", 7, "distill.num_steps is 1000, not a multiple of distill.steps_per_call"),
        ("scorer.folds", 1, "scorer.folds is 1"),
    ],
)
def test_bad_values_are_refused(path, value, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(").replace(")", r"\)")):
        resolve(with_value(path, value))


def test_unknown_fields_are_refused_with_a_suggestion():
    require_known_field("distill.learning_rate")
    with pytest.raises(
        ValueError, match=r"no option --config.distill.lerning_rate; did you mean --config.distill.lear"
    ):
        require_known_field("distill.lerning_rate")
    with pytest.raises(ValueError, match=r"did you mean --config.scorer.class_prior"):
        require_known_field("class_prior")


def test_class_prior_is_a_number_or_estimated():
    scorer = Config().scorer
    assert given_class_prior(scorer) is None
    assert given_class_prior(dataclasses.replace(scorer, class_prior="0.21")) == 0.21


def test_flatten_reaches_every_leaf():
    names = [name for name, _ in flatten(Config())]
    assert {"seed", "data.pool.kind", "distill.robust"} <= set(names)
    assert len(names) == len(set(names))
