"""Charts as SVG: each part tells its numbers when it is pointed at, and takes its colours from the page."""

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
from markupsafe import Markup, escape

from pujax.report.curves import Curve

_WIDTH, _LEFT, _RIGHT = 460, 46, 10
_COLOURS = 6  # of curves, as the style sheet has them


def bar(parts: Sequence[tuple[str, float, str]], *, error: float = 0.0) -> Markup:
    """Return horizontal bars, one below the other, as wide as the room they are given.

    Args:
        parts: (colour class, share of the full width in [0, 1], what it tells) of each.
        error: standard error of the first, as a share of the full width.
    """
    height = 10 / len(parts)
    drawn = []
    for i, (name, share, text) in enumerate(parts):
        width = 100 * min(max(share, 0.0), 1.0)
        drawn.append(
            f'<rect class="{name}" x="0" y="{i * height:.2f}" width="{max(width, 0.4 if share > 0 else 0):.2f}" '
            f'height="{height * 0.9:.2f}"><title>{escape(text)}</title></rect>'
        )
    if error:
        low, high = (100 * min(max(parts[0][1] + sign * error, 0.0), 1.0) for sign in (-1, 1))
        drawn.append(f'<path class="whisker" d="M{low:.2f} 4.5H{high:.2f}M{low:.2f} 2V7M{high:.2f} 2V7"/>')
    label = escape("; ".join(text for _, _, text in parts))
    return Markup(
        f'<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" role="img" aria-label="{label}">'
        f"{''.join(drawn)}</svg>"
    )


def score_histograms(
    edges: np.ndarray, labelled: np.ndarray, pool: np.ndarray, chosen: np.ndarray, threshold: float | None
) -> Markup:
    """Return two histograms over one axis of scores: of labelled images, and of the pool, with the chosen in it.

    Args:
        edges: float [B + 1].
        labelled: int [B], drawn to scale.
        pool: int [B], drawn to a logarithmic scale, so that a few good images among millions are seen.
        chosen: int [B], likewise, in front of the pool.
        threshold: lowest score that was chosen.
    """
    top, gap, low = 100, 24, 130
    height = top + gap + low + 40
    x = _scale(edges[0], edges[-1], _LEFT, _WIDTH - _RIGHT)
    most = max(int(labelled.max()), 1)
    upper = _scale(0, most, top, 14)
    decades = max(math.ceil(math.log10(max(int(pool.max()), 2))), 1)
    lower = _scale(-0.15, decades, top + gap + low, top + gap + 14)
    parts = [_text(_LEFT, 11, "labelled images, held out"), _text(_LEFT, top + gap + 8, "pool images, log scale")]
    for value in _ticks(0, most, 3):
        parts.append(_level(upper(value), f"{value:,.0f}"))
    for decade in range(decades + 1):
        parts.append(_level(lower(decade), _power(decade)))
    for i, (left, right) in enumerate(itertools.pairwise(edges)):
        where = f"score {left:.2f} to {right:.2f}"
        parts.append(_column(x(left), x(right), upper(labelled[i]), top, "labelled", f"{where}: {labelled[i]:,}"))
        floor = top + gap + low
        for name, counts in (("pool", pool), ("chosen", chosen)):
            if counts[i]:
                text = f"{where}: {pool[i]:,} of the pool, {chosen[i]:,} chosen"
                parts.append(_column(x(left), x(right), lower(math.log10(counts[i])), floor, name, text))
    for value in _ticks(edges[0], edges[-1], 6):
        parts.append(_text(x(value), height - 18, f"{value:g}", "middle"))
    parts.append(_text((_LEFT + _WIDTH) / 2, height - 3, "score", "middle"))
    if threshold is not None:
        at = x(min(max(threshold, edges[0]), edges[-1]))
        text = f"lowest chosen score {threshold:.2f}"
        parts.append(f'<path class="mark" d="M{at:.1f} 2V{top + gap + low}"><title>{text}</title></path>')
    label = (
        f"Histograms of scores: {labelled.sum():,} labelled images, {pool.sum():,} pool images, {chosen.sum():,} chosen"
    )
    return _svg(height, label, parts)


def curves(named: dict[str, Curve], *, y_label: str) -> Markup:
    """Return learning curves over steps; values to a logarithmic scale where they span more than a decade."""
    values = [value for curve in named.values() for _, value in curve]
    last = max(step for curve in named.values() for step, _ in curve)
    logarithmic = min(values) > 0 and max(values) > 10 * min(values)
    height = 250
    x = _scale(0, max(last, 1), _LEFT, _WIDTH - _RIGHT)
    if logarithmic:
        bounds = math.floor(math.log10(min(values)) * 2) / 2, math.ceil(math.log10(max(values)) * 2) / 2
        levels = [(v, f"{10**v:.2g}") for v in np.arange(bounds[0], bounds[1] + 0.1, 0.5)]
    else:
        bounds = min(0.0, *values), max(values) or 1.0
        levels = [(v, f"{v:g}") for v in _ticks(*bounds, 5)]
    y = _scale(*bounds, height - 40, 20)
    parts = [_text(_LEFT, 11, f"{y_label}, log scale" if logarithmic else y_label)]
    parts += [_level(y(value), text) for value, text in levels]
    parts += [_text(x(value), height - 20, f"{value:,.0f}", "middle") for value in _ticks(0, last, 5)]
    parts.append(_text((_LEFT + _WIDTH) / 2, height - 4, "step", "middle"))
    for i, (name, curve) in enumerate(named.items()):
        at = [(x(s), y(math.log10(v) if logarithmic else v), s, v) for s, v in curve]
        path = "L".join(f"{px:.1f} {py:.1f}" for px, py, *_ in at)
        parts.append(f'<path class="curve c{i % _COLOURS}" d="M{path}"/>')
        for px, py, step, value in at:
            title = f"<title>{escape(name)}, step {step:,}: {value:.4g}</title>"
            parts.append(f'<circle class="dot c{i % _COLOURS}" cx="{px:.1f}" cy="{py:.1f}" r="4">{title}</circle>')
    return _svg(height, f"{y_label} over steps of {', '.join(named)}", parts)


def _scale(low: float, high: float, start: float, stop: float) -> Callable[[float], float]:
    """Return the function that takes [low, high] to [start, stop]."""
    return lambda value: start + (float(value) - low) / (high - low) * (stop - start)


def _ticks(low: float, high: float, number: int) -> list[float]:
    """Return round values in [low, high], about so many."""
    if high <= low:
        return [low]
    raw = (high - low) / number
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 10) + 0.0 for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _power(decade: int) -> str:
    return {0: "1", 1: "10", 2: "100", 3: "1 k", 4: "10 k", 5: "100 k", 6: "1 M", 7: "10 M"}.get(decade, f"1e{decade}")


def _level(y: float, text: str) -> str:
    line = f'<path class="level" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>'
    return line + _text(_LEFT - 6, y + 4, text, "end")


def _column(left: float, right: float, y: float, floor: float, name: str, text: str) -> str:
    size = f'x="{left + 0.4:.1f}" y="{y:.1f}" width="{right - left - 0.8:.1f}" height="{max(floor - y, 0):.1f}"'
    return f'<rect class="{name}" {size}><title>{escape(text)}</title></rect>'


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(height: float, label: str, parts: list[str]) -> Markup:
    head = f'<svg class="chart" viewBox="0 0 {_WIDTH} {height:.0f}" role="img" aria-label="{escape(label)}">'
    return Markup(f"{head}{''.join(parts)}</svg>")
