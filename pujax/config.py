"""Every option of pujax: typed, documented dataclass fields, each with its range or choices beside it.

A file in `configs/` returns a `Config`; `--config.a.b=value` overrides a field. Sizes are in pixels, rates are
per optimiser step, `batch_size` is always the global batch over all devices of all processes.
"""

import dataclasses
import difflib
import math
import numbers
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pujax.errors import UserError

STAGES = ("teacher", "scorer", "score", "select", "distill", "export", "baselines", "report")  # in their order
EXPORT_FORMATS = ("stablehlo", "torch", "onnx", "litert", "litert_float16", "litert_int8")
BASELINES = ("labelled_only", "random", "teacher_confidence", "all", "true_positives", "full_data")


def option(
    default: Any,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    choices: tuple[str, ...] = (),
    used_if: dict[str, tuple[Any, ...]] | None = None,
) -> Any:
    """Return a field with the values that it may take.

    Args:
        default: its value where nothing is given.
        above: what numbers must be greater than.
        at_least: what numbers must not be less than.
        below: what numbers must be less than.
        at_most: what numbers must not be greater than.
        choices: the texts that it may be.
        used_if: fields of the same group with the values that make this one count; otherwise it must keep its default.
    """
    rules = {"above": above, "at_least": at_least, "below": below, "at_most": at_most}
    rules |= {"choices": choices, "used_if": used_if}
    return field(default=default, metadata={name: rule for name, rule in rules.items() if rule not in (None, ())})


@dataclass(slots=True)
class SourceConfig:
    """Where images come from; an empty `kind` means that there are none."""

    # Encoded images: "folder" (of image files), "list" (.csv or .parquet of paths), "tar" (WebDataset's shards),
    # "parquet" (rows that hold images), "hf" (saved by Hugging Face's datasets), "array_record", "tfds".
    # Pixels: "array" (.npz or .npy), "cifar" (its folder of pickles), "imagenet32" (downsampled ImageNet's .npz), "idx"
    # (MNIST's files), "embedded" (in the package).
    kind: str = option(
        "",
        choices=("", "folder", "list", "tar", "parquet", "hf", "array_record", "tfds",
                 "array", "cifar", "imagenet32", "idx", "embedded"),
    )  # fmt: skip
    # File or folder; many files as "{000..999}", "{a,b}", "*" and "**"; folder, list, tar and parquet also "s3://" and
    # "gs://". For tfds the data_dir (empty: TFDS's own default).
    path: str = ""
    name: str = ""  # embedded: "labelled", "pool" or "test"; tfds: the dataset's name
    split: str = "train"  # part of the dataset: of tfds, hf, cifar, imagenet32 and idx
    per_class: int = option(0, at_least=0)  # keep the first n images of every class; 0 keeps all
    limit: int = option(0, at_least=0)  # keep the first n images; 0 keeps all


@dataclass(slots=True)
class DataConfig:
    """The images of the task: what is labelled, what is to be mined, what measures the result.

    Of classes and preprocessing, what is 0 or empty is as the teacher's weights say.
    """

    num_classes: int = option(10, at_least=0)  # outputs of teacher and student
    image_size: int = option(32, at_least=0)  # height and width that the networks see
    channels: int = 3  # 1 grey, 3 RGB
    mean: tuple[float, ...] = (0.5,)  # of the pixels in [0, 1]; one number or one per channel
    std: tuple[float, ...] = option((0.5,), above=0)  # likewise: networks see (pixel / 255 - mean) / std
    crop: float = option(1.0, at_least=0, at_most=1)  # share of the short side that a centre crop keeps
    interpolation: str = option("bilinear", choices=("", "bilinear", "bicubic"))  # when image files are resized
    # Names in the order of the teacher's outputs, where it does not know them; or one text file, a name a line.
    class_names: tuple[str, ...] = ()
    labelled: SourceConfig = field(default_factory=SourceConfig)  # the few labelled images, the PU positives
    pool: SourceConfig = field(default_factory=SourceConfig)  # the unlabelled heap
    test: SourceConfig = field(default_factory=SourceConfig)  # labelled; measures, never chooses
    # Without a test set: the share of each class's labelled images that is kept out, and measures.
    holdout: float = option(0.2, above=0, below=1)
    full: SourceConfig = field(default_factory=SourceConfig)  # whole labelled training set, where there is one


