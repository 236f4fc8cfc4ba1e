"""The tables and charts of speed, from the result files, and how any is drawn; called by `benchmarks.tables`."""

import html
from collections.abc import Callable
from operator import itemgetter
from typing import Any

CASES = {
    "scoring": "pool scoring",
    "teacher_step": "teacher training step",
    "finetune_step": "scorer fine-tuning step",
    "kd_step": "robust distillation step",
    "kd_step_cached": "the same, teacher logits cached",
}
JOBS = {"pujax, empty cache": "cold", "pujax, full cache": "warm", "PyTorch, released": "released"}
COLOURS = {"pujax": "#2a6f97", "PyTorch": "#e07a5f"}  # by how a bar's name starts
Group = tuple[str, dict[str, float]]  # label of the group; value of every bar by its name


def grouped(lines: list[dict], key: Callable[[dict], Any]) -> dict[Any, list[dict]]:
    """Return the lines by the value of `key`, in the order in which the values appeared."""
    groups: dict[Any, list[dict]] = {}
    for line in lines:
        groups.setdefault(key(line), []).append(line)
    return groups


def newest(lines: list[dict], *keys: str) -> list[dict]:
    """Return the last line of every combination of the values of `keys`, in the order in which these appeared."""
    return [own[-1] for own in grouped(lines, itemgetter(*keys)).values()]


def measured(lines: list[dict]) -> list[dict]:
    """Return of each case, device and networks one line of the newest commit: that in which PyTorch was fastest."""
    own = grouped(lines, itemgetter("device", "teacher", "student", "case")).values()
    newest_commit = ([line for line in group if line["commit"] == group[-1]["commit"]] for group in own)
    return [max(group, key=lambda line: line["images_per_second"]["best"]) for group in newest_commit]


def markdown(head: str, rows: list[list[str]], rule: str = " --- ") -> str:
    """Return a Markdown table; columns of the head are parted by ";", and `rule` goes under each."""
    first, *rest = ("| " + " | ".join(row) + " |" for row in [head.split("; "), *rows])
    return "\n".join([first, "|" + f"{rule}|" * (head.count("; ") + 1), *rest])


def origin(lines: list[dict]) -> str:
    """Return one sentence on where and with what the lines were measured."""
    line = lines[-1]
    machine = line.get("machine_before", {})
    where = f"{machine['processor']}, {machine['cores']} cores" if "processor" in machine else line["device"].upper()
    loads = [before["load"][0] for before in (entry.get("machine_before") for entry in lines) if before]
    load = f", load before the cases {min(loads):.1f} to {max(loads):.1f}" if loads else ""
    versions = ", ".join(f"{name} {version}" for name, version in line["versions"].items())
    return f"{where}{load}; {versions}; commit {line['commit']}."


def throughput_table(lines: list[dict]) -> str:
    """Return Markdown: images per second and ratios of every case."""
    head = "case; device; networks; batch; pujax, images/s; PyTorch, images/s; of PyTorch; of PyTorch uncached; "
    head += "of released; GFLOP/s; of peak"
    rows = []
    for line in measured(lines):
        rates, uncached = line["images_per_second"], line.get("ratio_to_best_uncached")
        peak = line.get("model_flops_utilisation")
        rows.append([CASES[line["case"]], line["device"], f"{line['teacher']} -> {line['student']}"])
        rows[-1] += [str(line["batch_size"]), f"{rates['pujax']:,.0f}", f"{rates['best']:,.0f}"]
        rows[-1] += [f"{line['ratio_to_best']:.2f}x", f"{uncached:.2f}x" if uncached else ""]
        rows[-1] += [f"{line['ratio_to_released']:.2f}x", f"{line['achieved_flops'] / 1e9:,.0f}"]
        rows[-1] += [f"{100 * peak:.0f} %" if peak else ""]
    return f"{markdown(head, rows)}\n\n{origin(measured(lines))}"


def pipeline_table(lines: list[dict]) -> str:
    """Return Markdown: images per second of the input pipeline, and ratios to each way of using PyTorch's."""
    lines = newest(lines, "device", "case")
    head = "images; pujax; images/s; best PyTorch; of PyTorch's best; of it asked one by one; of bare decode; "
    head += "one thread over Pillow"
    rows = []
    for line in lines:
        rates, bare, decode = (line.get(name) for name in ("images_per_second", "share_of_bare_decode", "decode_ratio"))
        best, way = max((rate, name) for name, rate in rates.items() if name.startswith("torch"))
        for ours, label in (("pujax", "files"), ("host", "in memory"), ("device", "on the device")):
            if ours in rates:
                single = line.get(f"{ours}_ratio_to_examples")
                theirs = f"{best:,.0f} ({way.removeprefix('torch, ')})"
                rows.append([line["case"], label, f"{rates[ours]:,.0f}", theirs, f"{rates[ours] / best:.2f}x"])
                rows[-1] += [f"{single:.1f}x" if single else "", f"{100 * bare:.0f} %" if bare else ""]
                rows[-1] += [f"{decode:.2f}x" if decode else ""]
    return f"{markdown(head, rows)}\n\n{origin(lines)}"


