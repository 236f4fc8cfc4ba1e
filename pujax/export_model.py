"""Write any network as files for other programs: `pujax export --help`."""

import argparse
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from pujax.artifacts import Workdir, load_json
from pujax.command_line import Parser, add_network, run
from pujax.config import EXPORT_FORMATS
from pujax.data.reading import read_or_fail, spread
from pujax.data.sources import ImageSource, open_source
from pujax.data.sources.spec import parse_source
from pujax.errors import UserError
from pujax.exporters.checked import CALIBRATION_IMAGES, draw_sample, export_into
from pujax.exporters.formats import FORMATS
from pujax.loaded import (
    STUDENT,
    chosen_names,
    data_of,
    is_exported,
    load_config,
    locate,
    open_network,
    test_images,
    with_names,
)
from pujax.metrics import flops_per_image, num_params
from pujax.model_card import CARD, job_facts, load_card, make_card, save_card
from pujax.networks import Network, describe
from pujax.report.quantities import percent
from pujax.sharding import configure_backend, make_mesh

_DESCRIPTION = """Write a network as files for other programs. Each is run in a process of its own and compared with
the network on labelled images; one that answers otherwise is not kept. A model card lies beside them.

  python -m pujax.export_model runs/quickstart --formats onnx,litert --out phone
  python -m pujax.export_model resnet18.pth --network resnet18 --images /data/test --formats onnx --out phone

Formats: {}; see docs/export.md.
Exit status: 0 done, 2 the input is wrong, 1 anything else.""".format(", ".join(EXPORT_FORMATS))
_BATCH = 512
_OF_JOB = ("teacher", "scorer", "select", "distill")  # stages that the card tells of


def _formats(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = Parser("pujax.export_model", _DESCRIPTION)
    add_network(parser)
    add = parser.add_argument
    add("--formats", type=_formats, required=True, metavar="A,B", help="what to write")
    add("--out", required=True, metavar="DIR", help="folder of the files and of their model card")
    add("--images", default="", metavar="SOURCE", help="labelled images to compare on (default: the work directory's "
        "test images)")  # fmt: skip
    add("--calibration", default="", metavar="SOURCE", help="typical images, for litert_int8 (default: the work "
        "directory's labelled images)")  # fmt: skip
    add("--without_preprocessing", action="store_true", help="the files take normalised float32 instead of pixels")
    return parser


def main(argv: Sequence[str]) -> None:
    """Write the files that the arguments ask for.

    Raises:
        UserError: an argument is wrong, or a file does not answer as the network does.
    """
    options = make_parser().parse_args(argv)
    check_formats(options)
    configure_backend()
    mesh, folder = make_mesh(), epath.Path(options.out)
    path, workdir = locate(options.model, options.unit)
    if is_exported(path):
        raise UserError(f"{path} is no weights file; give one, or a work directory")
    network = with_names(open_network(path, options.network, "float32"), chosen_names(options), str(path))
    inputs, job = origin(path, workdir, options.unit or STUDENT)
    card = {
        "num_params": num_params(network.variables),
        "flops_per_image": flops_per_image(network.module, network.variables, network.preprocessing.image_shape),
        "inputs": inputs,
        "job": job,
    }
    files = files_there(folder, inputs)
    sample = draw_sample(
        network,
        _images(network, workdir, options.images),
        options.images or "data.test",
        flops_per_image=card["flops_per_image"],
        mesh=mesh,
        batch_size=_BATCH,
    )
    calibration = _calibration(network, workdir, options.calibration) if _calibrated(options.formats) else None
    stem = path.stem if workdir is None else (options.unit or STUDENT).rsplit("/", 1)[-1]
    for name in options.formats:
        form = FORMATS[name]
        files[name] = export_into(
            folder,
            form.file.replace("student", stem, 1),
            form,
            network,
            preprocessing=not options.without_preprocessing,
            sample=sample,
            calibration=calibration,
        )
        save_card(folder, make_card(describe(network), files, **card))
        print(_line(name, folder, files[name], len(sample.images)), flush=True)


def check_formats(options: argparse.Namespace) -> None:
    """Raise UserError unless every format is known and can be written here, and calibration is for one of them."""
    for name in options.formats or ("",):
        if name not in FORMATS:
            raise UserError(f"there is no format {name!r}; choose from {', '.join(EXPORT_FORMATS)}")
        if missing := FORMATS[name].missing():
            raise UserError(f"{name} cannot be written: {missing}")
    if options.calibration and not _calibrated(options.formats):
        raise UserError("--calibration is for litert_int8, which is not among the formats; leave it out")


def origin(path: epath.Path, workdir: Workdir | None, unit: str) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return what a network depends on, and what its job found, where it is the student of one."""
    inputs = {"contents of weights": hashlib.sha256(path.read_bytes()).hexdigest()[:16]}
    if workdir is None or unit != STUDENT:
        return inputs, None
    found = {stage: load_json(workdir.unit(stage).done) for stage in _OF_JOB if workdir.unit(stage).done.exists()}
    if len(found) < len(_OF_JOB):
        raise UserError(f"the student in {workdir.root} is not finished; let its job end first")
    inputs |= load_json(workdir.unit("distill").inputs)
    return inputs, job_facts(load_json(workdir.config), found)


def files_there(folder: epath.Path, inputs: dict[str, Any]) -> dict[str, Any]:
    """Return the files of the same network that are in the folder already, as its card has them.

    Raises:
        UserError: it holds files of another network.
    """
    card = load_card(folder)
    if card is None:
        return {}
    if card["fingerprints"].get("contents of weights") != inputs["contents of weights"]:
        raise UserError(f"{folder} holds a {CARD} of another network; choose another --out")
    return {name: block for name, block in card["files"].items() if (folder / block["path"]).exists()}


def _images(network: Network, workdir: Workdir | None, text: str) -> ImageSource:
    """Return the labelled images to compare on, in the form that the network sees."""
    if text:
        return open_source(parse_source(text), data_of(network), class_names=network.class_names)
    if workdir is None:
        raise UserError("a weights file has no test images; give labelled images to compare on, --images SOURCE")
    return test_images(workdir, data_of(network), network.class_names)


def _calibration(network: Network, workdir: Workdir | None, text: str) -> np.ndarray:
    """Return typical images, uint8 [n, H, W, C]."""
    if not text and workdir is None:
        raise UserError("litert_int8 is made for typical images; give some, --calibration SOURCE")
    config = parse_source(text) if text else load_config(workdir).data.labelled
    source = open_source(config, data_of(network), labelled=not text)
    return read_or_fail(source, spread(len(source), CALIBRATION_IMAGES), text or "data.labelled")


def _calibrated(formats: Sequence[str]) -> bool:
    return any(FORMATS[name].calibrated for name in formats)


def _line(name: str, folder: epath.Path, block: dict[str, Any], images: int) -> str:
    return (
        f"{name}: {folder / block['path']}, {block['bytes']:,} bytes, takes {block['takes']}; logits differ by "
        f"{block['relative_diff']:.2g} of the largest, the same class for {percent(block['top1_agreement'], 2)} of "
        f"{images} images, accuracy {percent(block['accuracy'], 2)}"
    )


if __name__ == "__main__":
    run(main)
