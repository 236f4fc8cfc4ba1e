"""Which column of a table holds images, and which their labels."""

import json

import pyarrow as pa

from pujax.errors import UserError

_IMAGES = ("image", "jpg", "jpeg", "png", "webp", "img", "bytes", "image_bytes")
_LABELS = ("label", "cls", "labels", "class", "fine_label")


def image_column(schema: pa.Schema, where: str, remedy: str) -> str:
    """Return the name of the column of images: bytes, or a struct with `bytes`.

    Raises:
        UserError: there is none; the message ends with the remedy.
    """
    for name in _IMAGES:
        if name in schema.names and holds_images(schema.field(name).type):
            return name
    raise UserError(
        f"{where} has no column of encoded images ({', '.join(_IMAGES)}; bytes, or a struct with `bytes`), but "
        f"{', '.join(schema.names)}; {remedy}"
    )


def label_column(schema: pa.Schema) -> str | None:
    """Return the name of the column of labels, if there is one."""
    return next((name for name in _LABELS if name in schema.names), None)


def class_names(schema: pa.Schema, label: str | None) -> tuple[str, ...] | None:
    """Return the names of the classes where Hugging Face's `datasets` has left them in a schema."""
    note = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    names = note.get("info", {}).get("features", {}).get(label, {}).get("names")
    return tuple(names) if names else None


def holds_images(kind: pa.DataType) -> bool:
    """Whether a column of this type may hold encoded images."""
    if pa.types.is_struct(kind):
        return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def image_of(column: pa.Array | pa.ChunkedArray, row: int) -> bytes | str:
    """Return the encoded image in a row of a column, or the path of its file; no bytes where there is neither."""
    value = column[row].as_py()
    if isinstance(value, dict):
        value = value["bytes"] if value["bytes"] is not None else value.get("path")
    return value if value is not None else b""
