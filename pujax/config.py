"""Every option of pujax: typed, documented dataclass fields, validated in one place.

A file in `configs/` returns a `Config`; `--config.a.b=value` overrides a field. Sizes are in pixels, rates are
per optimiser step, `batch_size` is always the global batch over all devices of all processes.
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pujax.losses import PU_LOSSES
from pujax.models import CLASSIFIERS
from pujax.selection import SELECTIONS

BASELINES = ("labelled_only", "random", "teacher_confidence", "all", "true_positives", "full_data")


@dataclass
class SourceConfig:
    """Where images come from; an empty `kind` means that there are none."""

    kind: str = ""  # "embedded", "array" (.npz or .npy), "folder" or "tfds"
    path: str = ""  # file or folder; for tfds the data_dir (empty: TFDS's own default)
    name: str = ""  # embedded: "labelled", "pool" or "test"; tfds: the dataset's name
    split: str = "train"  # tfds only
    per_class: int = 0  # keep the first n images of every class; 0 keeps all
    limit: int = 0  # keep the first n images; 0 keeps all


@dataclass
class DataConfig:
    """The images of the task: what is labelled, what is to be mined, what measures the result."""

    num_classes: int = 10
    image_size: int = 32  # height and width that the networks see
    channels: int = 3  # 1 grey, 3 RGB
    mean: tuple[float, ...] = (0.5,)  # of the pixels in [0, 1]; one number or one per channel
    std: tuple[float, ...] = (0.5,)
    labelled: SourceConfig = field(default_factory=SourceConfig)  # the few labelled images, the PU positives
    pool: SourceConfig = field(default_factory=SourceConfig)  # the unlabelled heap
    test: SourceConfig = field(default_factory=SourceConfig)  # labelled; measures, never chooses
    full: SourceConfig = field(default_factory=SourceConfig)  # whole labelled training set, where there is one


@dataclass
class TrainingConfig:
    """One run of stochastic gradient descent; decay applies to every parameter, as in the released recipe."""

    batch_size: int = 128
    num_steps: int = 1000
    learning_rate: float = 0.1  # peak
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    schedule: str = "cosine"  # "cosine" to zero, "step" or "constant"
    milestones: tuple[float, ...] = (0.25, 0.5, 0.75)  # of num_steps; a "step" schedule divides by ten at each
    warmup_steps: int = 0
    crop_padding: int = 0  # zero padding before a random crop; 0 switches crops off; not in a frozen scorer
    flip: bool = False  # random horizontal flips; in a frozen scorer, features averaged over both sides
    steps_per_call: int = 1  # optimiser steps per dispatch; a frozen scorer takes all in one


@dataclass
class TeacherConfig(TrainingConfig):
    """The network to compress: restored from `weights`, or trained here on `data.full`."""

    model: str = ""  # see models.CLASSIFIERS
    weights: str = ""  # a .safetensors file, "embedded:<file>", or empty to train


@dataclass
class ScorerConfig(TrainingConfig):
    """The positive-unlabelled classifier on the teacher's multi-scale features."""

    mode: str = "frozen"  # "frozen": heads on stored features; "finetune": the whole backbone, as released
    loss: str = "labelled_vs_unlabelled"  # see losses.PU_LOSSES
    class_prior: str = "estimate"  # share of positives in the pool: "estimate" or a number in (0, 1)
    surrogate: str = "logistic"  # "sigmoid" (released) or "logistic"
    beta: float = 0.0  # nnPU: tolerance before the negative risk counts as overfitted
    gamma: float = 1.0  # nnPU: scale of the correcting gradient
    positives_per_batch: int = 64  # fixed share of the batch; 0 draws uniformly from labelled + pool, as released
    pool_sample: int = 100_000  # pool images that the scorer trains on; 0 takes all
    folds: int = 5  # frozen: heads trained crosswise, so that every score used for choosing is held out
    gate: bool = False  # squeeze-and-excitation gate over the features
    hidden: int = 0  # width of the head's hidden layer; 0 is linear, as released
    quarter_turn: bool = False  # frozen: also see the features of the image turned by 90 degrees; doubles the passes
    feature_noise: float = 0.1  # frozen: standard deviation of noise on the standardised features
    distance: float = 0.0  # frozen: weight of the relative Mahalanobis distance beside the head's logit
    energy: float = 0.0  # frozen: weight of the log-sum-exp of the teacher's logits beside the head's logit
    reliable_negatives: float = 0.0  # frozen: share of the pool, lowest-scored, to train against again; 0 trains once
    holdout: float = 0.2  # finetune: share of the positives kept out of training


