"""Measure any classifier on labelled images: `pujax evaluate --help`."""

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.csv
from etils import epath
from jax.sharding import Mesh

from pujax.artifacts import Workdir, replacing, save_json, write_table
from pujax.command_line import Parser, add_model, run
from pujax.config import DataConfig
from pujax.data.embedded import weights_file
from pujax.data.sources import ImageSource, open_source
from pujax.data.sources.spec import parse_source
from pujax.errors import UserError
from pujax.evaluation import Shown, corrupted_accuracy, evaluate
from pujax.loaded import data_of, open_chosen, open_model, test_images
from pujax.report.measured import as_text
from pujax.sharding import configure_backend, make_mesh

_DESCRIPTION = """Measure a classifier on labelled images.

  python -m pujax.evaluate runs/quickstart
  python -m pujax.evaluate runs/quickstart --unit baselines/random --out random.json
  python -m pujax.evaluate runs/quickstart/export/student.onnx embedded:test --teacher runs/quickstart
  python -m pujax.evaluate resnet18.pth /data/test --network resnet18 --class_names classes.txt --corruptions

Exported files are run in the runtime of their format. Exit status: 0 done, 2 the input is wrong, 1 anything else."""
_ENDINGS = (".json", ".csv", ".parquet")


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = Parser("pujax.evaluate", _DESCRIPTION)
    add_model(parser)
    add = parser.add_argument
    add("source", nargs="?", metavar="SOURCE", help="labelled images, any source in one text (default: the work "
        "directory's test images)")  # fmt: skip
    add("--teacher", default="", metavar="MODEL", help="another classifier to compare the answers with, or none "
        "(default: the work directory's teacher)")  # fmt: skip
    add("--corruptions", action="store_true", help="also on images made worse in six ways, at five severities: "
        "30 more passes")  # fmt: skip
    add("--out", metavar="FILE", help=".json: everything; .csv or .parquet: the table of the classes")
    return parser


def main(argv: Sequence[str]) -> None:
    """Measure the classifier that the arguments name, print the numbers, and write them where asked.

    Raises:
        UserError: an argument is wrong.
    """
    options = make_parser().parse_args(argv)
    if options.out and epath.Path(options.out).suffix not in _ENDINGS:
        raise UserError(f"--out is {options.out!r}; give a name that ends in {', '.join(_ENDINGS)}")
    configure_backend()
    mesh = make_mesh()
    batch_size = options.batch_size + -options.batch_size % mesh.size  # the teacher's batches must be the same
    model = open_chosen(options, mesh)
    own = Shown(model, *_images(options, data_of(model), model.class_names))
    found = {"model": model.where, "source": own.where}
    found |= evaluate(own, batch_size=batch_size, teacher=_teacher(own, options, mesh))
    if options.corruptions:
        found["corruptions"] = corrupted_accuracy(own, batch_size=batch_size)
    print(as_text(found))
    if options.out:
        write(epath.Path(options.out), found)


def _images(
    options: argparse.Namespace, data: DataConfig, class_names: tuple[str, ...] | None
) -> tuple[ImageSource, str]:
    """Return the images that the arguments name, in a form, and what a message calls them."""
    if options.source:
        return open_source(parse_source(options.source), data, class_names=class_names), options.source
    path = weights_file(options.model)
    if not path.is_dir():
        raise UserError(
            f"{options.model} is no work directory, which would have test images; give labelled images after it"
        )
    return test_images(Workdir(path), data, class_names), f"the test images of {options.model}"


def _teacher(own: Shown, options: argparse.Namespace, mesh: Mesh) -> Shown | None:
    """Return what the answers are compared with: as asked, else the work directory's teacher, where it has one."""
    text, unit = options.teacher, ""
    if text == "none" or (not text and options.unit == "teacher"):
        return None
    if not text:
        workdir = Workdir(weights_file(options.model))
        if not workdir.teacher.exists():  # nor where the model is a file
            return None
        text, unit = options.model, "teacher"
    elif weights_file(text).is_dir():
        unit = "teacher"
    model = open_model(text, mesh=mesh, unit=unit)
    if model.preprocessing.spec == own.model.preprocessing.spec:
        return Shown(model, own.source, own.where)
    form = dataclasses.replace(data_of(model), num_classes=own.model.num_classes)
    return Shown(model, *_images(options, form, own.model.class_names))


def write(path: epath.Path, found: dict[str, Any]) -> None:
    """Write everything as .json, or the table of the classes as .csv or .parquet; whole or not at all."""
    if path.suffix == ".json":
        save_json(path, found)
        return
    table = pa.Table.from_pylist(found["classes"])
    if path.suffix == ".parquet":
        write_table(path, table)
        return
    with replacing(path) as target, target.open("wb") as file:
        pyarrow.csv.write_csv(table, file, pyarrow.csv.WriteOptions(quoting_style="needed"))


if __name__ == "__main__":
    run(main)
