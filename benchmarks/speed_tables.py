"""The tables and bar charts of speed, from the result files; called by `benchmarks.tables`."""

from typing import Any

from benchmarks.charts import Group, bar_chart

CASES = {
    "scoring": "pool scoring",
    "teacher_step": "teacher training step",
    "finetune_step": "scorer fine-tuning step",
    "kd_step": "robust distillation step",
    "kd_step_cached": "the same, teacher logits cached",
}
SIDES = {"pujax": "pujax", "best": "PyTorch, best", "released": "PyTorch, released"}


def newest(lines: list[dict], *keys: str) -> list[dict]:
    """Return the last line of every combination of the values of `keys`, in the order in which these appeared."""
    return list({tuple(line[key] for key in keys): line for line in lines}.values())


def measured(lines: list[dict]) -> list[dict]:
    """Return the throughput lines to show: for every case, device and pair of networks one of the newest commit.

    Of several, such as with different modes of `torch.compile`, it is the one in which PyTorch was fastest.
    """
    keys = ("device", "teacher", "student", "case")
    chosen = []
    for last in newest(lines, *keys):
        own = [line for line in lines if all(line[key] == last[key] for key in (*keys, "commit"))]
        chosen.append(max(own, key=lambda line: line["images_per_second"]["best"]))
    return chosen


def markdown(head: tuple[str, ...], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [list(head), ["---"] * len(head), *rows])


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
    if not lines:
        return "Not measured yet."
    lines = measured(lines)
    head = ("case", "device", "networks", "batch", "pujax, images/s", "PyTorch, images/s", "of PyTorch")
    head += ("of PyTorch uncached", "of released", "GFLOP/s", "of peak")
    rows = []
    for line in lines:
        rates = line["images_per_second"]
        uncached, peak = line.get("ratio_to_best_uncached"), line.get("model_flops_utilisation")
        rows.append([
            CASES[line["case"]],
            line["device"],
            f"{line['teacher']} -> {line['student']}",
            str(line["batch_size"]),
            f"{rates['pujax']:,.0f}",
            f"{rates['best']:,.0f}",
            f"{line['ratio_to_best']:.2f}x",
            f"{uncached:.2f}x" if uncached else "",
            f"{line['ratio_to_released']:.2f}x",
            f"{line['achieved_flops'] / 1e9:,.0f}",
            f"{100 * peak:.0f} %" if peak else "",
        ])  # fmt: skip
    return f"{markdown(head, rows)}\n\n{origin(lines)}"


def pipeline_table(lines: list[dict]) -> str:
    """Return Markdown: images per second of the input pipeline, and ratios to each way of using PyTorch's."""
    if not lines:
        return "Not measured yet."
    lines = newest(lines, "device", "case")
    head = ("images", "pujax", "images/s", "best PyTorch", "of PyTorch's best", "of it asked one by one")
    head += ("of bare decode",)
    rows = []
    for line in lines:
        rates = line["images_per_second"]
        best = max((rate, name) for name, rate in rates.items() if name.startswith("torch"))
        for ours, label in (("pujax", "files"), ("host", "in memory"), ("device", "on the device")):
            if ours not in rates:
                continue
            single = line.get(f"{ours}_ratio_to_examples")
            bare = line.get("share_of_bare_decode")
            rows.append([
                line["case"],
                label,
                f"{rates[ours]:,.0f}",
                f"{best[0]:,.0f} ({best[1].removeprefix('torch, ')})",
                f"{rates[ours] / best[0]:.2f}x",
                f"{single:.1f}x" if single else "",
                f"{100 * bare:.0f} %" if bare else "",
            ])  # fmt: skip
    return f"{markdown(head, rows)}\n\n{origin(lines)}"


def job_table(lines: list[dict]) -> str:
    """Return Markdown: the quickstart as a whole against PyTorch written the released way."""
    if not lines:
        return "Not measured yet."
    line = lines[-1]
    sides = {"pujax, empty compile cache": "cold", "pujax, full compile cache": "warm", "PyTorch, released": "released"}
    head = ("quickstart", "whole job, s", "scorer, s", "scorer AUC", "precision, %", "student, %")
    rows = []
    for label, key in sides.items():
        side = line[key]
        seconds = [f"{side['job_seconds']:.0f}", f"{side['scorer_seconds']:.1f}"]
        quality = [f"{side['truth_auc']:.4f}", f"{100 * side['precision']:.1f}", f"{100 * side['accuracy']:.1f}"]
        rows.append([label, *seconds, *quality])
    starts = sorted(line["start_up_seconds"])
    text = (
        f"From an empty cache the job is {line['job_ratio']:.1f} times as fast, its scorer {line['scorer_ratio']:.0f} "
    )
    text += f"times; from a full one the first step comes {starts[len(starts) // 2]:.1f} s after the command. "
    return f"{markdown(head, rows)}\n\n{text}{origin([line])}"


def at_scale_table(lines: list[dict]) -> str:
    """Return Markdown: seconds and memory of listing a folder and of choosing from a score table."""
    names = {"first": "first open, lists the folder", "second": "second open"}
    rows = [
        [names.get(line["step"], f"rule {line['step']}"), f"{line['size']:,}", f"{line['seconds']:.3g}",
         f"{line['resident_mb']:.0f}"]
        for line in newest(lines, "what", "size", "step")
    ]  # fmt: skip
    return markdown(("step", "files or rows", "seconds", "resident, MB"), rows)


def throughput_groups(lines: list[dict]) -> list[Group]:
    """Return the bars of the throughput chart."""
    groups = []
    for line in measured(lines):
        rates = line["images_per_second"]
        bars = [(label, rates[side], f"{rates[side]:,.0f}") for side, label in SIDES.items()]
        groups.append((f"{CASES[line['case']]}, {line['teacher']} -> {line['student']}, {line['device']}", bars))
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
        groups.append(
            (f"{line['case']}, {line['device']}", [(way, rate, f"{rate:,.0f}") for way, rate in bars.items()])
        )
    return groups


def job_groups(lines: list[dict]) -> list[Group]:
    """Return the bars of the job's chart, seconds."""
    groups = []
    for key, label in (("job_seconds", "whole quickstart, seconds"), ("scorer_seconds", "scorer, seconds")):
        sides = {"pujax, empty cache": "cold", "pujax, full cache": "warm", "PyTorch, released": "released"}
        bars = [(name, lines[-1][side][key], f"{lines[-1][side][key]:.1f}") for name, side in sides.items()]
        groups.append((label, bars))
    return groups


def figures(results: dict[str, list[dict]]) -> dict[str, str]:
    """Return SVG by file name, for what has been measured; `results` holds the lines of every table."""
    charts: dict[str, tuple[str, Any]] = {
        "throughput": ("Images per second, one run, in turns", throughput_groups),
        "input_pipeline": ("Images per second of the input pipeline alone", pipeline_groups),
        "job": ("The quickstart, two CPU cores: shorter is better", job_groups),
    }
    return {
        f"{name}.svg": bar_chart(title, groups(results[name]))
        for name, (title, groups) in charts.items()
        if results[name]
    }


def tables(results: dict[str, list[dict]]) -> dict[str, str]:
    """Return Markdown by the name of the page's mark: each table, and its chart where there is one."""
    made = {"throughput": throughput_table, "input_pipeline": pipeline_table, "job": job_table}
    links = {name: f"\n\n![bar chart](../benchmarks/results/figures/{name}.svg)" for name in made}
    return {name: table(results[name]) + (links[name] if results[name] else "") for name, table in made.items()}