@dataclass(slots=True)
class OptimizerConfig:
    """Stochastic gradient descent; weight decay applies to every parameter, as in the released recipe."""

    batch_size: int = option(128, above=0)  # images of one step, over all devices
    num_steps: int = option(1000, above=0)  # optimiser steps; there are no epochs
    learning_rate: float = option(0.1, above=0)  # at its peak
    momentum: float = option(0.9, at_least=0, below=1)  # of the gradient's running sum
    nesterov: bool = False  # look ahead along the momentum
    weight_decay: float = option(5e-4, at_least=0)  # added to the gradient, times the parameters
    # How the learning rate falls after that; "cosine" goes to zero.
    schedule: str = option("cosine", choices=("cosine", "step", "constant"))
    # Of num_steps; a "step" schedule divides by ten at each.
    milestones: tuple[float, ...] = option((0.25, 0.5, 0.75), at_least=0, below=1, used_if={"schedule": ("step",)})
    warmup_steps: int = option(0, at_least=0)  # in which the learning rate rises from zero to its peak


@dataclass(slots=True)
class TrainingConfig(OptimizerConfig):
    """Training a network on augmented images."""

    crop_padding: int = option(0, at_least=0)  # zero padding before a random crop; 0 switches crops off
    flip: bool = False  # random horizontal flips
    steps_per_call: int = option(1, above=0)  # optimiser steps per dispatch


@dataclass(slots=True)
class TeacherConfig(TrainingConfig):
    """The network to compress: restored from `weights`, or trained here on `data.full`."""

    model: str = ""  # name of its network, see models.CLASSIFIERS; may be empty where the weights file says it
    weights: str = ""  # a file: safetensors or a PyTorch state dict; "embedded:<file>"; empty trains the teacher


_WITH_PRIOR = {"loss": ("balanced_nnpu", "nnpu")}  # the losses that know a class prior and a surrogate


@dataclass(slots=True)
class FrozenScorerConfig(OptimizerConfig):
    """PU heads on stored features of the frozen teacher."""

    # The risk that the heads minimise; "nnpu" and "balanced_nnpu" use the class prior, 0.1 where it is estimated.
    loss: str = option("labelled_vs_unlabelled", choices=("labelled_vs_unlabelled", "balanced_nnpu", "nnpu"))
    # The loss of one image in the risk.
    surrogate: str = option("logistic", choices=("logistic", "sigmoid"), used_if=_WITH_PRIOR)
    beta: float = option(0.0, at_least=0, used_if=_WITH_PRIOR)  # tolerance before the negative risk is overfitted
    gamma: float = option(1.0, at_least=0, used_if=_WITH_PRIOR)  # scale of the correcting gradient
    positives_per_batch: int = option(64, above=0)  # labelled images in every batch
    folds: int = option(5, at_least=2, below=101)  # heads trained crosswise, so that every score is held out
    gate: bool = False  # squeeze-and-excitation gate over the features
    hidden: int = option(0, at_least=0)  # width of the head's hidden layer; 0 is linear
    flip: bool = False  # features averaged over the image and its mirror image
    quarter_turn: bool = False  # also see the features of the image turned by 90 degrees; doubles the passes
    feature_noise: float = option(0.1, at_least=0)  # standard deviation of noise on the standardised features
    distance: float = option(0.0, at_least=0)  # weight of the relative Mahalanobis distance beside the head's logit
    energy: float = option(0.0, at_least=0)  # weight of the log-sum-exp of the teacher's logits beside them
    # Labelled images also blurred, turned, ...: "auto" trains again so where labelled and pool images differ in style.
    styles: str = option("auto", choices=("auto", "on", "off"))
    # Share of the pool, lowest-scored, to train against a second time; 0 trains once.
    reliable_negatives: float = option(0.0, at_least=0, below=1)


