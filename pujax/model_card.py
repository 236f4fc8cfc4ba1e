"""The model card: where a student comes from, what it was measured to do, what its files are."""

import dataclasses
from typing import Any

import pujax
from pujax.config import Config

_LICENCES = ("model", "teacher", "labelled", "pool", "test")


def make_card(
    network: dict[str, Any],
    config: Config,
    *,
    inputs: dict[str, Any],
    found: dict[str, Any],
    files: dict[str, Any],
) -> dict[str, Any]:
    """Return the card as JSON takes it.

    Args:
        network: model, classes and preprocessing.
        config: the resolved options of the job.
        inputs: what the student depends on; of these the card has the fingerprints of sources and files.
        found: summary blocks of the stages teacher, scorer, select and distill.
        files: the export stage's blocks, by format.
    """
    teacher, scorer, select, student = (found[name] for name in ("teacher", "scorer", "select", "distill"))
    prior = {name: scorer[name] for name in ("class_prior", "class_prior_interval") if name in scorer}
    if doubt := select.get("doubt"):
        prior = {"class_prior": None, "reason": doubt}
    return {
        **network,
        "files": files,
        "accuracy": {"student": student["accuracy"], "student_lowest_class": student["lowest_class_accuracy"],
                     "teacher": teacher["accuracy"]},
        "test_images": teacher.get("test_images"),
        "mining": {**prior, "rule": select["rule"], "chosen": select["selected"],
                   "train_images": student["train_images"]},
        "num_params": student["num_params"],
        "flops_per_image": student["flops_per_image"],
        "fingerprints": {name: value for name, value in inputs.items() if name.startswith("contents of ")},
        "licences": dict.fromkeys(_LICENCES, ""),  # for its owner to fill in
        "made_by": f"pujax {pujax.__version__}",
        "config": dataclasses.asdict(config),
    }  # fmt: skip


def as_markdown(card: dict[str, Any]) -> str:
    """Return the card as a page for people; what is long is in the JSON beside it."""
    accuracy, mining, seen = card["accuracy"], card["mining"], card["preprocessing"]
    classes = ", ".join(card["class_names"] or ()) or "names not known"
    prior = mining.get("class_prior")
    share = f"{prior:.3g} of the pool" if prior else f"none: {mining.get('reason')}"
    return "\n".join([
        f"# {card['model']}",
        "",
        f"An image classifier, distilled by {card['made_by']}. Everything here and more is in `MODEL_CARD.json`.",
        "",
        "| | |",
        "|---|---|",
        f"| classes | {card['num_classes']}: {classes} |",
        f"| images | {seen['image_size']}x{seen['image_size']}, {'RGB' if seen['channels'] == 3 else 'grey'}; "
        f"centre crop {seen['crop']:g}, {seen['interpolation']} |",
        f"| normalisation | (pixel / 255 - {seen['mean']}) / {seen['std']} |",
        f"| accuracy | student {accuracy['student']:.4f}, its worst class {accuracy['student_lowest_class']:.4f}, "
        f"teacher {accuracy['teacher']:.4f}; {card['test_images']} test images |",
        f"| size | {card['num_params']:,} parameters, {card['flops_per_image']:,.0f} operations an image |",
        f"| trained on | {mining['train_images']:,} images, of which {mining['chosen']:,} chosen from the pool by rule "
        f"`{mining['rule']}` |",
        f"| class prior | {share} |",
        "",
        "## Files",
        "",
        "| format | file | bytes | top-1 agreement | accuracy | ms an image, one thread |",
        "|---|---|---|---|---|---|",
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


def _row(name: str, block: dict[str, Any]) -> str:
    if "skipped" in block:
        return f"| {name} | skipped: {block['skipped']} | | | | |"
    latency = f"{block['latency_ms']:.3g}" if "latency_ms" in block else ""
    file = block["path"].rsplit("/", 1)[-1]
    return (
        f"| {name} | `{file}` | {block['bytes']:,} | {block['top1_agreement']:.4f} | {block['accuracy']:.4f} "
        f"| {latency} |"
    )
