"""Labels as containers write them, numbers or names, to class numbers."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pujax.errors import UserError


def to_labels(
    column: pa.Array | pa.ChunkedArray, where: str, names: tuple[str, ...] | None = None
) -> tuple[np.ndarray | None, tuple[str, ...] | None]:
    """Return (labels int32 [N], class names); numbers have the given names, texts the sorted ones of their own.

    Texts that are all whole numbers are numbers. Both are None if no image has a label.

    Args:
        column: whole numbers, or texts; [N].
        where: what a message calls the images.
        names: of the classes, by number.

    Raises:
        UserError: some images have a label and some have none, or labels are neither whole numbers nor texts.
    """
    if column.null_count == len(column):
        return None, None
    if column.null_count:
        place = pc.index(column.is_null(), True).as_py()
        raise UserError(
            f"{where}: {column.null_count} of {len(column)} images have no label, the first is number {place}; "
            "give all of them one, or leave them out"
        )
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_binary(column.type) or pa.types.is_large_string(column.type):
        column = column.cast(pa.string())
    if pa.types.is_string(column.type):
        if not pc.all(pc.match_substring_regex(column, r"^\s*\d{1,9}\s*$")).as_py():
            found = sorted(pc.unique(column).to_pylist())
            return pc.index_in(column, pa.array(found)).to_numpy().astype(np.int32), tuple(found)
        column = pc.cast(pc.utf8_trim_whitespace(column), pa.int32())
    if not pa.types.is_integer(column.type):
        raise UserError(f"{where} has labels of type {column.type}; give whole numbers from 0, or class names")
    return column.to_numpy().astype(np.int32), names