@dataclass(slots=True)
class FinetunedScorerConfig(TrainingConfig):
    """The teacher's whole backbone under a PU head, trained end to end, as released."""

    # The risk that the network minimises; "nnpu" and "balanced_nnpu" use the class prior, 0.1 where it is estimated.
    loss: str = option("nnpu", choices=("labelled_vs_unlabelled", "balanced_nnpu", "nnpu"))
    # The loss of one image in the risk.
    surrogate: str = option("sigmoid", choices=("logistic", "sigmoid"), used_if=_WITH_PRIOR)
    beta: float = option(0.0, at_least=0, used_if=_WITH_PRIOR)  # tolerance before the negative risk is overfitted
    gamma: float = option(1.0, at_least=0, used_if=_WITH_PRIOR)  # scale of the correcting gradient
    positives_per_batch: int = option(0, at_least=0)  # labelled images in every batch; 0 draws uniformly, as released
    gate: bool = True  # squeeze-and-excitation gate over the features
    hidden: int = option(0, at_least=0)  # width of the head's hidden layer; 0 is linear, as released
    holdout: float = option(0.2, above=0, below=1)  # share of positives and pool sample kept out of training


@dataclass(slots=True)
class ScorerConfig:
    """The positive-unlabelled classifier on the teacher's multi-scale features."""

    mode: str = option("frozen", choices=("frozen", "finetune"))  # which of the groups "frozen" and "finetune" counts
    class_prior: str = "estimate"  # share of positives in the pool: "estimate" or a number in (0, 1)
    pool_sample: int = option(100_000, at_least=0)  # pool images that the scorer trains on; 0 takes all
    # Share of the pool sample that must score like a labelled image; with less the pool counts as empty. 0 goes on.
    min_in_range: float = option(0.001, at_least=0, below=1)
    frozen: FrozenScorerConfig = field(default_factory=FrozenScorerConfig)
    finetune: FinetunedScorerConfig = field(default_factory=FinetunedScorerConfig)


@dataclass(slots=True)
class ScoreConfig:
    """Scoring the pool, shard by shard."""

    shard_size: int = option(10_000, above=0)  # images per shard: the unit of work and of retry
    max_unreadable: float = option(0.1, at_least=0, below=1)  # share that may fail to decode before the run stops


_WITH_BUDGET = ("top_k", "class_balanced", "random", "sample", "teacher_confidence", "mean_rank")


@dataclass(slots=True)
class SelectConfig:
    """Choosing from the score table."""

    # "prior": as many of the best as the class prior says, see docs/method.md; "threshold": all above a score;
    # "top_k": the best; "class_balanced": the best of each of the teacher's classes; "random": any; "sample": drawn by
    # the score; "teacher_confidence": the best by that; "mean_rank": by the ranks of score and confidence; "all".
    rule: str = option("prior", choices=("prior", "threshold", *_WITH_BUDGET, "all"))
    threshold: float = option(0.0, used_if={"rule": ("threshold",)})  # images that score above it are kept
    # Images to keep; 0 means as many as rule "prior" would.
    budget: int = option(0, at_least=0, used_if={"rule": _WITH_BUDGET})
    # The draw has weights exp(sharpness x score); 0 finds it from the budget.
    sharpness: float = option(0.0, at_least=0, used_if={"rule": ("sample",)})
    # Copies of test and labelled images among the chosen ones: counted, also left out, or not looked for.
    copies: str = option("count", choices=("count", "drop", "ignore"))
    # Times that a student should see each image: bounds how many are chosen beyond what the class prior says.
    passes: int = option(50, above=0)
    # Whether the chosen images are written to `select/images`, at the size that networks see, and read from there by
    # students; False: these read the pool.
    images: bool = True


