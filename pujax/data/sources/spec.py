"""One text for a source: a path, an address, or `kind:what`."""

import difflib
import itertools
import os
import re

from pujax.config import SourceConfig
from pujax.data import storage
from pujax.data.sources import array_record, hf, parquet, tar
from pujax.data.walk import looks_like_image
from pujax.errors import UserError

KINDS = ("folder", "list", "tar", "parquet", "hf", "array_record", "tfds", "array", "cifar", "imagenet32", "idx",
         "embedded")  # fmt: skip
_WITH_SPLITS = ("hf", "cifar", "imagenet32", "idx")
_SUFFIXES = (
    (rf"{tar.SUFFIX}|\.tar\.\w+|\.tgz", "tar"),  # a compressed one is refused with a remedy
    (parquet.SUFFIX, "parquet"),
    (r"\.csv", "list"),
    (array_record.SUFFIX, "array_record"),
    (r"(train|val)_data[^/]*\.npz", "imagenet32"),
    (r"\.npz|\.npy", "array"),
)
_FOLDERS = (  # kinds by files that only their folders have
    (rf"{hf.INDEX}|{hf.SPLITS}", "hf"),
    (r"data_batch_1|test_batch|fine_label_names", "cifar"),
    (r".*-images-idx3-ubyte(\.gz)?", "idx"),
)
_SHARDS = ("tar", "parquet", "array_record", "imagenet32")  # a folder of these alone is one source
_LOOKED_AT = 10_000  # names in a folder
_UNDERSTOOD = (
    "a source is a folder of images; a .tar, .parquet, .csv, .array_record, .npz or .npy file, many of them as "
    "{000..999} or *; a folder that Hugging Face's datasets has saved, or of CIFAR or IDX files; s3:// or gs://; "
    "tfds:NAME/SPLIT; embedded:NAME; or KIND:PATH with a kind of " + ", ".join(KINDS)
)


def parse_source(text: str) -> SourceConfig:
    """Return what one text says of a source.

    `kind:what` says the kind: `tfds:NAME/SPLIT`, where what follows the last slash is the split
    (`tfds:imagenet_resized/32x32/train`) and a name without a slash means the split "train"; `embedded:NAME`; for all
    other kinds a path follows. Without a kind the suffix tells it, and for a folder on this machine what is in it; a
    folder of a store is one of images. A path of kind hf, cifar, imagenet32 or idx may end in `#SPLIT`.

    Raises:
        UserError: there is nothing, or nothing that is understood; the message lists what is.
    """
    named = re.match(r"(\w+):(?!//)(.*)", text, re.DOTALL)
    if named and named[1] in KINDS:
        return _of_kind(named[1], named[2])
    if named and not os.path.exists(text):
        close = difflib.get_close_matches(named[1], KINDS, 1)
        hint = f"did you mean {close[0]}:{named[2]}? " if close else ""
        raise UserError(f"{text!r}: there is no kind {named[1]!r} of data source; {hint}{_UNDERSTOOD}")
    path, _ = _without_split(text)
    if kind := _kind_of(text) or _kind_of(path):
        return _of_kind(kind, text)
    there = storage.is_remote(text) or os.path.exists(text)
    what = "is of no kind that is known" if there else "names nothing that is there"
    raise UserError(f"{text!r} {what}; {_UNDERSTOOD}")


def _of_kind(kind: str, what: str) -> SourceConfig:
    if kind == "embedded":
        return SourceConfig(kind=kind, name=what)
    if kind == "tfds":
        name, slash, split = what.rpartition("/")
        return SourceConfig(kind=kind, name=name, split=split) if slash else SourceConfig(kind=kind, name=what)
    if kind in _WITH_SPLITS:
        path, split = _without_split(what)
        return SourceConfig(kind=kind, path=path, split=split or "train")
    return SourceConfig(kind=kind, path=what)


def _without_split(text: str) -> tuple[str, str]:
    """Return (path, split) of a text that ends in `#SPLIT`; the split is empty where it does not."""
    match = re.fullmatch(r"(.+)#(\w+)", text)
    return (match[1], match[2]) if match and not os.path.exists(text) else (text, "")


def _kind_of(path: str) -> str | None:
    """Return the kind that a path's suffix, or the content of a folder, tells."""
    first = storage.expand_braces(path)[0]
    if os.path.isdir(first):
        return _kind_of_folder(first)
    for suffix, kind in _SUFFIXES:
        if re.search(f"(?:{suffix})$", first, re.IGNORECASE):
            return kind
    return "folder" if storage.is_remote(first) and "." not in first.rstrip("/").rsplit("/", 1)[-1] else None


def _kind_of_folder(folder: str) -> str:
    with os.scandir(folder) as entries:
        found = list(itertools.islice(entries, _LOOKED_AT))
    names = {entry.name for entry in found}
    for pattern, kind in _FOLDERS:
        if any(re.fullmatch(pattern, name) for name in names):
            return kind
    if {"train", "meta"} <= names and os.path.isfile(os.path.join(folder, "train")):  # CIFAR-100
        return "cifar"
    if not any(entry.is_dir() or looks_like_image(os.fsencode(entry.name)) for entry in found):
        kinds = {kind for name in names for suffix, kind in _SUFFIXES if re.search(f"(?:{suffix})$", name)}
        for kind in _SHARDS:  # img2dataset leaves .parquet files of words beside its .tar files
            if kind in kinds:
                return kind
    return "folder"
