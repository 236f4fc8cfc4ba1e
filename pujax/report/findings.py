"""What a run has come to, in plain words: the first sentence, and what to be careful about."""

import math
from typing import Any, NamedTuple

from pujax.pu.prior import LARGEST_Z
from pujax.report.quantities import accuracy_error, count, percent, points

Summary = dict[str, Any]
_FEW_IMAGES = 1000  # that measure: below, the standard error is above a point


class Finding(NamedTuple):
    """Something to be careful about."""

    title: str
    text: str


def headline(summary: Summary) -> str:
    """Return one sentence or two on what came out."""
    teacher = summary.get("teacher")
    if teacher is None:
        return "No stage has run yet."
    on = f"{count(teacher['test_images'])} test images" if teacher.get("test_images") else "the test images"
    if "student" not in summary:
        return f"The teacher is right on {percent(teacher['accuracy'])} of {on}. There is no student yet."
    said = (
        f"The student is right on {percent(summary['student']['accuracy'])} of {on}, the teacher on "
        f"{percent(teacher['accuracy'])}"
    )
    return f"{said}; {worth(summary)}."


def worth(summary: Summary) -> str:
    """Return what mining was worth, against random images where there are any, else the best other baseline."""
    name, gain, error = gain_over_baseline(summary)
    if not name:
        return "what mining was worth was not measured, since no baseline ran"
    other = "random images" if name == "random" else f"the baseline {name}"
    if abs(gain) <= 2 * error:
        return f"mining made no difference from {other} that can be told ({points(gain)} ± {100 * error:.1f} points)"
    return f"mining was worth {points(gain)} points over {other}"


def gain_over_baseline(summary: Summary) -> tuple[str, float, float]:
    """Return (baseline, the student's gain over it, its standard error), as shares; ("", 0, 0) without a baseline.

    It is `random` where that ran, else the best of those that the same labelled images and pool can give.
    """
    ran = summary.get("baselines", {})
    fair = {name: block for name, block in ran.items() if name not in ("full_data", "true_positives")}
    if not fair or "student" not in summary:
        return "", 0.0, 0.0
    name = "random" if "random" in fair else max(fair, key=lambda own: fair[own]["accuracy"])
    images = summary["teacher"].get("test_images", 0)
    ours, other = summary["student"]["accuracy"], fair[name]["accuracy"]
    return name, ours - other, math.hypot(accuracy_error(ours, images), accuracy_error(other, images))


def useful_share(summary: Summary) -> tuple[str, str]:
    """Return (the share of the pool that belongs to the task, how it is known) in words."""
    scorer = summary.get("scorer")
    if scorer is None:
        return "not known", "the scorer has not run"
    if not scorer["class_prior_holds"]:
        return "not known", "the test of it fails, see below"
    if scorer["class_prior_interval"] is None:
        return percent(scorer["class_prior"]), "as given, not estimated"
    low, high = scorer["class_prior_interval"]
    return percent(scorer["class_prior"]), f"95 % interval {percent(low)} to {percent(high)}"


def warnings(summary: Summary) -> list[Finding]:
    """Return everything in a run that a reader should be careful about, the gravest first."""
    mining = summary.get("mining", {})
    found = [
        *_of_the_teacher(summary.get("teacher", {})),
        *_of_the_gain(summary),
        *_of_the_scorer(summary.get("scorer", {}), mining.get("doubt", "")),
        *_of_the_student(summary),
        *_of_the_pool(mining),
        *_of_the_exports(summary.get("export", {})),
    ]
    return found


def _of_the_teacher(teacher: Summary) -> list[Finding]:
    found = []
    if doubt := teacher.get("doubt"):
        found.append(Finding("The teacher seems to be used wrongly", f"{_sentence(doubt)} Mend this first."))
    images = teacher.get("test_images", 0)
    if 0 < images < _FEW_IMAGES:
        error = 100 * accuracy_error(teacher["accuracy"], images)
        found.append(
            Finding(
                "Few test images",
                f"Accuracy was measured on {count(images)} images: the teacher's has a standard error of {error:.1f} "
                "points, and smaller differences mean nothing.",
            )
        )
    return found