@dataclass(slots=True)
class DistillConfig(TrainingConfig):
    """Robust knowledge distillation from the teacher into the student."""

    model: str = ""  # name of its network, see models.CLASSIFIERS; "_x0.5" behind a name halves the widths of most
    weights: str = ""  # a file to begin with, as for the teacher, with any number of classes; empty begins at random
    temperature: float = option(4.0, above=0)  # by which both networks' logits are divided before the softmax
    # "inverse_frequency" weighs an image by the inverse of its class's mass in the teacher's eyes, as released.
    class_weights: str = option("none", choices=("none", "inverse_frequency"))
    # The largest loss under other class weights: "paper" tries random ones, as released; "worst_case" is exact.
    robust: str = option("none", choices=("none", "paper", "worst_case"))
    # Radius of the class-weight uncertainty.
    epsilon: float = option(0.1, at_least=0, used_if={"robust": ("paper", "worst_case")})
    # Members of the "paper" set beside the unperturbed one.
    num_perturbations: int = option(1, at_least=0, used_if={"robust": ("paper",)})
    labelled_per_batch: int = option(0, at_least=0)  # labelled images in every batch; 0 draws uniformly
    # Weight of the cross-entropy on the labelled images' own labels, beside the teacher's answers.
    label_weight: float = option(0.0, at_least=0)
    # Augmented views of each image, on which the teacher's logits are computed once; 0: new views, and the teacher, in
    # each step.
    cached_views: int = option(0, at_least=0)


@dataclass(slots=True)
class ExportConfig:
    """The student as files for other programs; see docs/export.md."""

    # Those without a package of their own by default; a format whose packages are missing is skipped.
    formats: tuple[str, ...] = option(("stablehlo", "torch"), choices=EXPORT_FORMATS)
    preprocessing: bool = True  # files take uint8 pixels; False: normalised float32
    # Steps that the student is distilled further for, with int8 simulated, before litert_int8 is written; 0: none.
    int8_steps: int = option(0, at_least=0, used_if={"formats": ("litert_int8",)})
    # Learning rate at the first of int8_steps; it falls to zero, and all else is as in distill.
    int8_learning_rate: float = option(1e-3, above=0)


@dataclass(slots=True)
class RunConfig:
    """How the job is carried out and watched: nothing here changes what it computes, so all may differ on resume."""

    inference_batch_size: int = option(512, above=0)  # images of every forward pass that trains nothing
    device_data_mb: int = option(4096, above=0)  # megabytes: training images up to this size stay on the device
    checkpoint_every: int = option(1000, above=0)  # steps, after which a training can go on
    log_every: int = option(100, above=0)  # steps, over which metrics are averaged
    # Steps of every training, after the first twenty, of which a profiler trace is written; 0 writes none.
    trace_steps: int = option(0, at_least=0)


