"""Images per second of the input pipeline alone, against `torch.utils.data.DataLoader`, in one run.

    python -m benchmarks.input_pipeline

Training sets lie in memory as uint8 32x32x3, batches of 256, with and without crop and flip. `host`: pujax's Grain
iterator gathers on the host, augmentation is compiled. `device`: only indices come from the host, as by default for
sets that fit. `torch`: the DataLoader asked for examples one by one, for lists of a batch (`__getitems__`), and for
nothing but the call of a gather, with no, 1, 2, 4 and 8 workers; it augments by a slice copy per image, the fastest in
NumPy. A batch counts when it is ready on the device. Bare `numpy` is the gather alone: on a CPU the limit.

Files: an ArrayRecord dataset of 32x32 PNG, and JPEG of 375x500 decoded to 224x224: pujax's sources, 256 at a time and
not ahead; the DataLoader, 64 at a time and ahead; one thread. These decode with the same function. `Pillow` is what
most do, in one thread: `draft`, `load`, `resize`. `share_of_bare_decode` is pujax's rate over one thread's times the
cores, `decode_ratio` one thread's over Pillow's.
"""

import argparse
import functools
import io
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, Dataset

from benchmarks.results_file import command_line, measured, rates_text, take_turns
from pujax.config import DataConfig, SourceConfig
from pujax.data.batches import index_batches
from pujax.data.decode import decode
from pujax.data.sources import open_source
from pujax.data.transforms import augment
from pujax.sharding import configure_backend

BATCH, FILES, PAD = 256, 64, 4  # images a batch, files a batch of the DataLoader, pixels
CORES = len(os.sched_getaffinity(0))
WORKERS = [0, *(count for count in (1, 2, 4, 8) if count <= CORES)]
Feed = Iterator[int]  # each `next` makes a batch ready and returns its number of images


class Arrays(Dataset):
    """Images in memory, one by one."""

    def __init__(self, images: np.ndarray, augmented: bool):
        self.images, self.augmented = images, augmented

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> torch.Tensor:
        return self.take([row])[0]

    def take(self, rows: Any) -> torch.Tensor:
        """Return uint8 [n, H, W, C], cropped and mirrored where asked for."""
        images = self.images[rows]
        if self.augmented:
            size = images.shape[1]
            padded = np.zeros((len(rows), size + 2 * PAD, size + 2 * PAD, images.shape[3]), np.uint8)
            padded[:, PAD:-PAD, PAD:-PAD] = images
            offsets, mirrored = np.random.randint(0, 2 * PAD + 1, (len(rows), 2)), np.random.rand(len(rows)) < 0.5
            for i, ((y, x), mirror) in enumerate(zip(offsets, mirrored)):
                view = padded[i, y : y + size, x : x + size]
                images[i] = view[:, ::-1] if mirror else view
        return torch.from_numpy(images)


class ArrayBatches(Arrays):
    """The same; PyTorch fetches a batch at a time."""

    def __getitems__(self, rows: list[int]) -> torch.Tensor:
        return self.take(rows)


class ArrayGather(Arrays):
    """The same; asked for a whole batch as if it were an example."""

    def __getitem__(self, rows: torch.Tensor) -> torch.Tensor:
        return self.take(rows.numpy())


