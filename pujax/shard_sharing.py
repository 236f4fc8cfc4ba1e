"""Who scores which shard: workers over one work directory, on any hosts, that come and go and do not talk.

Each worker keeps a small file that says which shard it is at; the others leave that one alone. Work is split as it is
found: a worker goes on with the shard behind its last one and, where another has been there, begins anew in the largest
gap that is left, in its middle if somebody is filling it from the front. When every missing shard is somebody's, a
worker that has nothing else to do takes one of another's: at once if that one is dead, else after twice the time that
a shard takes here. So whoever dies or is slow delays the end by a shard or two.

Claims save work, they do not keep the table right: a shard's file appears whole or not at all, every worker computes
the same bytes, and a file that is there is not written again. A claim that is lost or late costs a shard scored twice.
"""

import os
import socket
import time
from collections.abc import Iterator
from typing import Any

from etils import epath

from pujax.presence import Presence, lives, read_presences, who
from pujax.score_table import ScoreTable

Shard = tuple[int, int]
_PATIENCE = 2.0  # times that a shard takes here, before another's shard is taken
_POLL = 0.2  # seconds between looks at what others have done; a tenth of a shard's time where that is longer


def share_shards(table: ScoreTable, folder: epath.Path) -> Iterator[Shard]:
    """Yield the shards for this worker to score, one at a time, until none is missing.

    Args:
        table: the score table; the caller writes the shard into it before asking for the next.
        folder: where workers keep their files.
    """
    missing = set(table.missing(table.shards))
    if not missing:
        return
    name = f"{socket.gethostname()}-{os.getpid()}.json"
    presence = Presence(folder / name, {**who(), "shard": None, "done": 0})
    try:
        yield from _until_none_is_missing(table, missing, presence)
    finally:
        presence.close()


def _until_none_is_missing(table: ScoreTable, missing: set[Shard], presence: Presence) -> Iterator[Shard]:
    shards, last, done, began = table.shards, None, 0, time.monotonic()
    seen: dict[str, tuple[Any, float]] = {}  # what every other worker was at, and since when, by this clock
    while missing:
        claims = _claims(presence, seen)
        following = _behind(last, table)
        if following in missing and following not in claims and not table.path(*following).exists():
            shard = following
        else:
            missing &= table.absent()
            shard = choose(shards, missing, set(claims))
        took = (time.monotonic() - began) / done if done else 0.0
        if shard is None and missing:
            shard = next(
                (own for own, age in sorted(claims.items()) if own in missing and age > _PATIENCE * took), None
            )
        if shard is None:
            time.sleep(max(_POLL, took / 10))
            continue
        presence.tell(shard=list(shard), done=done, shards_per_second=done / (time.monotonic() - began))
        if shard not in claims and _is_contested(shard, presence):
            time.sleep(_POLL)
            continue
        yield shard
        missing.discard(shard)
        last, done = shard, done + 1


def choose(shards: list[Shard], missing: set[Shard], claimed: set[Shard]) -> Shard | None:
    """Return the shard to go on with: of the largest gap, its first, or its middle one if somebody is before it.

    Args:
        shards: all of them, in order.
        missing: those that are not written.
        claimed: those that somebody is at.
    """
    best, size, start = None, 0.0, None
    for at in range(len(shards) + 1):
        free = at < len(shards) and shards[at] in missing and shards[at] not in claimed
        if free and start is None:
            start = at
        if not free and start is not None:
            walked = start > 0 and shards[start - 1] in claimed
            worth = (at - start) / (2 if walked else 1)
            if worth > size:
                best, size = start + (at - start) // 2 if walked else start, worth
            start = None
    return None if best is None else shards[best]


def _behind(shard: Shard | None, table: ScoreTable) -> Shard | None:
    if shard is None or shard[1] >= table.num_images:
        return None
    return shard[1], min(shard[1] + table.shard_size, table.num_images)


def _claims(presence: Presence, seen: dict[str, tuple[Any, float]]) -> dict[Shard, float]:
    """Return the shards that others are at, with the seconds since they were first seen there; infinite of the dead."""
    claims: dict[Shard, float] = {}
    for name, told in read_presences(presence.path.parent).items():
        if name == presence.path.name or not told["shard"]:
            continue
        shard = tuple(told["shard"])
        if name not in seen or seen[name][0] != (shard, told["started"]):
            seen[name] = ((shard, told["started"]), time.monotonic())
        age = time.monotonic() - seen[name][1] if lives(told) else float("inf")
        claims[shard] = min(age, claims.get(shard, age))
    return claims


def _is_contested(shard: Shard, presence: Presence) -> bool:
    """Whether another living worker, whose name comes first, has taken the same shard at the same moment."""
    others = read_presences(presence.path.parent)
    return any(
        name < presence.path.name and told["shard"] == list(shard) and lives(told) for name, told in others.items()
    )
