"""Numbers as people read them, with their units."""

import math


def count(value: float) -> str:
    """Return a whole number with separators: 30,000."""
    return f"{value:,.0f}"


def percent(share: float, digits: int = 1) -> str:
    """Return a share as "83.5 %"; a share that would round to nothing, or to everything, says so."""
    value, least = 100 * share, 10.0**-digits
    if 0 < value < least / 2:
        return f"< {least:.{digits}f} %"
    if 100 - least / 2 < value < 100:
        return f"> {100 - least:.{digits}f} %"
    return f"{value:.{digits}f} %"


def points(difference: float) -> str:
    """Return the difference of two shares in points, with its sign: "+10.1"."""
    return f"{100 * difference:+.1f}".replace("-", "−")


def amount(value: float) -> str:
    """Return a large number in three digits: 61,706 is "61.7 k"."""
    for limit, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * limit:
            scaled = value / limit
            return f"{scaled:.{2 if scaled < 9.995 else 1 if scaled < 99.95 else 0}f} {name}"
    return f"{value:.0f}"


def size(num_bytes: float) -> str:
    """Return a number of bytes as "1.2 MB"."""
    return f"{amount(num_bytes)}B" if num_bytes >= 999.5 else f"{num_bytes:.0f} B"


def duration(seconds: float) -> str:
    """Return a time as people say it: "42 s", "3 min 20 s", "5 h 12 min"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def ratio(larger: float, smaller: float) -> str:
    """Return how many times larger one number is: "3.9 times"."""
    times = larger / smaller
    return f"{times:.1f}" if times < 99.5 else f"{times:,.0f}"


def accuracy_error(accuracy: float, images: int) -> float:
    """Return the standard error of a share that was measured on so many images; 0 where their number is unknown."""
    return math.sqrt(accuracy * (1 - accuracy) / images) if images else 0.0
