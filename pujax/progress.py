"""Progress of long loops: a bar on a terminal, plain lines elsewhere."""

import sys
import time

from tqdm import tqdm


class Progress:
    """A bar with rate and time left on a terminal; elsewhere a plain line every ten seconds."""

    def __init__(self, name: str, total: int, unit: str, *, initial: int = 0, enabled: bool = True):
        self._name, self._total, self._unit, self._done = name, total, unit, initial
        self._started, self._initial, self._next_line = time.monotonic(), initial, time.monotonic() + 10
        on_terminal = sys.stderr.isatty()
        self._lines = enabled and not on_terminal
        self._bar = tqdm(
            desc=name, total=total, unit=unit, initial=initial, disable=not (enabled and on_terminal), leave=False
        )

    def advance(self, count: int, note: str = "") -> None:
        """Count `count` more units as done; `note` is shown beside them."""
        self._done += count
        self._bar.update(count)
        if note:
            self._bar.set_postfix_str(note, refresh=False)
        if self._lines and time.monotonic() >= self._next_line:
            rate = self.rate()
            left = (self._total - self._done) / rate if rate else float("inf")
            line = f"{self._name}: {self._done}/{self._total} {self._unit}, {rate:.1f}/s, {left:.0f} s left {note}"
            print(line, file=sys.stderr, flush=True)
            self._next_line = time.monotonic() + 10

    def rate(self) -> float:
        """Return units per second so far."""
        return (self._done - self._initial) / max(time.monotonic() - self._started, 1e-9)

    def close(self) -> None:
        """Remove the bar."""
        self._bar.close()
