"""A classifier's answers for any number of images, a row an image, written as they come; the file appears whole."""

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.csv
from etils import epath

from pujax.artifacts import replacing, write_tables
from pujax.data.reading import noting_reader
from pujax.data.sources import ImageSource
from pujax.loaded import Model
from pujax.measures import log_softmax
from pujax.progress import Progress

ENDINGS = (".csv", ".parquet", ".jsonl")
_GROUP = 65_536  # rows of a table: of a Parquet file's row group


@dataclass
class Tally:
    """What was done so far."""

    images: int = 0
    unreadable: int = 0
    first: str = ""  # key and reason of the first image that does not decode


def predict(model: Model, source: ImageSource, tally: Tally, *, top: int, batch_size: int) -> Iterator[pa.Table]:
    """Yield the answers in the order of the images, a batch at a time.

    Columns: key text; class int32, name text and probability float32 of the most likely class, and for a larger `top`
    of the next ones as class_2, name_2, ...; error text, why an image does not decode, which then has no class.

    Args:
        model: the classifier.
        source: the images.
        tally: what is counted along the way.
        top: how many classes, the most likely first.
        batch_size: images a forward pass; changes no answer.

    Raises:
        UserError: a logit is not finite.
    """
    reasons: dict[int, str] = {}
    count, schema = len(source), make_schema(top)
    progress = Progress("predict", count, "image")
    read = noting_reader(source, reasons)
    for logits in model.logits(read, count, batch_size=batch_size, progress=progress):
        rows = np.arange(tally.images, tally.images + len(logits))
        keys, errors = source.keys(rows), [reasons.pop(row, None) for row in rows.tolist()]
        tally.images += len(rows)
        broken = np.array([error is not None for error in errors])
        if broken.any() and not tally.unreadable:
            at = int(broken.argmax())
            tally.first = f"{keys[at]} ({errors[at]})"
        tally.unreadable += int(broken.sum())
        columns = {"key": keys, **_answers(model, logits, top, broken), "error": errors}
        yield pa.table([pa.array(columns[entry.name], entry.type) for entry in schema], schema=schema)
    progress.close()


def make_schema(top: int) -> pa.Schema:
    """Return the columns of the answers."""
    kinds = (("class", pa.int32()), ("name", pa.string()), ("probability", pa.float32()))
    answers = [(f"{name}{end}", kind) for end in _endings(top) for name, kind in kinds]
    return pa.schema([("key", pa.string()), *answers, ("error", pa.string())])


def _endings(top: int) -> list[str]:
    return ["", *(f"_{place}" for place in range(2, top + 1))]


def _answers(model: Model, logits: np.ndarray, top: int, broken: np.ndarray) -> dict[str, Any]:
    """Return the columns of the `top` most likely classes, empty for broken images; equally likely ones by number."""
    order = np.argsort(-logits, axis=1, kind="stable")[:, :top]
    probs = np.exp(np.take_along_axis(log_softmax(logits), order, axis=1)).astype(np.float32)
    columns: dict[str, Any] = {}
    for place, end in enumerate(_endings(top)):
        classes = order[:, place].astype(np.int32)
        names = model.class_names
        columns[f"class{end}"] = pa.array(classes, mask=broken)
        columns[f"name{end}"] = [names[k] if names and not b else None for k, b in zip(classes, broken)]
        columns[f"probability{end}"] = pa.array(probs[:, place], mask=broken)
    return columns


def write(path: epath.Path | None, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
    """Write the answers as they come, and hold no more than some thousands of them.

    Args:
        path: .csv, .parquet or .jsonl, which appears when it is whole; None prints CSV.
        tables: of the answers, at least one.
        schema: of the tables.
    """
    if path is None:
        _write_csv(sys.stdout.buffer, tables, schema)
    elif path.suffix == ".parquet":
        write_tables(path, _grouped(tables))
    else:
        form = _write_csv if path.suffix == ".csv" else _write_lines
        with replacing(path) as target, target.open("wb") as file:
            form(file, tables, schema)


def _write_csv(file: BinaryIO, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
    options = pyarrow.csv.WriteOptions(quoting_style="needed")
    with pyarrow.csv.CSVWriter(file, schema, write_options=options) as writer:
        for table in tables:
            writer.write_table(table)


def _write_lines(file: BinaryIO, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
    for table in tables:
        file.writelines(f"{json.dumps(row, ensure_ascii=False)}\n".encode() for row in table.to_pylist())


def _grouped(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Yield the same rows in fewer tables."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(map(len, waiting)) >= _GROUP:
            yield pa.concat_tables(waiting).combine_chunks()
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting).combine_chunks()
