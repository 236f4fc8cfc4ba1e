"""The same job from Python, in a script or a notebook: `pujax.compress(...)`."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from pujax import pipeline
from pujax.artifacts import Workdir, open_workdir, write_atomic
from pujax.config import (
    Config,
    DataConfig,
    DistillConfig,
    FrozenScorerConfig,
    ScorerConfig,
    SourceConfig,
    resolve,
    with_options,
)
from pujax.data.decode import fit_arrays
from pujax.data.decoders import decode_files
from pujax.data.sources.spec import parse_source
from pujax.errors import UserError
from pujax.inference import resolve_dtype
from pujax.networks import Network, load_network, save_network
from pujax.sharding import configure_backend

Images = str | SourceConfig | np.ndarray | tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Result:
    """What a job has come to."""

    workdir: epath.Path
    summary: dict[str, Any]  # see the documentation of summary.json
    student: Network  # called with uint8 [B, H, W, C] images of its size, it returns logits

    @property
    def accuracy(self) -> float:
        """Of the student, on the test images."""
        return self.summary["student"]["accuracy"]

    def predict(self, images: np.ndarray | Sequence[str | Path | bytes]) -> np.ndarray:
        """Return the student's classes, int32 [n].

        Args:
            images: uint8 [n, H, W] or [n, H, W, C] of any size, or paths or contents of image files.

        Raises:
            UserError: a file does not decode.
        """
        spec = self.student.preprocessing.spec
        if isinstance(images, np.ndarray):
            pixels = fit_arrays(images, spec)
        else:
            files = [file if isinstance(file, bytes) else str(file) for file in images]
            pixels, reasons = decode_files(files.__getitem__, len(files), spec)
            for file, reason in zip(images, reasons):
                if reason:
                    raise UserError(f"{file if not isinstance(file, bytes) else 'an image'} does not decode ({reason})")
        starts = range(0, len(pixels), 256)
        classes = [np.argmax(self.student(pixels[start : start + 256]), axis=-1) for start in starts]
        return np.concatenate(classes).astype(np.int32) if classes else np.zeros(0, np.int32)


def own_data_config() -> Config:
    """Return the recipe for a teacher and images of one's own: classes and preprocessing are the teacher's."""
    return Config(
        data=DataConfig(num_classes=0, image_size=0, channels=0, mean=(), std=(), crop=0.0, interpolation=""),
        scorer=ScorerConfig(
            frozen=FrozenScorerConfig(num_steps=1000, batch_size=320, learning_rate=0.05, weight_decay=0.1, flip=True)
        ),
        distill=DistillConfig(
            model="mobilenet_v2", num_steps=5000, batch_size=64, learning_rate=0.05, weight_decay=4e-5,
            warmup_steps=200, temperature=2.0, crop_padding=16, flip=True,
        ),
        baselines=("random",),
    )  # fmt: skip


def compress(
    *,
    teacher: str | Network,
    labelled: Images,
    pool: Images,
    student: str = "",
    test: Images | None = None,
    workdir: str | Path = "runs/compress",
    config: Config | None = None,
    options: dict[str, Any] | None = None,
) -> Result:
    """Compress a teacher into a student, with a few labelled images and an unlabelled pool.

    The same call continues a job that was stopped, and returns at once where it is done.

    Args:
        teacher: weights, as `teacher.weights` takes them, or a network.
        labelled: the few labelled images: a folder with one folder a class, or any source in one string, as
            `--config.data.labelled` takes it; or arrays (images uint8 [N, H, W, C], labels int [N]).
        pool: the unlabelled images, likewise; or an array of images.
        student: name of the student's network; empty keeps the recipe's.
        test: labelled images that measure the student; without, some of `labelled` are kept out.
        workdir: folder of all results, local or in an object store.
        config: the recipe; `own_data_config()` where none is given.
        options: changes to it, such as {"distill.num_steps": 500}.

    Returns:
        The student and what was measured.

    Raises:
        UserError: an input is wrong; the message says which, and what to do.
    """
    config = config or own_data_config()
    configure_backend()
    inputs = open_workdir(workdir).inputs
    if isinstance(teacher, Network):
        save_network(inputs / "teacher.safetensors", teacher)
        teacher = str(inputs / "teacher.safetensors")
    changes: dict[str, Any] = {"teacher.weights": str(teacher)}
    for part, images in {"labelled": labelled, "pool": pool, "test": test}.items():
        if images is not None:
            changes[f"data.{part}"] = _source(images, inputs / f"{part}.npz")
    if student:
        changes["distill.model"] = student
    config = resolve(with_options(config, changes | (options or {})))
    summary = pipeline.run(config, workdir)
    path = Workdir(epath.Path(workdir)).unit("distill").student
    return Result(epath.Path(workdir), summary, load_network(path, dtype=resolve_dtype(config.compute_dtype)))


def _source(images: Images, path: epath.Path) -> SourceConfig:
    """Return the source that images are; arrays are written to `path` first."""
    if isinstance(images, SourceConfig):
        return images
    if isinstance(images, str | Path):
        return parse_source(str(images))
    arrays = {"images": images} if isinstance(images, np.ndarray) else dict(zip(("images", "labels"), images))
    out = io.BytesIO()
    np.savez(out, **{name: np.asarray(array) for name, array in arrays.items()})
    write_atomic(path, out.getvalue())
    return SourceConfig(kind="array", path=str(path))