@dataclass(slots=True)
class Config:
    """One whole job. Defaults are the simplest case, not a paper's setting."""

    seed: int = option(0, at_least=0)  # of weights, batches, augmentation and every random choice
    data: DataConfig = field(default_factory=DataConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    scorer: ScorerConfig = field(default_factory=ScorerConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    select: SelectConfig = field(default_factory=SelectConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    # Students to train for comparison, with the same updates: on the labelled images alone; on these and as many pool
    # images as were chosen, "random" ones or by the teacher's confidence; on these and "all" of the pool; on these and
    # the pool's "true_positives", where it carries truth for evaluation; on all of data.full.
    baselines: tuple[str, ...] = option((), choices=BASELINES)
    # Of the forward and backward passes; parameters are float32. "auto": bfloat16 on GPUs and TPUs.
    compute_dtype: str = option("auto", choices=("auto", "float32", "bfloat16"))
    run: RunConfig = field(default_factory=RunConfig)


def flatten(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ("a.b", value) for every leaf field of a tree of dataclasses."""
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            yield from flatten(value, f"{prefix}{item.name}.")
        else:
            yield prefix + item.name, value


def require_known_field(path: str) -> None:
    """Raise UserError, with a suggestion, unless "a.b.c" names a field of `Config`."""
    known = [name for name, _ in flatten(Config())]
    groups = {".".join(parts[:n]) for parts in (name.split(".") for name in known) for n in range(1, len(parts))}
    if path in known or path in groups:
        return
    leaves = {name.rsplit(".", 1)[-1]: name for name in known}
    close = difflib.get_close_matches(path, known, 1) or [
        leaves[leaf] for leaf in difflib.get_close_matches(path.rsplit(".", 1)[-1], leaves, 1)
    ]
    hint = f"; did you mean --config.{close[0]}?" if close else ""
    raise UserError(f"there is no option --config.{path}{hint}")


def with_options(config: Any, options: dict[str, Any]) -> Any:
    """Return a copy of a tree of dataclasses with fields set by their paths, "a.b".

    Raises:
        AttributeError: there is no such field.
    """
    for path, value in options.items():
        name, _, rest = path.partition(".")
        own = getattr(config, name)
        config = dataclasses.replace(config, **{name: with_options(own, {rest: value}) if rest else value})
    return config


def from_json(tree: dict[str, Any], kind: type = Config) -> Any:
    """Return the config that `dataclasses.asdict` made a tree of, after it has been through JSON.

    Raises:
        UserError: it has a field that is not known here.
    """
    hints, fields = typing.get_type_hints(kind), {}
    for name, value in tree.items():
        if name not in hints:
            raise UserError(f"there is no option {name!r}; it was written by another version of pujax, use that one")
        if dataclasses.is_dataclass(hints[name]):
            value = from_json(value, hints[name])
        fields[name] = tuple(value) if isinstance(value, list) else value
    return kind(**fields)


def given_class_prior(config: ScorerConfig) -> float | None:
    """Return the class prior that the user gave, or None when it is to be estimated."""
    return None if config.class_prior == "estimate" else float(config.class_prior)


def resolve(config: Config) -> Config:
    """Return the config with tuples split and every value checked.

    Raises:
        UserError: a value is of the wrong type, out of range or not used; the message names field, value and remedy.
    """
    config = _resolve_group(config, "")
    _check_class_prior(config.scorer)
    unused = "finetune" if config.scorer.mode == "frozen" else "frozen"
    for name, value in flatten(getattr(config.scorer, unused)):
        if value != getattr(getattr(Config().scorer, unused), name):
            raise UserError(
                f"scorer.{unused}.{name} is {value!r}, but scorer.mode is {config.scorer.mode}; leave it out"
            )
    if config.data.channels not in (0, 1, 3):
        raise UserError(f"data.channels is {config.data.channels}; use 1 (grey) or 3 (RGB)")
    for name in ("mean", "std"):
        if config.data.channels and len(getattr(config.data, name)) not in (0, 1, config.data.channels):
            raise UserError(f"data.{name} needs one number, or one for each of the {config.data.channels} channels")
    for name, group in (("teacher.num_steps", "teacher"), ("scorer.finetune.num_steps", "scorer.finetune"),
                        ("distill.num_steps", "distill"), ("export.int8_steps", "distill")):  # fmt: skip
        steps, at_a_time = (dict(flatten(config))[field] for field in (name, f"{group}.steps_per_call"))
        if steps % at_a_time:
            raise UserError(f"{name} is {steps}, not a multiple of {group}.steps_per_call ({at_a_time})")
    if not config.export.int8_steps and config.export.int8_learning_rate != ExportConfig().int8_learning_rate:
        raise UserError(
            f"export.int8_learning_rate is {config.export.int8_learning_rate}, but export.int8_steps is 0; leave it "
            "out, or set export.int8_steps"
        )
    shares = (("scorer.frozen.positives_per_batch", config.scorer.frozen.batch_size),
              ("scorer.finetune.positives_per_batch", config.scorer.finetune.batch_size),
              ("distill.labelled_per_batch", config.distill.batch_size))  # fmt: skip
    for name, batch_size in shares:
        count = dict(flatten(config))[name]
        if count >= batch_size:
            group = name.rsplit(".", 1)[0]
            raise UserError(f"{name} is {count}; it must be less than {group}.batch_size ({batch_size})")
    return config


def _resolve_group(group: Any, prefix: str) -> Any:
    """Return a copy of a group with every field checked by its annotation and its rules."""
    hints, changes = typing.get_type_hints(type(group)), {}
    for item in dataclasses.fields(group):
        name, value, hint = prefix + item.name, getattr(group, item.name), hints[item.name]
        if dataclasses.is_dataclass(hint):
            if not isinstance(value, hint):
                raise UserError(f"{name} is {value!r}; it must be a {hint.__name__}")
            changes[item.name] = _resolve_group(value, f"{name}.")
        else:
            changes[item.name] = value = _typed(name, value, hint)
            for entry in value if isinstance(value, tuple) else (value,):
                _check_rules(name, entry, item.metadata)
    group = dataclasses.replace(group, **changes)
    for item in dataclasses.fields(group):
        _check_used(group, item, prefix)
    return group


def _typed(name: str, value: Any, hint: Any) -> Any:
    """Return the value if it is of the annotated type; "a,b" given for a tuple becomes ("a", "b")."""
    if isinstance(hint, types.GenericAlias):
        return _tuple(name, value, typing.get_args(hint)[0])
    if name == "scorer.class_prior" and isinstance(value, float):
        return repr(value)
    kinds = {bool: bool, int: numbers.Integral, float: numbers.Real, str: str}
    if not isinstance(value, kinds[hint]) or (isinstance(value, bool) and hint is not bool):
        what = {bool: "True or False", int: "a whole number", float: "a number", str: "text"}[hint]
        raise UserError(f"{name} is {value!r}; give {what}")
    return value


def _tuple(name: str, value: Any, kind: type) -> tuple:
    entries = value if isinstance(value, tuple | list) else (value,) if isinstance(value, str) else None
    try:
        parts = [part for entry in entries for part in (entry.split(",") if isinstance(entry, str) else [entry])]
        return tuple(kind(part) for part in parts if part != "")
    except (TypeError, ValueError) as error:
        given = ",".join(map(str, value)) if isinstance(value, tuple | list) else value
        what = "numbers as a,b,c" if kind is float else "names as a,b,c"
        raise UserError(f"{name} is {given}; give {what}") from error


def _check_rules(name: str, value: Any, rules: Any) -> None:
    """Raise UserError unless the value of a leaf keeps the rules beside its field."""
    if "choices" in rules and value not in rules["choices"]:
        close = difflib.get_close_matches(str(value), rules["choices"], 1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        choices = ", ".join(choice for choice in rules["choices"] if choice)
        verb = "contains" if name in ("baselines", "export.formats") else "is"
        raise UserError(f"{name} {verb} {value!r}; {hint}choose from {choices}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name} is {value}; give a finite number")
    if "above" in rules and not value > rules["above"]:
        raise UserError(f"{name} is {value}; it must be greater than {rules['above']}")
    if "at_least" in rules and not value >= rules["at_least"]:
        raise UserError(f"{name} is {value}; it must be at least {rules['at_least']}")
    if "below" in rules and not value < rules["below"]:
        raise UserError(f"{name} is {value}; it must be less than {rules['below']}")
    if "at_most" in rules and not value <= rules["at_most"]:
        raise UserError(f"{name} is {value}; it must be at most {rules['at_most']}")


def _check_used(group: Any, item: dataclasses.Field, prefix: str) -> None:
    """Raise UserError if a field is set though another one makes it count for nothing."""
    value = getattr(group, item.name)
    for other, values in item.metadata.get("used_if", {}).items():
        set_to = getattr(group, other)
        chosen = set_to if isinstance(set_to, tuple) else (set_to,)
        if value != item.default and not set(chosen) & set(values):
            raise UserError(
                f"{prefix}{item.name} is {value!r}, but {prefix}{other} is {set_to!r}, which does not "
                f"use it; leave it out, or set {prefix}{other} to {' or '.join(map(str, values))}"
            )


def _check_class_prior(config: ScorerConfig) -> None:
    try:
        prior = given_class_prior(config)
    except ValueError:
        prior = math.nan
    if prior is not None and not 0 < prior < 1:
        raise UserError(f"scorer.class_prior is {config.class_prior!r}; use 'estimate' or a number between 0 and 1")