def job_table(lines: list[dict]) -> str:
    """Return Markdown: the quickstart as a whole against PyTorch written the released way."""
    line = lines[-1]
    rows = []
    for label, key in JOBS.items():
        side = line[key]
        seconds = [f"{side['job_seconds']:.0f}", f"{side['scorer_seconds']:.1f}"]
        quality = [f"{side['truth_auc']:.4f}", f"{100 * side['precision']:.1f}", f"{100 * side['accuracy']:.1f}"]
        rows.append([label.replace("cache", "compile cache"), *seconds, *quality])
    start = sorted(line["start_up_seconds"])[len(line["start_up_seconds"]) // 2]
    text = f"From an empty cache the job is {line['job_ratio']:.1f} times as fast, its scorer "
    text += f"{line['scorer_ratio']:.0f} times; from a full one the first step comes {start:.1f} s after the command."
    head = "quickstart; whole job, s; scorer, s; scorer AUC; precision, %; student, %"
    return f"{markdown(head, rows)}\n\n{text} {origin([line])}"


def score_rate_table(lines: list[dict]) -> str:
    """Return Markdown: how much of the scoring step's own rate stage score keeps."""
    rows = []
    for line in newest(lines, "device", "teacher", "batch_size"):
        alone = sum(line["step_images_per_second"]) / 2
        rows.append([line["device"], line["teacher"], str(line["batch_size"]), f"{line['shard_size']:,}"])
        rows[-1] += [f"{alone:,.0f}", f"{line['stage_images_per_second']:,.0f}", f"{100 * line['ratio']:.0f} %"]
    head = "device; teacher; batch; images a shard; step alone, images/s; stage, images/s; of the step"
    return f"{markdown(head, rows)}\n\n{origin(lines)}"


def at_scale_table(lines: list[dict]) -> str:
    """Return Markdown: seconds and memory of listing a folder and of choosing from a score table."""
    names = {"first": "first open, lists the folder", "second": "second open"}
    rows = []
    for line in newest(lines, "what", "size", "step"):
        rows.append([names.get(line["step"], f"rule {line['step']}"), f"{line['size']:,}"])
        rows[-1] += [f"{line['seconds']:.3g}", f"{line['resident_mb']:.0f}"]
    return markdown("step; files or rows; seconds; resident, MB", rows)


def bar_chart(title: str, groups: list[Group], text: str) -> str:
    """Return SVG text: horizontal bars, each group to its own scale, values in the format `text`."""
    row, left = 18, max(190, 16 + 6 * max(len(name) for _, bars in groups for name in bars))  # six pixels a letter
    width = left + 530
    out, y = [f'<text x="0" y="16" font-size="15">{html.escape(title)}</text>'], 40
    for label, bars in groups:
        out.append(f'<text x="0" y="{y}" font-weight="bold">{html.escape(label)}</text>')
        for name, value in bars.items():
            y += row
            length = (width - left - 90) * value / max(bars.values())
            colour = next((colour for start, colour in COLOURS.items() if name.startswith(start)), "#888888")
            out.append(f'<text x="{left - 8}" y="{y}" text-anchor="end">{html.escape(name)}</text>')
            out.append(f'<rect x="{left}" y="{y - 11}" width="{length:.1f}" height="13" fill="{colour}"/>')
            out.append(f'<text x="{left + length + 6:.1f}" y="{y}">{html.escape(text.format(value))}</text>')
        y += 2 * row
    style = f'xmlns="http://www.w3.org/2000/svg" width="{width}" height="{y - row}" font-family="sans-serif"'
    body = "\n".join(out)
    return f'<svg {style} font-size="12">\n<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'


def throughput_groups(lines: list[dict]) -> list[Group]:
    """Return the bars of the throughput chart."""
    sides = {"pujax": "pujax", "best": "PyTorch, best", "released": "PyTorch, released"}
    groups = []
    for line in measured(lines):
        label = f"{CASES[line['case']]}, {line['teacher']} -> {line['student']}, {line['device']}"
        groups.append((label, {name: line["images_per_second"][side] for side, name in sides.items()}))
    return groups


def pipeline_groups(lines: list[dict]) -> list[Group]:
    """Return the bars of the input pipeline's chart: pujax, and the best of each way of using PyTorch."""
    groups = []
    for line in newest(lines, "device", "case"):
        bars: dict[str, float] = {}
        for name, rate in line["images_per_second"].items():
            way = name.rsplit(", ", 1)[0].replace("torch", "PyTorch") if name.startswith("torch") else name
            way = {"pujax": "pujax", "host": "pujax, in memory", "device": "pujax, on the device"}.get(way, way)
            bars[way] = max(rate, bars.get(way, 0))
        groups.append((f"{line['case']}, {line['device']}", bars))
    return groups


def job_groups(lines: list[dict]) -> list[Group]:
    """Return the bars of the job's chart, seconds."""
    labels = {"job_seconds": "whole quickstart, seconds", "scorer_seconds": "scorer, seconds"}
    return [(label, {name: lines[-1][side][key] for name, side in JOBS.items()}) for key, label in labels.items()]


# By name of a result file: its table, and its chart's title, bars and format of the values.
SPEED: dict[str, tuple[Callable, str, Callable, str]] = {
    "throughput": (throughput_table, "Images per second, one run, in turns", throughput_groups, "{:,.0f}"),
    "input_pipeline": (pipeline_table, "Images per second of the input pipeline alone", pipeline_groups, "{:,.0f}"),
    "job": (job_table, "The quickstart, two CPU cores: shorter is better", job_groups, "{:.1f}"),
}


def figures(results: dict[str, list[dict]]) -> dict[str, str]:
    """Return SVG by file name, for what has been measured; `results` holds the lines of every table."""
    charts = {name: chart for name, (_, *chart) in SPEED.items() if results[name]}
    return {f"{name}.svg": bar_chart(title, of(results[name]), text) for name, (title, of, text) in charts.items()}


def with_chart(name: str, lines: list[dict]) -> str:
    """Return the Markdown of one of the tables of speed and of the link to its chart."""
    return f"{SPEED[name][0](lines)}\n\n![bar chart](../benchmarks/results/figures/{name}.svg)"
