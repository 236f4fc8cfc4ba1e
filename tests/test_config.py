"""Options: types, choices, ranges, and messages that name the field and the remedy."""

import ast
import dataclasses
import importlib.util
import re
from pathlib import Path

import pytest

from pujax.config import (
    BASELINES,
    Config,
    FrozenScorerConfig,
    SelectConfig,
    flatten,
    given_class_prior,
    require_known_field,
    resolve,
)
from pujax.errors import UserError
from pujax.pu.losses import PU_LOSSES
from pujax.selection import RULES

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
    assert config.distill.model and (config.teacher.model or not config.data.num_classes)  # or the weights say it


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
        ("scorer.frozen.loss", "nnpuu", "scorer.frozen.loss is 'nnpuu'; did you mean 'nnpu'"),
        ("select.rule", "best", "choose from"),
        ("distill.robust", "worst", "did you mean 'worst_case'"),
        ("distill.batch_size", 0, "distill.batch_size is 0; it must be greater than 0"),
        ("distill.learning_rate", float("nan"), "distill.learning_rate is nan"),
        ("scorer.class_prior", "1.5", "use 'estimate' or a number between 0 and 1"),
        ("scorer.class_prior", "much", "use 'estimate' or a number between 0 and 1"),
        ("scorer.frozen.positives_per_batch", 128, "must be less than scorer.frozen.batch_size"),
        ("scorer.frozen.positives_per_batch", 0, "scorer.frozen.positives_per_batch is 0; it must be greater than 0"),
        ("distill.labelled_per_batch", 128, "must be less than distill.batch_size"),
        ("scorer.frozen.reliable_negatives", 1.0, "it must be less than 1"),
        ("baselines", ("rnadom",), "baselines contains 'rnadom'"),
        ("data.channels", 2, "data.channels is 2"),
        ("data.mean", (0.1, 0.2), "data.mean needs one number"),
        ("data.mean", ("0.1,much",), "data.mean is 0.1,much; give numbers as a,b,c"),
        ("data.mean", 0.286, "data.mean is 0.286; give numbers as a,b,c"),
        ("distill.momentum", 1.0, "distill.momentum is 1.0"),
        ("distill.steps_per_call", 7, "distill.num_steps is 1000, not a multiple of distill.steps_per_call"),
        ("scorer.frozen.folds", 1, "scorer.frozen.folds is 1"),
        ("distill.flip", "False", "distill.flip is 'False'; give True or False"),
        ("distill.num_steps", "1200", "distill.num_steps is '1200'; give a whole number"),
        ("distill.num_steps", True, "distill.num_steps is True; give a whole number"),
        ("distill.learning_rate", "0.01", "distill.learning_rate is '0.01'; give a number"),
        ("data.pool", "heap", "data.pool is 'heap'; it must be a SourceConfig"),
        # set, but used by nothing
        ("scorer.finetune.holdout", 0.3, "scorer.finetune.holdout is 0.3, but scorer.mode is frozen"),
        ("scorer.frozen.gamma", 0.5, "but scorer.frozen.loss is 'labelled_vs_unlabelled', which does not use it"),
        ("select.budget", 100, "select.budget is 100, but select.rule is 'prior', which does not use it"),
        ("select.threshold", 1.0, "select.threshold is 1.0, but select.rule is 'prior'"),
        ("distill.epsilon", 0.5, "distill.epsilon is 0.5, but distill.robust is 'none'"),
        ("distill.milestones", (0.1,), "but distill.schedule is 'cosine', which does not use it"),
        ("export.int8_steps", 300, "which does not use it; leave it out, or set export.formats to litert_int8"),
        ("export.int8_learning_rate", 0.01, "export.int8_learning_rate is 0.01, but export.int8_steps is 0"),
    ],
)
def test_bad_values_are_refused(path, value, message):
    with pytest.raises(UserError, match=re.escape(message)):
        resolve(with_value(path, value))


def test_unknown_fields_are_refused_with_a_suggestion():
    require_known_field("distill.learning_rate")
    with pytest.raises(UserError, match=r"no option --config.distill.lerning_rate; did you mean --config.distill.lear"):
        require_known_field("distill.lerning_rate")
    with pytest.raises(UserError, match=r"did you mean --config.scorer.class_prior"):
        require_known_field("class_prior")


def test_class_prior_is_a_number_or_estimated():
    scorer = Config().scorer
    assert given_class_prior(scorer) is None
    assert given_class_prior(dataclasses.replace(scorer, class_prior="0.21")) == 0.21


def test_flatten_reaches_every_leaf():
    names = [name for name, _ in flatten(Config())]
    assert {"seed", "data.pool.kind", "distill.robust"} <= set(names)
    assert len(names) == len(set(names))


def test_an_attribute_that_does_not_exist_is_refused():
    with pytest.raises(AttributeError, match="pol"):
        Config().data.pol = "x"


def test_milestones_of_a_step_schedule_are_checked_one_by_one():
    config = with_value("distill.schedule", "step")
    config.distill.milestones = (0.5, 2.0)
    with pytest.raises(UserError, match=r"distill.milestones is 2.0; it must be less than 1"):
        resolve(config)


def test_steps_for_int8_are_for_its_file_and_taken_as_those_before():
    config = with_value("export.formats", ("onnx,litert_int8",))
    config.export.int8_steps, config.export.int8_learning_rate = 300, 1e-4
    assert resolve(config).export.formats == ("onnx", "litert_int8")
    config.distill.steps_per_call = 8
    with pytest.raises(UserError, match=r"export.int8_steps is 300, not a multiple of distill.steps_per_call \(8\)"):
        resolve(config)


def test_the_choices_beside_the_fields_are_those_of_the_code():
    def choices(group, name):
        return next(item.metadata["choices"] for item in dataclasses.fields(group) if item.name == name)

    assert set(choices(SelectConfig, "rule")) == {"prior", *RULES}
    assert set(choices(FrozenScorerConfig, "loss")) == set(PU_LOSSES)
    assert choices(Config, "baselines") == BASELINES


def test_config_imports_nothing_of_pujax_but_the_errors():
    tree = ast.parse((Path(__file__).parent.parent / "pujax" / "config.py").read_text())
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {module for module in modules if module.startswith("pujax")} == {"pujax.errors"}
