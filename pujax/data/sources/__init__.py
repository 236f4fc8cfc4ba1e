"""Image sources: one small contract over whatever form images lie in, on this machine and in object stores.

A source says how many images there are and reads any of them, as uint8 at the size that the job works in.
"""

import dataclasses
from typing import Protocol

import numpy as np
from etils import epath

from pujax.config import DataConfig, SourceConfig
from pujax.data import storage
from pujax.data.decode import ImageSpec
from pujax.data.sources.array import open_array, open_embedded
from pujax.data.sources.array_record import open_array_record
from pujax.data.sources.cifar import open_cifar
from pujax.data.sources.folder import open_folder
from pujax.data.sources.hf import open_hf
from pujax.data.sources.idx import open_idx
from pujax.data.sources.imagenet32 import open_imagenet32
from pujax.data.sources.naming import digest, where
from pujax.data.sources.parquet import open_parquet
from pujax.data.sources.paths import open_list
from pujax.data.sources.tar import open_tar
from pujax.data.sources.tfds import open_tfds
from pujax.errors import UserError

_OPENERS = {
    "embedded": open_embedded,
    "array": open_array,
    "list": open_list,
    "parquet": open_parquet,
    "hf": open_hf,
    "array_record": open_array_record,
    "tfds": open_tfds,
    "cifar": open_cifar,
    "imagenet32": open_imagenet32,
    "idx": open_idx,
}
_LISTING_OPENERS = {"folder": open_folder, "tar": open_tar}  # what they find is kept in a manifest
_USED = {  # options by the kinds that use them
    "path": (*(kind for kind in _OPENERS if kind != "embedded"), *_LISTING_OPENERS),
    "name": ("embedded", "tfds"),
    "split": ("tfds", "hf", "cifar", "imagenet32", "idx"),
}
_IN_STORES = ("folder", "list", "tar", "parquet")


