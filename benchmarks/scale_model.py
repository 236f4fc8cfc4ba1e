"""How long a large pool takes to score, and what that costs: arithmetic from stated inputs. Nothing is measured here.

    python -m benchmarks.scale_model [--write]        # prints the tables of docs/scale.md, or puts them there

Each input says where it comes from: *measured* stands in a file of benchmarks/results, *reported* was measured and
stands in none, *published* is the maker's or the cloud's figure, *counted* follows from the code, *assumed* is a number
to be replaced by one's own.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path

from benchmarks.results_file import RESULTS, command_line, read
from benchmarks.speed_tables import markdown
from pujax.roofline import GPUS, TPUS

# Floating-point operations of one forward pass, counted by pujax.metrics.flops_per_image; a training step has three.
FLOPS = {"resnet34": 7.327522816e9, "resnet18": 3.628146688e9, "cifar_resnet34": 2.318804992e9}
REPORTED = {  # images/s of one H200, bfloat16
    "scoring": 179_481,  # cifar_resnet34 at 32x32
    "distillation": 12_044,  # resnet34 -> resnet18 at 224x224, the teacher in each step
}
PEAK_FLOPS = {"H200": GPUS["h200"].flops, "v5e": TPUS["v5e"].flops}  # published, dense bfloat16
DECODERS = 64  # counted: decoding processes of one process, at most
IMAGE_BYTES = 90_000  # of the JPEGs of 375x500 pixels whose decoding was measured
REQUESTS_PER_GROUP = 3  # counted, for a row group of Parquet: the object's size, its footer, the column
BUCKET_REQUESTS = 5_000  # published: reads a second that a bucket of Cloud Storage serves at first,
BUCKET_DOUBLES = 1200.0  # published: seconds in which that may double
PROCESS_REQUESTS = 2_000  # assumed: requests a second that one process makes
PROCESS_BYTES = 1e9  # assumed: bytes a second that one process reads from a bucket
DOLLARS_PER_REQUEST = 0.4e-6  # assumed


def decode_rate() -> float:
    """Return images a second that one core brings from JPEG of 375x500 pixels to 224x224, as measured."""
    lines = read(RESULTS / "input_pipeline.jsonl")
    line = [line for line in lines if (line["case"], line["device"]) == ("JPEG 224", "cpu")][-1]
    return line["images_per_second"]["pujax"] / line["machine_before"]["cores"]


def forward_rate(chip: str) -> float:
    """Return images a second of the teacher's forward pass, ResNet-34 at 224x224, on one chip.

    The operations a second of the reported distillation, which are half of those of the reported scoring of small
    images: convolutions alone may do better. Other chips are taken to reach the same share of their peak.
    """
    step = FLOPS["resnet34"] + 3 * FLOPS["resnet18"]
    return REPORTED["distillation"] * step / FLOPS["resnet34"] * PEAK_FLOPS[chip] / PEAK_FLOPS["H200"]


@dataclass(frozen=True)
class Fleet:
    """Machines of one kind."""

    name: str
    hosts: int
    chips: int  # a host
    vcpus: int  # a host
    processes: int  # a host, each with decoders of its own
    forward: float  # images a second of a chip
    dollars: float  # a chip and hour, assumed


@dataclass(frozen=True)
class Pool:
    """Images, and how they lie there.

    In a bucket each image of a tar is one request, and of Parquet a row group is read as a whole; on the machines' own
    disks nothing of that counts.
    """

    images: float
    stored: str = "tar"  # or "parquet", both in a bucket, or "disk"
    group: int = 100  # images a row group of Parquet
    image_bytes: int = IMAGE_BYTES

    @property
    def per_request(self) -> float:
        """Images a request to the bucket."""
        return {"tar": 1.0, "parquet": self.group / REQUESTS_PER_GROUP, "disk": math.inf}[self.stored]


@dataclass(frozen=True)
class Estimate:
    """What scoring takes."""

    bottleneck: str  # what most of the time goes to
    hours: float
    dollars: float  # chips and requests


def limits(fleet: Fleet, pool: Pool, *, decode: float, passes: int = 1) -> dict[str, float]:
    """Return images a second, all machines together, that each of their resources allows.

    Args:
        fleet: the machines.
        pool: the images.
        decode: images a second of one core.
        passes: forward passes an image; see pujax.pu.scorer.passes_per_image.
    """
    processes = fleet.hosts * fleet.processes
    found = {
        "chips": fleet.hosts * fleet.chips * fleet.forward / passes,
        "decoding": fleet.hosts * min(fleet.vcpus, DECODERS * fleet.processes) * decode,
    }
    if pool.stored != "disk":
        found["reading"] = processes * PROCESS_BYTES / pool.image_bytes
        found["requests"] = processes * PROCESS_REQUESTS * pool.per_request
    return found


def scoring(fleet: Fleet, pool: Pool, *, decode: float, passes: int = 1) -> Estimate:
    """Return what scoring a pool takes; arguments as for `limits`.

    The machines work at the rate of their scarcest resource, or as fast as the bucket answers: its rate doubles every
    `BUCKET_DOUBLES` seconds.
    """
    found = limits(fleet, pool, decode=decode, passes=passes)
    scarcest = min(found, key=found.__getitem__)
    rate, first = found[scarcest], BUCKET_REQUESTS * pool.per_request
    growing, done = 0.0, 0.0  # seconds until the bucket keeps up, and the images of that time
    if first < rate:
        growing = BUCKET_DOUBLES * math.log2(rate / first)
        done = (rate - first) * BUCKET_DOUBLES / math.log(2)
    if done > pool.images:
        growing = BUCKET_DOUBLES * math.log2(1 + pool.images * math.log(2) / (first * BUCKET_DOUBLES))
        done = pool.images
    seconds = growing + (pool.images - done) / rate
    dollars = seconds / 3600 * fleet.hosts * fleet.chips * fleet.dollars
    dollars += pool.images / pool.per_request * DOLLARS_PER_REQUEST
    return Estimate("the bucket" if growing > seconds / 2 else scarcest, seconds / 3600, dollars)


def bytes_read(pool: Pool, wanted: float) -> float:
    """Return the bytes that are read for `wanted` images scattered over the pool: of Parquet, whole row groups."""
    if pool.stored != "parquet":
        return wanted * pool.image_bytes
    groups = pool.images / pool.group
    return groups * -math.expm1(-wanted / groups) * pool.group * pool.image_bytes


def listing_bytes(pool: Pool) -> float:
    """Return the bytes that the first start reads of a bucket to know what is where: of tar, all."""
    return pool.images * pool.image_bytes if pool.stored == "tar" else 0.0


FLEETS = (  # published, but for the prices and the processes
    Fleet("v5e-256", 64, 4, 112, 1, forward_rate("v5e"), 1.2),
    Fleet("64 H200, 8 a host", 8, 8, 224, 8, forward_rate("H200"), 4.0),
    Fleet("8 H200, one host", 1, 8, 224, 8, forward_rate("H200"), 4.0),
)
STORED = {"tar": "tar", "parquet": "Parquet", "disk": "own disks"}
SIZES = (100e6, 1e9)
SAMPLE, CHOSEN = (
    200_000,
    1_000_000,
)  # of configs/imagenet8.py: images that the scorer is trained on, and that are chosen


def limits_table() -> str:
    """Return Markdown: what each resource allows, for one pass an image and for four."""
    head = "machines; passes an image; chips; decoding; reading; requests, tar; requests, Parquet"
    rows = []
    for fleet in FLEETS:
        for passes in (1, 4):
            tar, parquet = (
                limits(fleet, Pool(1, how), decode=decode_rate(), passes=passes) for how in list(STORED)[:2]
            )
            rates = [*tar.values(), parquet["requests"]]
            rows.append([fleet.name, str(passes), *(f"{rate:,.0f}" for rate in rates)])
    return markdown(head, rows)


def scoring_table() -> str:
    """Return Markdown: fleets and pools, with what most of the time goes to."""
    head = "machines; images; stored as; minutes; most of it for; dollars, at assumed prices"
    rows = []
    for fleet in FLEETS:
        for images in SIZES:
            for stored, name in STORED.items():
                found = scoring(fleet, Pool(images, stored), decode=decode_rate())
                cells = [f"{60 * found.hours:,.0f}", found.bottleneck, f"{found.dollars:,.0f}"]
                rows.append([fleet.name, f"{images:,.0f}", name, *cells])
    return markdown(head, rows)


def serial_table() -> str:
    """Return Markdown: what one process reads of a bucket besides scoring."""
    head = "images; stored as; first listing, TB; sample, TB; chosen, TB; hours of one process"
    rows = []
    for images in SIZES:
        for stored in list(STORED)[:2]:
            pool = Pool(images, stored)
            parts = [listing_bytes(pool), bytes_read(pool, SAMPLE), bytes_read(pool, CHOSEN)]
            cells = [f"{part / 1e12:.2f}" for part in parts]
            rows.append([f"{images:,.0f}", STORED[stored], *cells, f"{sum(parts) / PROCESS_BYTES / 3600:.1f}"])
    return markdown(head, rows)


def distillation_hours(images: float, chips: int, rate: float = REPORTED["distillation"]) -> float:
    """Return the hours of a student that sees so many images, if the chips share the work without loss."""
    return images / (chips * rate) / 3600


TABLES = {"limits": limits_table, "scoring": scoring_table, "serial": serial_table}
PAGE = Path(__file__).parent.parent / "docs" / "scale.md"


def fill(text: str) -> str:
    """Return a page with every marked table made anew."""
    for name, make in TABLES.items():
        pattern = rf"(<!-- model:{name} -->\n).*?(<!-- end -->)"
        text = re.sub(pattern, lambda match, make=make: f"{match[1]}{make()}\n{match[2]}", text, flags=re.S)
    return text


def main() -> None:
    """Print the inputs that are computed, and the tables, or write these into the page."""
    parser = command_line(__doc__)
    parser.add_argument("--write", action="store_true", help="put the tables into docs/scale.md")
    if parser.parse_args().write:
        PAGE.write_text(fill(PAGE.read_text()))
        return
    print(f"decoding, images/s a core: {decode_rate():.0f}")
    for chip in PEAK_FLOPS:
        print(f"forward pass of ResNet-34 at 224x224, images/s a {chip}: {forward_rate(chip):,.0f}")
    for chips in (1, 8):  # 200,000 steps of 512 images
        print(f"distillation of configs/imagenet8.py, hours on {chips} H200: {distillation_hours(102.4e6, chips):.2f}")
    for name, make in TABLES.items():
        print(f"\n{name}\n{make()}")


if __name__ == "__main__":
    main()
