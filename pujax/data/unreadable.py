"""Images that do not decode: a crawl has some, and only too many of them stop a run."""

import numpy as np
import pyarrow as pa
from etils import epath

from pujax.artifacts import write_table
from pujax.data.sources import ImageSource
from pujax.errors import UserError


def write_reasons(path: epath.Path, source: ImageSource, indices: np.ndarray, reasons: np.ndarray) -> None:
    """Write key, index and reason of the images among `indices` [n] whose reason, text [n], is not empty."""
    broken = reasons != ""
    index = indices[broken]
    write_table(path, pa.table({"key": source.keys(index), "index": index, "reason": reasons[broken].tolist()}))


def check_share(
    unreadable: int,
    total: int,
    *,
    limit: float,
    first: str,
    listed: epath.Path | str,
    what: str = "pool images",
    option: str = "--config.score.max_unreadable",
) -> None:
    """Raise UserError if more than a share of the images do not decode.

    Args:
        unreadable: how many do not.
        total: of how many.
        limit: the share.
        first: key and reason of the first, for the message.
        listed: the file that lists all.
        what: the images, for the message.
        option: that sets the share.
    """
    if unreadable > limit * total:
        raise UserError(
            f"{unreadable} of {total} {what} ({100 * unreadable / total:.3g} %) do not decode, the first is "
            f"{first}; all are listed in {listed}: remove them, or raise {option} ({limit:g})"
        )