class ImageSource(Protocol):
    """What every stage knows of images."""

    labels: np.ndarray | None  # int32 [N]; None when unlabelled
    truth: np.ndarray | None  # bool [N], whether in-domain: for evaluation only, never seen by training
    class_names: tuple[str, ...] | None  # by label; None where unknown
    fingerprint: str  # changes when the images do: see each kind for how that is told
    skipped: dict[str, int]  # what looked like an image and is none, by kind

    def __len__(self) -> int:
        """Return the number of images."""

    def keys(self, indices: np.ndarray) -> list[str]:
        """Return stable names of images."""

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (uint8 [n, H, W, C], reasons text [n]): where a reason is not empty the image is zero."""

    def take(self, rows: np.ndarray) -> "ImageSource":
        """Return a source of the given sorted rows only."""


def open_source(
    config: SourceConfig,
    data: DataConfig,
    *,
    labelled: bool = True,
    manifest: epath.Path | None = None,
    class_names: tuple[str, ...] | None = None,
) -> ImageSource:
    """Open what a `SourceConfig` describes, at the job's image size.

    Args:
        config: where the images are.
        data: the form of the images, and the number of classes.
        labelled: whether labels are needed; a pool is opened with False, and then has none.
        manifest: where the listing of a folder or of tar files is kept; None lists them now, in memory.
        class_names: in the order of their labels, which a source's own names are brought to; None keeps the source's.

    Raises:
        UserError: there is no such file or folder; labels are missing, or do not fit `data.num_classes`; the dataset is
            not prepared; the file is not what it should be; an option is set that the kind does not use.
    """
    if not config.kind:
        raise UserError("a data source that this stage needs is not set; give --config.data.<part>=PATH")
    _check_options(config, labelled)
    spec = ImageSpec(data.image_size, data.channels, data.crop, data.interpolation)
    if config.kind in _LISTING_OPENERS:
        source = _LISTING_OPENERS[config.kind](config, spec, labelled, manifest)
    else:
        source = _OPENERS[config.kind](config, spec, labelled)
    rows = range(len(source))
    if labelled:
        source = _in_order(source, class_names, where(config))
        _check_labels(source, config, data)
        if config.per_class:
            rows = _first_of_each_class(source.labels, config.per_class)
    if config.limit:
        rows = rows[: config.limit]
    if len(rows) == 0:
        hint = f"; for other files in it give their pattern, as in {config.path.rstrip('/')}/*.tar"
        raise UserError(f"there are no images in {where(config)}{hint if config.kind == 'folder' else ''}")
    return source if len(rows) == len(source) else source.take(np.asarray(rows))


def _check_options(config: SourceConfig, labelled: bool) -> None:
    for name, kinds in _USED.items():
        if config.kind not in kinds and getattr(config, name) != getattr(SourceConfig(), name):
            others = ", ".join(kind for kind in kinds[:-1])
            raise UserError(
                f"{name} is {getattr(config, name)!r} for a data source of kind {config.kind}, which does not use it; "
                f"leave it out, or set kind to {others} or {kinds[-1]}"
            )
    if storage.is_remote(config.path) and config.kind not in _IN_STORES:
        raise UserError(
            f"{where(config)}: files of kind {config.kind} are read on this machine only; copy them here, or use "
            f"{', '.join(_IN_STORES)}"
        )
    if config.per_class and not labelled:
        raise UserError(f"per_class is {config.per_class} for {where(config)}, which is read without labels; use limit")


def _check_labels(source: ImageSource, config: SourceConfig, data: DataConfig) -> None:
    if not len(source):
        return
    if source.labels is None:
        raise UserError(
            f"{where(config)} has no labels; a labelled source needs one folder a class, a column `label`, a .cls file "
            "beside each image of a tar, or an array `labels`"
        )
    if not 0 <= source.labels.min() <= source.labels.max() < data.num_classes:
        raise UserError(
            f"{where(config)} has labels {source.labels.min()} to {source.labels.max()}, but data.num_classes is "
            f"{data.num_classes}; correct one of them"
        )
    if source.class_names is not None and len(source.class_names) != data.num_classes:
        raise UserError(
            f"{where(config)} has {len(source.class_names)} classes ({', '.join(source.class_names[:5])}, ...), but "
            f"data.num_classes is {data.num_classes}; correct one of them"
        )


def _in_order(source: ImageSource, class_names: tuple[str, ...] | None, where: str) -> ImageSource:
    """Return a source with its labels by the order of the given names, where it has names of its own."""
    if class_names is None or source.class_names is None or source.labels is None:
        return source
    unknown = sorted(set(source.class_names) - set(class_names))
    if unknown:
        raise UserError(
            f"{where} has a class {unknown[0]!r}, which is none of the {len(class_names)} of the teacher or of "
            f"data.class_names ({', '.join(class_names[:5])}, ...); rename it, or correct these"
        )
    if source.class_names == class_names:
        return source
    order = np.array([class_names.index(name) for name in source.class_names], np.int32)
    fingerprint = digest(source.fingerprint, class_names)
    return dataclasses.replace(source, labels=order[source.labels], class_names=class_names, fingerprint=fingerprint)


def hold_out(source: ImageSource, share: float) -> tuple[ImageSource, ImageSource]:
    """Split a labelled source in two.

    Args:
        source: the images.
        share: of every class that the second part gets, at least one image and never all.

    Returns:
        (what is kept, what is held out), the latter spread evenly over each class's images.

    Raises:
        UserError: a class has a single image.
    """
    held = np.zeros(len(source), bool)
    for k in np.unique(source.labels):
        rows = np.flatnonzero(source.labels == k)
        if len(rows) == 1:
            name = source.class_names[k] if source.class_names else k
            raise UserError(
                f"class {name} has one labelled image, so that none can be kept out to measure the student; add "
                "images, or give data.test"
            )
        count = min(max(round(share * len(rows)), 1), len(rows) - 1)
        held[rows[(np.arange(count) * 2 + 1) * len(rows) // (2 * count)]] = True
    return source.take(np.flatnonzero(~held)), source.take(np.flatnonzero(held))


def _first_of_each_class(labels: np.ndarray, count: int) -> np.ndarray:
    """Return the sorted rows of the first `count` images of every class."""
    rows = [np.flatnonzero(labels == k)[:count] for k in np.unique(labels)]
    return np.sort(np.concatenate(rows))
