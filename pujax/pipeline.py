"""The order of the stages: what runs, what is skipped because it is done, and the summary.

Each stage owns a folder of the work directory. `INPUTS.json`, written first, records every option and every data
source that its results depend on, its own and those of the stages before it; `DONE.json`, written last, holds its
summary block. A folder made from other inputs is never reused: the run stops and names the field that differs.
"""

import dataclasses
import importlib.metadata
import platform
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from pujax import baselines, distill, mining, scorer, teacher
from pujax.checkpoint import load_json, save_json
from pujax.config import RUN_ONLY_FIELDS, Config, flatten
from pujax.data.sources import ImageSource, open_source
from pujax.metrics import MetricsLog
from pujax.models import CLASSIFIERS
from pujax.sharding import barrier, check_divisible, is_main_process, make_mesh

STAGES = ("teacher", "scorer", "mine", "distill", "baselines")

# What a stage's own work depends on; it depends on everything before it as well.
_DATA_FIELDS = tuple(
    f"data.{name}" for name in ("num_classes", "image_size", "channels", "mean", "std", "full.", "test.")
)
_FIELDS = {
    "teacher": ("seed", "compute_dtype", "teacher.", *_DATA_FIELDS),
    "scorer": ("scorer.", "data.labelled.", "data.pool."),
    "mine": ("mining.",),
    "distill": ("distill.",),
}
_SOURCES = {"teacher": ("full", "test"), "scorer": ("labelled", "pool")}
_BEFORE = {
    "teacher": (),
    "scorer": ("teacher",),
    "mine": ("teacher", "scorer"),
    "distill": ("teacher", "scorer", "mine"),
    "baselines": ("teacher", "scorer", "mine"),
}


@dataclass
class Unit:
    """One piece of work with a folder of its own: a stage, or one baseline."""

    folder: Path
    inputs: dict[str, Any]  # every option and source its results depend on
    run: Callable[[], dict[str, Any]]

    def is_done(self) -> bool:
        """Whether the folder holds finished results."""
        return (self.folder / "DONE.json").exists()

    def block(self) -> dict[str, Any]:
        """Return the summary block of a finished unit."""
        return load_json(self.folder / "DONE.json")


def run(config: Config, workdir: Path, stages: tuple[str, ...] = STAGES) -> dict[str, Any]:
    """Run the stages that are not done, in order; return the summary, also written to `summary.json`.

    Raises:
        ValueError: an input is wrong, or the work directory holds results of another config.
    """
    started = time.monotonic()
    workdir.mkdir(parents=True, exist_ok=True)
    mesh = make_mesh()
    with closing(MetricsLog(workdir, enabled=is_main_process())) as log:
        units = make_units(config, workdir, mesh, log)
        check(config, units, stages, mesh)
        if is_main_process():
            save_json(workdir / "config.json", dataclasses.asdict(config))
        for name, unit in units.items():
            if name.split("/")[0] in stages:
                run_unit(name, unit)
    summary = summarize(config, units, time.monotonic() - started)
    if is_main_process():
        save_json(workdir / "summary.json", summary)
    return summary


def make_units(config: Config, workdir: Path, mesh: Mesh, log: MetricsLog) -> dict[str, Unit]:
    """Return every unit of work by name, in the order in which they run."""
    arguments = (config, workdir, mesh, log)
    work: dict[str, Callable[[], dict[str, Any]]] = {
        "teacher": lambda: teacher.run(*arguments),
        "scorer": lambda: scorer.run(*arguments),
        "mine": lambda: mining.run(*arguments, class_prior=units["scorer"].block()["class_prior"]),
        "distill": lambda: distill.run(*arguments),
    }
    sources = source_fingerprints(config)
    units = {
        name: Unit(workdir / name, stage_inputs(config, sources, (*_BEFORE[name], name)), stage)
        for name, stage in work.items()
    }
    for name in config.baselines:
        inputs = stage_inputs(config, sources, ("teacher", "scorer", "mine", "distill"))
        stage = lambda name=name: baselines.run(*arguments, name=name)  # noqa: E731
        units[f"baselines/{name}"] = Unit(workdir / "baselines" / name, inputs, stage)
    return units


def source_fingerprints(config: Config) -> dict[str, str]:
    """Open every data source that is set; return its fingerprint by name."""
    return {part: source.fingerprint for part, source in open_all(config).items()}


def open_all(config: Config) -> dict[str, ImageSource]:
    """Return every data source that is set, by its name in the config."""
    parts = {part: getattr(config.data, part) for part in ("full", "test", "labelled", "pool")}
    for part in ("test", "labelled", "pool"):
        if not parts[part].kind:
            raise ValueError(f"data.{part} is not set; give --config.data.{part}.kind and .path")
    return {
        part: open_source(source, config.data, labelled=part != "pool") for part, source in parts.items() if source.kind
    }


