"""Who makes which shard: workers over one work directory, on any hosts, that come and go and do not talk.

Each worker keeps a small file that says which shard it is at, and which it may still be writing; the others leave these
alone. Work is split as it is found: a worker goes on with the shard behind its last one, without a look at the others;
where another is or has been, it looks, and begins anew in the largest gap that is left, in its middle if somebody is
filling it from the front. When every missing shard is somebody's, a worker that has nothing else to do takes one of
another's: at once if that one is dead, else after twice the time that a shard takes here or, to who has done none yet,
there. So whoever dies or is slow delays the end by a shard or two.

Claims save work, they do not keep the shards right: a shard's file appears whole or not at all, every worker computes
the same bytes, and a file that is there is not written again. A claim that is lost or late costs a shard made twice.
"""

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

from etils import epath

from pujax.presence import Presence, lives, read_presences, who

Shard = tuple[int, int]
_PATIENCE = 2.0  # times that a shard takes, before another's shard is taken
_UNTIMED = 60.0  # seconds that a shard is thought to take while nobody has done one
_POLL = 0.2  # seconds between looks at what others have done; a tenth of a shard's time where that is longer


class Claim(NamedTuple):
    """What is known of a shard that somebody else is at."""

    age: float  # seconds since it was first seen; infinite where that worker is dead
    takes: float  # seconds that a shard takes that worker, 0 while unknown

    def is_given_up(self, took: float) -> bool:
        """Whether a worker without other work takes the shard; `took` seconds for one of its own, 0 while unknown."""
        return self.age > _PATIENCE * (took or self.takes or _UNTIMED)


class Table(Protocol):
    """Files, each of so many images in a row: the scores of a pool, or the chosen images themselves."""

    num_images: int
    shard_size: int
    shards: list[Shard]  # the [start, stop) of every file

    def path(self, start: int, stop: int) -> epath.Path:
        """Return the file of a shard."""

    def absent(self) -> set[Shard]:
        """Return the shards whose file is not there."""

    def missing(self, shards: list[Shard]) -> list[Shard]:
        """Return those of the shards whose file is not there, or damaged."""


@contextlib.contextmanager
def share_shards(table: Table, folder: epath.Path) -> Iterator[Iterator[Shard]]:
    """Give an iterator over the shards for this worker to make, until none is missing; others see at once that it ends.

    Args:
        table: what they are of; the caller writes a shard into it before asking for the one after the next, and before
            leaving.
        folder: where workers keep their files.
    """
    absent = table.absent()
    missing = set(table.missing(table.shards))
    for shard in missing - absent:
        table.path(*shard).unlink(missing_ok=True)  # it is cut short, and would count as done
    if not missing:
        yield iter(())
        return
    name = f"{socket.gethostname()}-{os.getpid()}.json"
    presence = Presence(folder / name, {**who(), "shard": None, "writes": None, "done": 0, "images_per_second": 0.0})
    try:
        yield _until_none_is_missing(table, missing, presence)
    finally:
        presence.close()


def _until_none_is_missing(table: Table, missing: set[Shard], presence: Presence) -> Iterator[Shard]:
    shards, last, done, began = table.shards, None, 0, time.monotonic()
    claims: dict[Shard, Claim] = {}  # at the last look
    seen: dict[str, tuple[Any, float]] = {}  # what every other worker was at, and since when, by this clock
    while missing:
        took = (time.monotonic() - began) / done if done else 0.0
        shard = _behind(last, table)
        walks = shard in missing and shard not in claims and not table.path(*shard).exists()
        if not walks:
            claims = _claims(presence, seen, table.shard_size)
            missing &= table.absent()
            shard = choose(shards, missing, set(claims))
            if shard is None:
                given_up = (own for own in sorted(claims) if own in missing and claims[own].is_given_up(took))
                shard = next(given_up, None)
            if shard is None:
                time.sleep(max(_POLL, (took or min((claim.takes for claim in claims.values()), default=0.0)) / 10))
                continue
        rate = table.shard_size / took if done else 0.0
        presence.tell(shard=list(shard), writes=last and list(last), done=done, images_per_second=rate)
        if not walks and shard not in claims and not (_is_alone(shard, presence) and not table.path(*shard).exists()):
            presence.tell(shard=None)
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


def _behind(shard: Shard | None, table: Table) -> Shard | None:
    if shard is None or shard[1] >= table.num_images:
        return None
    return shard[1], min(shard[1] + table.shard_size, table.num_images)


def _claims(presence: Presence, seen: dict[str, tuple[Any, float]], shard_size: int) -> dict[Shard, Claim]:
    """Return the shards that others are at, or write."""
    claims: dict[Shard, Claim] = {}
    for name, told in read_presences(presence.path.parent).items():
        if name == presence.path.name:
            continue
        if name not in seen or seen[name][0] != (told["shard"], told["started"]):
            seen[name] = ((told["shard"], told["started"]), time.monotonic())
        age = time.monotonic() - seen[name][1] if lives(told) else float("inf")
        claim = Claim(age, shard_size / told["images_per_second"] if told["images_per_second"] else 0.0)
        for shard in filter(None, (told["shard"], told.get("writes"))):
            claims[tuple(shard)] = min(claim, claims.get(tuple(shard), claim))
    return claims


def _is_alone(shard: Shard, presence: Presence) -> bool:
    """Whether nobody else has taken the same shard at the same moment, or whoever has gives way, as later names do.

    One of a later name may have looked before this one's claim was there, and go on: then two would go the same way.
    """
    rivals = _rivals(shard, presence)
    if rivals and min(rivals) > presence.path.name:
        time.sleep(2 * _POLL)
        rivals = _rivals(shard, presence)
    return not rivals


def _rivals(shard: Shard, presence: Presence) -> list[str]:
    """Return the names of the other living workers that are at a shard."""
    others = read_presences(presence.path.parent)
    return [
        name
        for name, told in others.items()
        if name != presence.path.name and told["shard"] == list(shard) and lives(told)
    ]
