"""What a program costs a device, and the time that this takes by what the device's maker says of it: the roofline."""

import re
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Device:
    """What a program runs on: a chip, or a core of one that shows several."""

    flops: float  # a second, dense bfloat16
    bandwidth: float  # bytes a second of its memory
    memory: float  # bytes


def _device(teraflops: float, gigabytes: float, gibibytes: float) -> Device:
    return Device(teraflops * 1e12, gigabytes * 1e9, gibibytes * 2**30)


# As published: TPUs by Google (cloud.google.com/tpu/docs, one page a version), GPUs by NVIDIA (data sheets of the SXM
# modules, without sparsity).
TPUS = {
    "v4": _device(275, 1200, 32),
    "v5e": _device(197, 819, 16),
    "v5p": _device(459, 2765, 95),
    "v6e": _device(918, 1640, 32),
}
GPUS = {
    "a100": _device(312, 2039, 80),
    "h100": _device(989, 3350, 80),
    "h200": _device(989, 4800, 141),
}


@dataclass(frozen=True)
class Cost:
    """What one call of a compiled program takes on every device; None is not known."""

    flops: float
    accessed: float | None = None  # bytes that the operations read and write, as XLA counts them: see `memory_seconds`
    arguments: int | None = None  # bytes of memory
    temporaries: int | None = None  # likewise, while it runs
    all_reduces: int | None = None

    @property
    def memory(self) -> int | None:
        """Bytes of memory, all together."""
        return None if self.arguments is None or self.temporaries is None else self.arguments + self.temporaries


def cost_of(compiled: Any) -> Cost:
    """Return what the compiler says of a program, a `jax.stages.Compiled`.

    A loop counts as one turn of it, so a whole training in one program is as one step.
    """
    analysis, memory = compiled.cost_analysis(), compiled.memory_analysis()
    return Cost(
        flops=analysis["flops"],
        accessed=analysis["bytes accessed"],
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        all_reduces=len(re.findall(r" all-reduce(?:-start)?\(", compiled.as_text())),
    )


def compute_seconds(cost: Cost, device: Device) -> float:
    """Return the seconds of the operations at the device's peak."""
    return cost.flops / device.flops


def memory_seconds(cost: Cost, device: Device) -> float:
    """Return the seconds of the bytes that are accessed at the memory's bandwidth; 0 where they are not known.

    Note: XLA counts what every operation reads and writes, also where the compiler has put that into the fast memory on
    the chip, and the copies there besides. So this is more than the memory itself can take.
    """
    return (cost.accessed or 0.0) / device.bandwidth


def roofline_seconds(cost: Cost, device: Device) -> float:
    """Return the time of the scarcer of the two, operations or memory.

    Note: neither the devices' talk with one another nor the host's part is in it.
    """
    return max(compute_seconds(cost, device), memory_seconds(cost, device))


def bound(cost: Cost, device: Device) -> str:
    """Return what the roofline time is that of, "compute" or "memory"."""
    return "memory" if memory_seconds(cost, device) > compute_seconds(cost, device) else "compute"
