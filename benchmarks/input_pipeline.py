"""Images per second of the input pipeline alone, against `torch.utils.data.DataLoader`, in one run.

    python -m benchmarks.input_pipeline

Training sets lie in memory as uint8 32x32x3, batches of 256, with and without crop and flip:
  host        pujax's Grain iterator gathers the images on the host; augmentation is compiled, as inside the step
  device      pujax's default for sets that fit: only indices come from the host, the rest is compiled
  torch       the fastest of: examples one by one or a batch at a time (`__getitems__`), with 0, 1 or 2 workers;
              augmentation by a slice copy per image, which is the fastest on this kind of machine
and JPEG files of 375x500 decoded to 224x224: pujax's folder source, the DataLoader with 2 workers, Pillow in a loop.
Sides take turns, medians over rounds are reported. Appended to `benchmarks/results/input_pipeline.jsonl`.
"""

import argparse
import functools
import io
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from benchmarks.ablation import RESULTS
from benchmarks.throughput import provenance
from pujax.config import DataConfig, SourceConfig
from pujax.data.batches import index_batches
from pujax.data.decode import decode
from pujax.data.sources import open_source
from pujax.data.transforms import augment
from pujax.sharding import configure_backend

BATCH, PAD = 256, 4
Feed = Iterator[int]  # each `next` makes a batch ready and returns its number of images


class Arrays(Dataset):
    """Images in memory; asked for one, or for the list of a batch."""

    def __init__(self, images: np.ndarray, augmented: bool):
        self.images, self.augmented = images, augmented

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> torch.Tensor:
        return self.take([row])[0]

    def take(self, rows: list[int]) -> torch.Tensor:
        """Return uint8 [n, H, W, C], cropped and mirrored where asked for."""
        images = self.images[rows]
        if self.augmented:
            size = images.shape[1]
            padded = np.pad(images, ((0, 0), (PAD, PAD), (PAD, PAD), (0, 0)))
            offsets, mirrored = np.random.randint(0, 2 * PAD + 1, (len(rows), 2)), np.random.rand(len(rows)) < 0.5
            for i, ((y, x), mirror) in enumerate(zip(offsets, mirrored)):
                view = padded[i, y : y + size, x : x + size]
                images[i] = view[:, ::-1] if mirror else view
        return torch.from_numpy(images)


class ArrayBatches(Arrays):
    """The same; PyTorch fetches a batch at a time."""

    def __getitems__(self, rows: list[int]) -> torch.Tensor:
        return self.take(rows)


class Files(Dataset):
    """JPEG files decoded as pujax decodes them."""

    def __init__(self, paths: list[Path]):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> torch.Tensor:
        return torch.from_numpy(decode(self.paths[row].read_bytes(), size=224, channels=3))


def torch_feed(images: np.ndarray, augmented: bool, whole_batches: bool, workers: int) -> Feed:
    """Yield forever from a DataLoader."""
    data = (ArrayBatches if whole_batches else Arrays)(images, augmented)
    collate = {"collate_fn": lambda batch: batch} if whole_batches else {}
    keep = {"persistent_workers": True, "multiprocessing_context": "fork"} if workers else {}
    loader = DataLoader(data, BATCH, shuffle=True, drop_last=True, num_workers=workers, **collate, **keep)
    while True:
        for batch in loader:
            yield len(batch)


def pujax_feed(images: np.ndarray, augmented: bool, on_device: bool) -> Feed:
    """Yield forever from the pipeline that training uses; a batch counts when it is ready on the device."""

    @jax.jit
    def make_ready(key: jax.Array, step: jax.Array, batch: jax.Array) -> jax.Array:
        return augment(jax.random.fold_in(key, step), batch, pad=PAD, flip=True) if augmented else batch

    gather = jax.jit(lambda data, key, step, index: make_ready(key, step, data[index]))
    data, key = jax.device_put(images) if on_device else None, jax.random.key(0)
    batches = index_batches(len(images), BATCH, seed=0, images=None if on_device else images)
    for step, chunk in enumerate(batches):
        if on_device:
            ready = gather(data, key, step, chunk["index"][0])
        else:
            ready = make_ready(key, step, chunk["image"][0]) if augmented else chunk["image"][0]
        yield len(jax.block_until_ready(ready))