@dataclass
class MiningConfig:
    """Scoring the pool, shard by shard, and choosing from the score table."""

    batch_size: int = 512
    shard_size: int = 10_000  # images per shard: the unit of work and of retry
    selection: str = "prior"  # see selection.SELECTIONS
    threshold: float = 0.0  # of the score (the PU logit, unless parts are added to it), for "threshold"
    budget: int = 0  # images to keep where a selection needs a number; 0 means class_prior x pool
    max_unreadable: float = 0.0  # share of the pool that may fail to decode before the run stops


@dataclass
class DistillConfig(TrainingConfig):
    """Robust knowledge distillation from the teacher into the student."""

    model: str = ""  # see models.CLASSIFIERS
    temperature: float = 4.0
    class_weights: str = "none"  # "inverse_frequency" weighs by the teacher's class mass, as released
    robust: str = "none"  # "paper": largest of perturbed weightings; "worst_case": exact inner maximum
    epsilon: float = 0.1  # radius of the class-weight uncertainty
    num_perturbations: int = 1  # members of the "paper" set beside the unperturbed one
    labelled_per_batch: int = 0  # fixed share of the batch; 0 draws uniformly from labelled + mined
    noise_adaptation: float = 0.0  # DFND: share of the teacher's classes that are right; 0 leaves its term out
    label_weight: float = 0.0  # cross-entropy on the labelled images' own labels
    cached_views: int = 0  # views an image, with the teacher's logits computed once; 0: new views, teacher in each step