def _of_the_gain(summary: Summary) -> list[Finding]:
    if "student" not in summary:
        return []
    name, gain, error = gain_over_baseline(summary)
    if not name:
        return [
            Finding(
                "What mining was worth is not known",
                "No baseline ran. --config.baselines=random trains the same student on random images, for comparison.",
            )
        ]
    if gain > 2 * error:
        return []
    other = "random images" if name == "random" else f"the baseline {name}"
    return [
        Finding(
            f"Mining is not better than {other}",
            f"The difference is {points(gain)} points, with a standard error of {100 * error:.1f}. Where the pool is "
            "of the same kind as the task, any of its images serve, and mining need not be done.",
        )
    ]


def _of_the_scorer(scorer: Summary, doubt: str) -> list[Finding]:
    found = []
    z = scorer.get("selected_at_random_z")
    if z is not None and z > LARGEST_Z:
        title = "The labelled images are no random sample of the task's part of the pool"
        told = f"The test gives z = {z:.1f}; up to {LARGEST_Z:.0f} it could be chance."
        found.append(
            Finding(title, f"{told} {_sentence(doubt or 'an estimate of the useful share does not hold then')}")
        )
    elif scorer and not scorer["class_prior_holds"]:
        why = doubt or "the labelled images differ in style from the pool's, or too few of the pool score like them"
        found.append(Finding("The share of useful images is not known", _sentence(why)))
    interval = scorer.get("class_prior_interval")
    if interval and scorer["class_prior_holds"] and interval[1] > 2 * max(interval[0], 1e-9):
        low, high = interval
        found.append(
            Finding(
                "The share of useful images is known only roughly",
                f"Its interval goes from {percent(low)} to {percent(high)}. More labelled images make it narrower.",
            )
        )
    return found


def _of_the_student(summary: Summary) -> list[Finding]:
    student = summary.get("student", {})
    lowest = student.get("lowest_class_accuracy")
    if lowest is None or lowest >= student["accuracy"] / 2:
        return []
    return [
        Finding(
            "One class is nearly lost",
            f"The student is right on {percent(student['accuracy'])} of all images, but on {percent(lowest)} of the "
            "class that it knows least.",
        )
    ]


def _of_the_pool(mining: Summary) -> list[Finding]:
    found = []
    for part, why in (("test", "The accuracy may be too good by them. "), ("labelled", "")):
        if copies := mining.get(f"copies_of_{part}"):
            noun = "image looks like a copy" if copies == 1 else "images look like copies"
            found.append(
                Finding(
                    f"Copies of {part} images among the chosen",
                    f"{count(copies)} chosen {noun} of {part} images. {why}select.copies=drop leaves them out.",
                )
            )
    if unreadable := mining.get("unreadable"):
        are = "image, {} of them, does not decode" if unreadable == 1 else "images, {} of them, do not decode"
        text = f"{count(unreadable)} pool {are.format(percent(unreadable / mining['pool_images']))}."
        listed = "They are left out, and listed with reasons in score/unreadable.parquet."
        found.append(Finding("Unreadable images", f"{text} {listed}"))
    if skipped := {kind: number for kind, number in mining.get("skipped", {}).items() if number}:
        text = ", ".join(f"{count(number)} {kind}" for kind, number in skipped.items())
        found.append(Finding("Files of the pool that are no images", f"Skipped: {text}."))
    return found


def _of_the_exports(exports: Summary) -> list[Finding]:
    found = []
    for name, block in exports.items():
        if isinstance(block, dict) and "skipped" in block:
            found.append(Finding(f"No {name} file", _sentence(str(block["skipped"]))))
        elif isinstance(block, dict) and block.get("top1_agreement", 1.0) < 0.99:
            share = percent(block["top1_agreement"])
            found.append(Finding(f"The {name} file answers differently", f"It names the same class on {share} only."))
    return found


def _sentence(text: str) -> str:
    text = text.strip().rstrip(".")
    return f"{text[:1].upper()}{text[1:]}."