def time_feed(feed: Feed, seconds: float) -> float:
    """Return images per second over at least `seconds`."""
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        count += next(feed)
    return count / (time.perf_counter() - started)


def take_turns(feeds: dict[str, Feed], seconds: float, rounds: int) -> dict[str, float]:
    """Return the median images per second of every feed, after a warm-up."""
    for feed in feeds.values():
        time_feed(feed, seconds / 2)
    samples = [{name: time_feed(feed, seconds) for name, feed in feeds.items()} for _ in range(rounds)]
    return {name: float(np.median([sample[name] for sample in samples])) for name in feeds}


def measure_arrays(args: argparse.Namespace, augmented: bool) -> dict[str, Any]:
    """Compare the feeds of a set in memory."""
    images = np.random.default_rng(0).integers(0, 256, (args.images, 32, 32, 3), np.uint8)
    feeds = {"host": pujax_feed(images, augmented, False), "device": pujax_feed(images, augmented, True)}
    for whole_batches in (False, True):
        for workers in (0, 1, 2):
            name = f"torch, {'batches' if whole_batches else 'examples'}, {workers} workers"
            feeds[name] = torch_feed(images, augmented, whole_batches, workers)
    rates = take_turns(feeds, args.seconds, args.rounds)
    best = max(rate for name, rate in rates.items() if name.startswith("torch"))
    ratios = {"host_ratio": rates["host"] / best, "device_ratio": rates["device"] / best}
    return {"case": "uint8 32x32" + (", crop and flip" if augmented else ""), "images_per_second": rates, **ratios}


def measure_jpeg(args: argparse.Namespace) -> dict[str, Any]:
    """Compare decoding of JPEG files."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{i:04d}.jpg" for i in range(args.files)]
        for i, path in enumerate(paths):
            path.write_bytes(_photo(i))
        config = SourceConfig(kind="folder", path=folder)
        source = open_source(config, DataConfig(image_size=224, channels=3), labelled=False)
        loader = DataLoader(Files(paths), 64, num_workers=2, persistent_workers=True, multiprocessing_context="fork")
        feeds = {"folder": _source_feed(source), "torch, 2 workers": _loader_feed(loader), "Pillow": _loop_feed(paths)}
        rates = take_turns(feeds, args.seconds, args.rounds)
    return {"case": "JPEG 224", "images_per_second": rates, "host_ratio": rates["folder"] / rates["torch, 2 workers"]}


def _photo(seed: int) -> bytes:
    """Return a JPEG of smooth noise, some 90 KB, as photographs of this size have."""
    rng = np.random.default_rng(seed)
    layers = [rng.normal(0, 12 * scale**0.5, (375 // scale + 1, 500 // scale + 1, 3)) for scale in (1, 4, 16, 64)]
    grown = [layer.repeat(s, 0).repeat(s, 1)[:375, :500] for layer, s in zip(layers, (1, 4, 16, 64))]
    out = io.BytesIO()
    Image.fromarray((128 + sum(grown)).clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=88)
    return out.getvalue()


def _source_feed(source: Any) -> Feed:
    for start in _cycle(range(0, len(source) - 63, 64)):
        yield len(source.read(np.arange(start, start + 64))[0])


def _loader_feed(loader: DataLoader) -> Feed:
    while True:
        yield from map(len, loader)


def _loop_feed(paths: list[Path]) -> Feed:
    for path in _cycle(paths):
        decode(path.read_bytes(), size=224, channels=3)
        yield 1


def _cycle(items: Any) -> Iterator[Any]:
    while True:
        yield from items


def main() -> None:
    """Measure every case and append the result lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--files", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=1.0, help="of one sample")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS / "input_pipeline.jsonl")
    args = parser.parse_args()
    configure_backend()
    cases: list[Callable[[], dict[str, Any]]] = [
        functools.partial(measure_arrays, args, False),
        functools.partial(measure_arrays, args, True),
        functools.partial(measure_jpeg, args),
    ]
    for case in cases:
        line = case() | {"device": jax.devices()[0].device_kind, **provenance()}
        with args.out.open("a") as file:
            file.write(json.dumps(line) + "\n")
        rates = ", ".join(f"{name} {rate:,.0f}" for name, rate in line["images_per_second"].items())
        print(f"{line['case']}: {rates} images/s", flush=True)


if __name__ == "__main__":
    main()