@dataclass
class Config:
    """One whole job. Defaults are the simplest case, not a paper's setting."""

    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    scorer: ScorerConfig = field(default_factory=ScorerConfig)
    mining: MiningConfig = field(default_factory=MiningConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    baselines: tuple[str, ...] = ()  # students to train for comparison, with the same number of updates
    compute_dtype: str = "auto"  # "float32", "bfloat16" or "auto": bfloat16 on GPUs and TPUs
    device_data_mb: int = 4096  # training images up to this size stay on the device
    checkpoint_every: int = 1000  # steps
    log_every: int = 100  # steps


# Fields that change how a run is watched or carried out, not what it computes: they may differ on resume.
RUN_ONLY_FIELDS = frozenset({"baselines", "device_data_mb", "checkpoint_every", "log_every"})

_CHOICES: dict[str, tuple[str, ...]] = {
    "compute_dtype": ("auto", "float32", "bfloat16"),
    "distill.class_weights": ("none", "inverse_frequency"),
    "distill.robust": ("none", "paper", "worst_case"),
    "mining.selection": tuple(SELECTIONS),
    "scorer.loss": tuple(PU_LOSSES),
    "scorer.mode": ("frozen", "finetune"),
    "scorer.surrogate": ("sigmoid", "logistic"),
    **{
        f"data.{part}.kind": ("", "embedded", "array", "folder", "tfds")
        for part in ("labelled", "pool", "test", "full")
    },
    **{f"{stage}.model": ("", *CLASSIFIERS) for stage in ("teacher", "distill")},
    **{f"{stage}.schedule": ("cosine", "step", "constant") for stage in ("teacher", "scorer", "distill")},
}
_POSITIVE = [
    "batch_size",
    "num_steps",
    "steps_per_call",
    "shard_size",
    "temperature",
    "image_size",
    "num_classes",
    "checkpoint_every",
    "log_every",
    "std",
    "learning_rate",
    "device_data_mb",
]
_SHARES = [
    "momentum",
    "holdout",
    "max_unreadable",
    "milestones",
    "noise_adaptation",
    "reliable_negatives",
]
_NOT_NEGATIVE = [
    "weight_decay",
    "crop_padding",
    "per_class",
    "limit",
    "pool_sample",
    "hidden",
    "budget",
    "epsilon",
    "label_weight",
    "cached_views",
    "warmup_steps",
    "beta",
    "gamma",
    "positives_per_batch",
    "labelled_per_batch",
    "feature_noise",
    "num_perturbations",
    "distance",
    "energy",
    "seed",
]


def flatten(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ("a.b", value) for every leaf field of a tree of dataclasses."""
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            yield from flatten(value, f"{prefix}{item.name}.")
        else:
            yield prefix + item.name, value


def require_known_field(path: str) -> None:
    """Raise ValueError, with a suggestion, unless "a.b.c" names a field of `Config`."""
    known = [name for name, _ in flatten(Config())]
    groups = {name.rsplit(".", 1)[0] for name in known if "." in name}
    if path in known or path in groups:
        return
    leaves = {name.rsplit(".", 1)[-1]: name for name in known}
    close = difflib.get_close_matches(path, known, 1) or [
        leaves[leaf] for leaf in difflib.get_close_matches(path.rsplit(".", 1)[-1], leaves, 1)
    ]
    hint = f"; did you mean --config.{close[0]}?" if close else ""
    raise ValueError(f"there is no option --config.{path}{hint}")


def _convert_tuples(config: Any, prefix: str = "") -> Any:
    """Return a copy in which "a,b" given for a tuple field has become ("a", "b")."""
    hints, changes = typing.get_type_hints(type(config)), {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            changes[item.name] = _convert_tuples(value, f"{prefix}{item.name}.")
        elif isinstance(hints[item.name], types.GenericAlias):
            kind = typing.get_args(hints[item.name])[0]
            parts = [part for entry in value for part in (entry.split(",") if isinstance(entry, str) else [entry])]
            try:
                changes[item.name] = tuple(kind(part) for part in parts if part != "")
            except ValueError as error:
                given = ",".join(map(str, parts))
                raise ValueError(f"{prefix}{item.name} is {given}; give numbers as a,b,c") from error
    return dataclasses.replace(config, **changes)


def given_class_prior(config: ScorerConfig) -> float | None:
    """Return the class prior that the user gave, or None when it is to be estimated."""
    return None if config.class_prior == "estimate" else float(config.class_prior)


def resolve(config: Config) -> Config:
    """Return the config with tuples split and every value checked.

    Raises:
        ValueError: a value is out of range; the message names field, value and remedy.
    """
    config = _convert_tuples(config)
    for name, value in flatten(config):
        _check_leaf(name, value)
    _check_class_prior(config.scorer)
    for name in config.baselines:
        if name not in BASELINES:
            raise ValueError(f"baselines contains {name!r}; choose from {', '.join(BASELINES)}")
    if config.data.channels not in (1, 3):
        raise ValueError(f"data.channels is {config.data.channels}; use 1 (grey) or 3 (RGB)")
    for name in ("mean", "std"):
        if len(getattr(config.data, name)) not in (1, config.data.channels):
            raise ValueError(f"data.{name} needs one number, or one for each of the {config.data.channels} channels")
    for stage in ("teacher", "scorer", "distill"):
        training = getattr(config, stage)
        if training.num_steps % training.steps_per_call:
            raise ValueError(
                f"{stage}.num_steps is {training.num_steps}, not a multiple of {stage}.steps_per_call "
                f"({training.steps_per_call})"
            )
    if not 2 <= config.scorer.folds <= 100:
        raise ValueError(f"scorer.folds is {config.scorer.folds}; use 2 to 100")
    for stage, share in (("scorer", "positives_per_batch"), ("distill", "labelled_per_batch")):
        count, batch_size = getattr(getattr(config, stage), share), getattr(config, stage).batch_size
        if not 0 <= count < batch_size:
            raise ValueError(f"{stage}.{share} is {count}; it must be less than {stage}.batch_size ({batch_size})")
    return config


def _check_leaf(name: str, value: Any) -> None:
    if name in _CHOICES and value not in _CHOICES[name]:
        close = difflib.get_close_matches(str(value), _CHOICES[name], 1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        choices = ", ".join(choice for choice in _CHOICES[name] if choice)
        raise ValueError(f"{name} is {value!r}; {hint}choose from {choices}")
    leaf = name.rsplit(".", 1)[-1]
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, float) and not math.isfinite(number):
            raise ValueError(f"{name} is {number}; give a finite number")
        if leaf in _POSITIVE and number <= 0:
            raise ValueError(f"{name} is {number}; it must be greater than 0")
        if leaf in _NOT_NEGATIVE and number < 0:
            raise ValueError(f"{name} is {number}; it must not be negative")
        if leaf in _SHARES and not 0 <= number < 1:
            raise ValueError(f"{name} is {number}; it must be at least 0 and less than 1")


def _check_class_prior(config: ScorerConfig) -> None:
    try:
        prior = given_class_prior(config)
    except ValueError:
        prior = math.nan
    if prior is not None and not 0 < prior < 1:
        raise ValueError(f"scorer.class_prior is {config.class_prior!r}; use 'estimate' or a number between 0 and 1")
