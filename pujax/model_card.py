"""The model card: where a network comes from, what it was measured to do, what its files are."""

import dataclasses
from typing import Any

from etils import epath

import pujax
from pujax.artifacts import load_json, save_json, write_atomic
from pujax.config import Config

CARD = "MODEL_CARD.json"
_LICENCES = ("model", "teacher", "labelled", "pool", "test")


def make_card(
    network: dict[str, Any],
    files: dict[str, Any],
    *,
    num_params: int,
    flops_per_image: float,
    inputs: dict[str, Any],
    job: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the card as JSON takes it.

    Args:
        network: model, classes and preprocessing.
        files: what is to be known of each, by format.
        num_params: trainable parameters.
        flops_per_image: operations of one forward pass.
        inputs: what the network depends on; of these the card has the fingerprints of sources and files.
        job: `job_facts` of the job that trained it, where it was one.
    """
    return {
        **network,
        "files": files,
        **(job or {}),
        "num_params": num_params,
        "flops_per_image": flops_per_image,
        "fingerprints": {name: value for name, value in inputs.items() if name.startswith("contents of ")},
        "licences": dict.fromkeys(_LICENCES, ""),  # for its owner to fill in
        "made_by": f"pujax {pujax.__version__}",
    }


def job_facts(config: dict[str, Any] | Config, found: dict[str, Any]) -> dict[str, Any]:
    """Return what the card has of a job.

    Args:
        config: its resolved options.
        found: summary blocks of the stages teacher, scorer, select and distill.
    """
    teacher, scorer, select, student = (found[name] for name in ("teacher", "scorer", "select", "distill"))
    prior = {name: scorer[name] for name in ("class_prior", "class_prior_interval") if name in scorer}
    if doubt := select.get("doubt"):
        prior = {"class_prior": None, "reason": doubt}
    return {
        "accuracy": {"student": student["accuracy"], "student_lowest_class": student["lowest_class_accuracy"],
                     "teacher": teacher["accuracy"]},
        "test_images": teacher.get("test_images"),
        "mining": {**prior, "rule": select["rule"], "chosen": select["selected"],
                   "train_images": student["train_images"]},
        "config": dataclasses.asdict(config) if isinstance(config, Config) else config,
    }  # fmt: skip


def save_card(folder: epath.Path, card: dict[str, Any]) -> None:
    """Write the card into the folder of the files, for programs and for people."""
    save_json(folder / CARD, card)
    write_atomic(folder / "MODEL_CARD.md", as_markdown(card).encode())


def load_card(folder: epath.Path) -> dict[str, Any] | None:
    """Return the card in a folder; None where there is none.

    Raises:
        UserError: it is damaged.
    """
    return load_json(folder / CARD) if (folder / CARD).exists() else None


def as_markdown(card: dict[str, Any]) -> str:
    """Return the card as a page for people; what is long is in the JSON beside it."""
    seen = card["preprocessing"]
    classes = ", ".join(card["class_names"] or ()) or "names not known"
    return "\n".join([
        f"# {card['model']}",
        "",
        f"An image classifier, written by {card['made_by']}. Everything here and more is in `{CARD}`.",
        "",
        "| | |",
        "|---|---|",
        f"| classes | {card['num_classes']}: {classes} |",
        f"| images | {seen['image_size']}x{seen['image_size']}, {'RGB' if seen['channels'] == 3 else 'grey'}; "
        f"centre crop {seen['crop']:g}, {seen['interpolation']} |",
        f"| normalisation | (pixel / 255 - {seen['mean']}) / {seen['std']} |",
        f"| size | {card['num_params']:,} parameters, {card['flops_per_image']:,.0f} operations an image |",
        *(_of_job(card) if "mining" in card else ()),
        "",
        "## Files",
        "",
        "| format | file | takes | bytes | top-1 agreement | accuracy | ms an image, one thread |",
        "|---|---|---|---|---|---|---|",
        *(_row(name, block) for name, block in card["files"].items()),
        "",
        "## Data",
        "",
        *(f"- {name}: `{value}`" for name, value in card["fingerprints"].items()),
        "",
        "## Licences",
        "",
        *(f"- {name}: {value or 'not stated'}" for name, value in card["licences"].items()),
        "",
    ])  # fmt: skip


def _of_job(card: dict[str, Any]) -> list[str]:
    """Return the rows that only a network that was distilled here has."""
    accuracy, mining = card["accuracy"], card["mining"]
    prior = mining.get("class_prior")
    share = f"{prior:.3g} of the pool" if prior else f"none: {mining.get('reason')}"
    return [
        f"| accuracy | student {accuracy['student']:.4f}, its worst class {accuracy['student_lowest_class']:.4f}, "
        f"teacher {accuracy['teacher']:.4f}; {card['test_images']} test images |",
        f"| trained on | {mining['train_images']:,} images, of which {mining['chosen']:,} chosen from the pool by rule "
        f"`{mining['rule']}` |",
        f"| class prior | {share} |",
    ]


def _row(name: str, block: dict[str, Any]) -> str:
    if "skipped" in block:
        return f"| {name} | skipped: {block['skipped']} | | | | | |"
    latency = f"{block['latency_ms']:.3g}" if "latency_ms" in block else ""
    file = block["path"].rsplit("/", 1)[-1]
    return (
        f"| {name} | `{file}` | {block['takes']} | {block['bytes']:,} | {block['top1_agreement']:.4f} "
        f"| {block['accuracy']:.4f} | {latency} |"
    )