class TensorBatches:
    """A sampler of whole batches, int64 [BATCH]."""

    def __init__(self, size: int):
        self.size = size

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(torch.randperm(self.size)[: self.size // BATCH * BATCH].split(BATCH))


class Records(Dataset):
    """Files of a source, decoded one by one as pujax decodes them; records of an ArrayRecord are fetched in batches."""

    def __init__(self, source: Any):
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, rows: list[int]) -> list[torch.Tensor]:
        files = self.source.files.fetch(np.array(rows))
        contents = (file if isinstance(file, bytes) else Path(file).read_bytes() for file in files)
        return [torch.tensor(decode(content, self.source.spec)) for content in contents]


def torch_feed(data: Any, workers: int, **options: Any) -> Feed:
    """Yield forever from a DataLoader that keeps its workers; a batch counts when it is on the device."""
    keep = {"persistent_workers": True, "multiprocessing_context": "forkserver"} if workers else {}
    loader = DataLoader(data, num_workers=workers, pin_memory=torch.cuda.is_available(), **options, **keep)
    while True:
        for batch in loader:
            if torch.cuda.is_available():
                batch = batch.to("cuda", non_blocking=True)
                torch.cuda.synchronize()
            yield len(batch)


def torch_array_feeds(images: np.ndarray, augmented: bool) -> dict[str, Feed]:
    """Return a feed for every way and number of workers."""
    common = {"batch_size": BATCH, "shuffle": True, "drop_last": True}
    whole = {"batch_size": None, "sampler": TensorBatches(len(images)), "collate_fn": _as_it_is}
    ways = {"examples": (Arrays, common), "batches": (ArrayBatches, common | {"collate_fn": _as_it_is})}
    return {
        f"torch, {way}, {workers} workers": torch_feed(kind(images, augmented), workers, **options)
        for workers in WORKERS
        for way, (kind, options) in {**ways, "gather": (ArrayGather, whole)}.items()
    }


def _as_it_is(batch: Any) -> Any:
    return batch


def numpy_feed(images: np.ndarray) -> Feed:
    """Yield forever from a bare gather by random rows."""
    rng = np.random.default_rng(0)
    while True:
        for rows in rng.permutation(len(images))[: len(images) // BATCH * BATCH].reshape(-1, BATCH):
            yield len(images[rows])


def pujax_feed(images: np.ndarray, augmented: bool, on_device: bool) -> Feed:
    """Yield forever from the pipeline that training uses; a batch counts when it is ready on the device."""

    @jax.jit
    def make_ready(key: jax.Array, step: jax.Array, batch: jax.Array) -> jax.Array:
        return augment(jax.random.fold_in(key, step), batch, pad=PAD, flip=True) if augmented else batch

    gather = jax.jit(lambda data, key, step, index: make_ready(key, step, data[index]))
    data, key = jax.device_put(images) if on_device else None, jax.random.key(0)
    for step, chunk in enumerate(index_batches(len(images), BATCH, seed=0, images=None if on_device else images)):
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


def compare(case: str, feeds: dict[str, Feed], seconds: float, rounds: int) -> dict[str, Any]:
    """Return a result line with the median images per second of every feed."""
    sides = {name: functools.partial(time_feed, feed) for name, feed in feeds.items()}
    _, medians = take_turns(sides, seconds, rounds, warm_up=seconds / 2, pause=0.5)
    return {"case": case, "images_per_second": medians, "device": jax.devices()[0].device_kind}


def best_of(rates: dict[str, float], prefix: str) -> float:
    """Return the highest of the rates whose names start with `prefix`."""
    return max(rate for name, rate in rates.items() if name.startswith(prefix))


def measure_arrays(args: argparse.Namespace, augmented: bool) -> dict[str, Any]:
    """Compare the feeds of a set in memory."""
    images = np.random.default_rng(0).integers(0, 256, (args.images, 32, 32, 3), np.uint8)
    feeds = {"host": pujax_feed(images, augmented, False), "device": pujax_feed(images, augmented, True)}
    feeds |= torch_array_feeds(images, augmented) | ({} if augmented else {"numpy": numpy_feed(images)})
    case = "uint8 32x32" + (", crop and flip" if augmented else "")
    line = compare(case, feeds, args.seconds, args.rounds)
    rates = line["images_per_second"]
    for ours in ("host", "device"):
        line[f"{ours}_ratio"] = rates[ours] / best_of(rates, "torch")
        for way in ("examples", "batches", "gather"):
            line[f"{ours}_ratio_to_{way}"] = rates[ours] / best_of(rates, f"torch, {way}")
    return line


def measure_files(args: argparse.Namespace, kind: str) -> dict[str, Any]:
    """Compare decoding of "JPEG 224" or of "ArrayRecord 32x32"."""
    with tempfile.TemporaryDirectory() as folder:
        write, size = {"JPEG 224": (_write_photos, 224), "ArrayRecord 32x32": (_write_records, 32)}[kind]
        config = write(Path(folder), args.files)
        source = open_source(config, DataConfig(image_size=size, channels=3), labelled=False)
        records, count = Records(source), len(source)
        feeds = {"pujax": _files_feed(lambda rows: source.read(rows)[0], count, min(BATCH, count))}
        feeds["one thread"] = _files_feed(lambda rows: records.__getitems__(rows.tolist()), count, FILES)
        feeds["Pillow"] = _files_feed(lambda rows: pillow(source.files.fetch(rows), size), count, FILES)
        options = {"batch_size": FILES, "drop_last": True}
        feeds |= {f"torch, {workers} workers": torch_feed(records, workers, **options) for workers in WORKERS}
        # Longer, for the DataLoader begins each turn with batches that its workers made ahead.
        line = compare(kind, feeds, 4 * args.seconds, args.rounds)
        del feeds  # ends the workers before their files go
    rates = line["images_per_second"]
    line["share_of_bare_decode"] = rates["pujax"] / (rates["one thread"] * CORES)
    line["decode_ratio"] = rates["one thread"] / rates["Pillow"]
    return line | {"host_ratio": rates["pujax"] / best_of(rates, "torch")}


def pillow(files: list[bytes | str], size: int) -> list[np.ndarray]:
    """Return uint8 [size, size, 3] images, decoded as most programs do."""
    out = []
    for file in files:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            image.draft("RGB", (size, size))
            out.append(np.asarray(ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BILINEAR)))
    return out


def _write_photos(folder: Path, count: int) -> SourceConfig:
    """Write JPEGs of smooth noise, some 90 KB each, as photographs of this size have."""
    for i in range(count):
        rng, scales = np.random.default_rng(i), (1, 4, 16, 64)
        layers = [rng.normal(0, 12 * scale**0.5, (375 // scale + 1, 500 // scale + 1, 3)) for scale in scales]
        grown = [layer.repeat(s, 0).repeat(s, 1)[:375, :500] for layer, s in zip(layers, scales)]
        photo = _encoded((128 + sum(grown)).clip(0, 255).astype(np.uint8), "JPEG", quality=88)
        (folder / f"{i:04d}.jpg").write_bytes(photo)
    return SourceConfig(kind="folder", path=str(folder))


def _write_records(folder: Path, count: int) -> SourceConfig:
    """Write a TFDS dataset of PNG images of noise as ArrayRecord."""
    import tensorflow_datasets as tfds

    with tfds.core.registered.skip_registration():  # so that the files are opened as those of anyone

        class Noise(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")

            def _info(self) -> Any:
                features = tfds.features.FeaturesDict({"image": tfds.features.Image(shape=(32, 32, 3))})
                return tfds.core.DatasetInfo(builder=self, features=features)

            def _split_generators(self, manager: Any) -> dict[str, Any]:
                noise = (np.random.default_rng(i).integers(0, 256, (32, 32, 3), np.uint8) for i in range(count))
                return {"train": ((i, {"image": io.BytesIO(_encoded(x, "PNG"))}) for i, x in enumerate(noise))}

            def _generate_examples(self) -> None:
                """Not used: the split is a generator itself."""

    Noise(data_dir=folder, file_format="array_record").download_and_prepare()
    return SourceConfig(kind="tfds", name="noise", path=str(folder))


def _encoded(pixels: np.ndarray, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()


def _files_feed(read: Callable[[np.ndarray], Any], count: int, size: int) -> Feed:
    for start in itertools.cycle(range(0, count - size + 1, size)):
        yield len(read(np.arange(start, start + size)))


def main() -> None:
    """Measure every case and append the result lines."""
    options = {"images": 50_000, "files": 512, "seconds": (1.0, "of one sample"), "rounds": 5}
    args = command_line(__doc__, "input_pipeline.jsonl", **options).parse_args()
    configure_backend()
    cases = [functools.partial(measure_arrays, args, augmented) for augmented in (False, True)]
    cases += [functools.partial(measure_files, args, kind) for kind in ("ArrayRecord 32x32", "JPEG 224")]
    for case in cases:
        line = measured(args.out, case)
        print(f"{line['case']}: {rates_text(line)}", flush=True)


if __name__ == "__main__":
    main()