def stage_inputs(config: Config, sources: dict[str, str], stages: tuple[str, ...]) -> dict[str, Any]:
    """Return the options and source fingerprints that the given stages depend on."""
    prefixes = tuple(prefix for stage in stages for prefix in _FIELDS[stage])
    inputs = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in flatten(config)
        if name.startswith(prefixes) and name not in RUN_ONLY_FIELDS
    }
    parts = [part for stage in stages for part in _SOURCES.get(stage, ())]
    return inputs | {f"contents of data.{part}": sources[part] for part in parts if part in sources}


def check(config: Config, units: dict[str, Unit], stages: tuple[str, ...], mesh: Mesh) -> None:
    """Raise ValueError for what would stop one of the stages hours later."""
    for unit in units.values():
        check_inputs(unit)
        if unit.is_done():
            unit.block()  # damaged?
    to_do = {name.split("/")[0] for name, unit in units.items() if not unit.is_done()}
    for stage in to_do.intersection(stages):
        missing = sorted(to_do.intersection(_BEFORE[stage]).difference(stages), key=STAGES.index)
        if missing:
            raise ValueError(f"stage {stage} needs stage {missing[0]}, which has not run; add it to --stages")
    for field, training in (("teacher", config.teacher), ("distill", config.distill)):
        if not training.model:
            raise ValueError(f"{field}.model is not set; choose from {', '.join(CLASSIFIERS)}")
    if not config.teacher.weights:
        if not config.data.full.kind:
            raise ValueError("neither teacher.weights nor data.full is set; give weights, or images to train on")
        check_divisible(config.teacher.batch_size, mesh, "teacher.batch_size")
    check_divisible(config.scorer.batch_size, mesh, "scorer.batch_size")
    check_divisible(config.distill.batch_size, mesh, "distill.batch_size")
    for name in config.baselines:
        baselines.check_data(config, name)


def check_inputs(unit: Unit) -> None:
    """Raise ValueError, naming the field, if the unit's folder was made from other inputs."""
    path = unit.folder / "INPUTS.json"
    if not path.exists():
        return
    before = load_json(path)
    for name in sorted(before.keys() | unit.inputs.keys()):
        if before.get(name) != unit.inputs.get(name):
            raise ValueError(
                f"{unit.folder} was made with {name}={before.get(name)!r}, this run has {unit.inputs.get(name)!r}; "
                f"choose another --workdir, or delete that folder and those of later stages"
            )


def run_unit(name: str, unit: Unit) -> None:
    """Run a unit unless it is done; its inputs are recorded first, its results last."""
    if unit.is_done():
        _say(f"{name}: done before, skipped")
        return
    if is_main_process():
        unit.folder.mkdir(parents=True, exist_ok=True)
        save_json(unit.folder / "INPUTS.json", unit.inputs)
    barrier(f"{name} starts")
    started = time.monotonic()
    block = unit.run()
    block["seconds"] = round(time.monotonic() - started, 2)
    if is_main_process():
        save_json(unit.folder / "DONE.json", block)
    barrier(f"{name} done")
    _say(f"{name}: " + ", ".join(f"{key} {_short(value)}" for key, value in block.items()))


def summarize(config: Config, units: dict[str, Unit], seconds: float) -> dict[str, Any]:
    """Return the content of `summary.json`: one block per finished stage, the baselines, and the run."""
    keys = {"teacher": "teacher", "scorer": "scorer", "mine": "mining", "distill": "student"}
    summary = {key: units[name].block() for name, key in keys.items() if units[name].is_done()}
    compared = {name.split("/")[1]: unit for name, unit in units.items() if name.startswith("baselines/")}
    if compared:
        summary["baselines"] = {name: unit.block() for name, unit in compared.items() if unit.is_done()}
    packages = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "pujax")
    versions = {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}
    summary["run"] = {
        "seed": config.seed,
        "devices": jax.device_count(),
        "device_kind": jax.devices()[0].device_kind,
        "processes": jax.process_count(),
        "versions": versions,
        "wall_seconds": round(seconds, 2),
    }
    return summary


def verdict(summary: dict[str, Any]) -> str:
    """Return a plain statement of what mining was worth, in whole lines; none while there is no student."""
    if "student" not in summary:
        return ""
    student = 100 * summary["student"]["accuracy"]
    lines = [f"student {student:.2f} % on the test set, teacher {100 * summary['teacher']['accuracy']:.2f} %"]
    for name, block in summary.get("baselines", {}).items():
        other = 100 * block["accuracy"]
        lines.append(f"  {name:<20} {other:6.2f} %   mining is worth {student - other:+.2f} points")
    return "".join(f"{line}\n" for line in lines)


def _say(line: str) -> None:
    if is_main_process():
        print(line, flush=True)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "[" + ", ".join(map(_short, value)) + "]" if isinstance(value, list) else str(value)
