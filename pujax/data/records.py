"""ArrayRecord files: the one door to their library, which Grain brings."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

DAMAGE = (ValueError, RuntimeError, IndexError)  # what the library raises where a file is damaged, or not there
_RANDOM = "readahead_buffer_size:0,max_parallelism:0"


def open_records(path: str) -> Any:
    """Return a reader for scattered records, with `num_records()`, `read(list of rows)` and `close()`."""
    from array_record.python.array_record_module import ArrayRecordReader

    return ArrayRecordReader(path, _RANDOM)


@contextlib.contextmanager
def writing(path: str, *, group_size: int) -> Iterator[Callable[[bytes], None]]:
    """Give a function that adds a record to a new file; the file is whole when the body ends.

    Args:
        path: of a local file.
        group_size: records that are compressed, and read, together.

    Raises:
        RuntimeError: it cannot be written; the message has the system's own words.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(path, f"group_size:{group_size},snappy")
    try:
        yield writer.write
    finally:
        writer.close()
