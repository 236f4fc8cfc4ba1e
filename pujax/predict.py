"""Classify images with any classifier: `pujax predict --help`."""

import argparse
import sys
import tempfile
from collections.abc import Sequence

from etils import epath

from pujax.command_line import Parser, add_model, positive, run, share
from pujax.data.sources import open_source
from pujax.data.sources.spec import parse_source
from pujax.data.unreadable import check_share
from pujax.errors import UserError
from pujax.loaded import data_of, open_chosen
from pujax.predictions import ENDINGS, Tally, make_schema, predict, write
from pujax.sharding import configure_backend, make_mesh

_DESCRIPTION = """Classify images, a row an image: key, class, name, probability, and why an image does not decode.

  python -m pujax.predict runs/quickstart /data/photos --out classes.parquet
  python -m pujax.predict student.onnx 's3://bucket/shards/{000..999}.tar' --top 3 --out classes.csv
  python -m pujax.predict resnet18.pth /data/photos --network resnet18 | head

Images come in the order of their source, read and written as they come: memory does not grow with their number.
Exit status: 0 done, 2 the input is wrong or too many images do not decode, 1 anything else."""


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = Parser("pujax.predict", _DESCRIPTION)
    add_model(parser)
    add = parser.add_argument
    add("source", metavar="SOURCE", help="images, labelled or not, any source in one text")
    add("--top", type=positive, default=1, metavar="K", help="the K most likely classes of each image (default: 1)")
    add("--out", metavar="FILE", help=".csv, .parquet or .jsonl (default: CSV on the standard output)")
    add("--max_unreadable", type=share, default=0.1, metavar="S", help="share of the images that may fail to decode; "
        "with more the answers are written, and the exit status is 2 (default: 0.1)")  # fmt: skip
    return parser


def main(argv: Sequence[str]) -> None:
    """Classify the images that the arguments name.

    Raises:
        UserError: an argument is wrong, or too many images do not decode.
    """
    options = make_parser().parse_args(argv)
    out = epath.Path(options.out) if options.out else None
    if out is not None and out.suffix not in ENDINGS:
        raise UserError(f"--out is {options.out!r}; give a name that ends in {', '.join(ENDINGS)}")
    configure_backend()
    mesh, tally = make_mesh(), Tally()
    model = open_chosen(options, mesh)
    if options.top > model.num_classes:
        raise UserError(f"--top is {options.top}, but {model.where} has {model.num_classes} classes; lower it")
    config = parse_source(options.source)
    with tempfile.TemporaryDirectory() as listed:  # a large folder's listing is read from there part by part
        source = open_source(config, data_of(model), labelled=False, manifest=epath.Path(listed) / "images")
        batch_size = options.batch_size + -options.batch_size % mesh.size
        answers = predict(model, source, tally, top=options.top, batch_size=batch_size)
        write(out, answers, make_schema(options.top))
    check_share(
        tally.unreadable,
        tally.images,
        limit=options.max_unreadable,
        first=tally.first,
        listed=f"the column error of {options.out or 'the answers'}",
        what="images",
        option="--max_unreadable",
    )
    if tally.unreadable:
        print(f"{tally.unreadable} of {tally.images} images do not decode, the first is {tally.first}", file=sys.stderr)


if __name__ == "__main__":
    run(main)
