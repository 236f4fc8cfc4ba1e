"""The command line that makes a PyTorch network a pujax teacher: `python -m pujax.import_torch --help`."""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from pujax.artifacts import replacing
from pujax.data.decode import EXTENSIONS, fit_arrays, try_decode
from pujax.data.embedded import load_embedded
from pujax.errors import UserError
from pujax.importers.convert import Converted, convert
from pujax.importers.parity import NUM_IMAGES, TOLERANCE, Parity, compare, logits_without_torch, torch_logits
from pujax.importers.torch_module import load_into, make_module, require
from pujax.metrics import num_params
from pujax.networks import Preprocessing, save_network

_DESCRIPTION = """Make a PyTorch image classifier a pujax teacher.

The network is traced once, and written with its weights to one .safetensors file, which
--config.teacher.weights takes; jobs then need no PyTorch. The file is then run without PyTorch on real
images, and kept only if its logits are those of the original.

  python -m pujax.import_torch --network timm:resnet50 --weights resnet50.safetensors \\
      --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 --out teacher.safetensors
  python -m pujax.import_torch --network mypackage.networks:make --weights best.pth \\
      --image_size 32 --class_names classes.txt --out teacher.safetensors

Exit status: 0 done, 2 the input is wrong, 1 anything else."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise UserError(f"{message}; see --help")


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def _positive(text: str) -> int:
    if int(text) < 1:
        raise ValueError(text)
    return int(text)


_numbers.__name__, _positive.__name__ = "list of numbers", "positive whole number"  # for argparse's messages


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = _Parser(
        prog="python -m pujax.import_torch",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--network", required=True, metavar="NAME", help="timm:NAME, torchvision:NAME, or package.module:function; "
        "the function is called with num_classes and channels, where it takes them")  # fmt: skip
    add("--weights", metavar="FILE", help=".safetensors, or a state dict that torch.save wrote; may be left out where "
        "the function returns a trained network")  # fmt: skip
    add("--image_size", type=_positive, default=224, metavar="N", help="height and width it sees (default: 224)")
    add("--channels", type=int, choices=(1, 3), default=3, help="1 grey, 3 RGB (default: 3)")
    add("--mean", type=_numbers, default=(0.5,), metavar="A,B,C", help="of its pixels in [0, 1]; one number or one "
        "per channel (default: 0.5)")  # fmt: skip
    add("--std", type=_numbers, default=(0.5,), metavar="A,B,C", help="likewise (default: 0.5)")
    add("--num_classes", type=_positive, metavar="K", help="checked against the logits (default: as many as these)")
    add("--class_names", metavar="FILE", help="text file with one name a line, in the order of the logits")
    add("--features", default="", metavar="A,B", help="submodules whose outputs, pooled, are the features that mining "
        "sees, shallow to deep (default: the network's stages, found by their shapes)")  # fmt: skip
    add("--images", metavar="FOLDER", help="images to compare with PyTorch on (default: images inside the package)")
    add("--out", required=True, metavar="FILE", help="the .safetensors file to write")
    return parser


def main(argv: Sequence[str]) -> None:
    """Convert the network that the options describe.

    Raises:
        UserError: they are wrong, or the network cannot be converted.
    """
    options = make_parser().parse_args(argv)
    preprocessing = _preprocessing(options)
    if not options.out.endswith(".safetensors"):
        raise UserError(f"--out is {options.out!r}; give a name that ends in .safetensors")
    class_names = _read_names(options.class_names)
    images = _sample_images(options.images, preprocessing)
    require("torch", 'pip install "pujax[import]"')
    module = make_module(options.network, num_classes=options.num_classes, channels=options.channels)
    if options.weights:
        load_into(module, epath.Path(options.weights))
    elif options.network.startswith(("timm:", "torchvision:")):
        raise UserError(f"--network {options.network} has random weights; give trained ones with --weights")
    features = tuple(name for name in options.features.split(",") if name)
    converted = convert(
        module, preprocessing, num_classes=options.num_classes, class_names=class_names, features=features
    )
    print(_describe(options.network, converted), flush=True)
    parity = write(epath.Path(options.out), converted, torch_logits(module, preprocessing, images), images, options)
    print(f"parity with PyTorch: {parity}\n{options.out}")


def write(
    path: epath.Path, converted: Converted, expected: np.ndarray, images: np.ndarray, options: argparse.Namespace
) -> Parity:
    """Write a converted network, if it gives the logits that are expected; nothing is left of one that does not.

    Args:
        path: of the file.
        converted: the network.
        expected: float32 [NUM_IMAGES, K], PyTorch's.
        images: uint8 [NUM_IMAGES, H, W, C].
        options: of the command, of which the file tells where the network is from.

    Raises:
        UserError: the logits differ.
    """
    with replacing(path) as target:
        save_network(target, converted.network)
        parity = compare(expected, logits_without_torch(target, images))
        if not parity.holds():
            raise UserError(f"the converted network is not PyTorch's, to {TOLERANCE:g}, and was not written: {parity}")
        origin = {"network": options.network, "weights": options.weights, "features": converted.features}
        save_network(target, converted.network, origin=origin | {"parity": dataclasses.asdict(parity)})
    return parity


def _preprocessing(options: argparse.Namespace) -> Preprocessing:
    for name in ("mean", "std"):
        if len(getattr(options, name)) not in (1, options.channels):
            raise UserError(f"--{name} needs one number, or one for each of the {options.channels} channels")
    if min(options.std) <= 0:
        raise UserError(f"--std is {options.std}; it must be greater than 0")
    return Preprocessing(options.image_size, options.channels, options.mean, options.std)


def _read_names(path: str | None) -> tuple[str, ...] | None:
    if path is None:
        return None
    try:
        return tuple(epath.Path(path).read_text().splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--class_names {path}: {error}") from error


def _sample_images(folder: str | None, preprocessing: Preprocessing) -> np.ndarray:
    """Return uint8 [NUM_IMAGES, H, W, C]: images of a folder, again from the first where they are too few, or our own.

    Raises:
        UserError: there is no image in the folder, or one does not decode.
    """
    size, channels = preprocessing.image_size, preprocessing.channels
    if folder is None:
        return fit_arrays(load_embedded("test")["images"][:NUM_IMAGES], size=size, channels=channels)
    paths = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in EXTENSIONS)
    if not paths:
        raise UserError(f"--images: there is no image in {folder}")
    chosen = [paths[i] for i in np.linspace(0, len(paths) - 1, min(NUM_IMAGES, len(paths))).astype(int)]
    images = []
    for path in chosen:
        image, reason = try_decode(path.read_bytes(), size=size, channels=channels)
        if image is None:
            raise UserError(f"--images: {path} does not decode ({reason}); repair or remove it")
        images.append(image)
    return np.resize(np.stack(images), (NUM_IMAGES, size, size, channels))


def _describe(name: str, converted: Converted) -> str:
    network, graph = converted.network, converted.network.graph
    return "\n".join([
        f"{name}: {network.num_classes} classes, {num_params(network.variables) / 1e6:.3g} million parameters, "
        f"{graph.flops_per_image / 1e9:.3g} GFLOPs an image, graph of {len(graph.artifact) / 1e3:.0f} kB",
        "features, shallow to deep, with the shapes that are pooled:",
        *(f"  {feature}" for feature in converted.features),
    ])  # fmt: skip


def run() -> None:
    """Entry point: map the user's mistakes to one line and exit status 2."""
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit("pujax: stopped")
    except UserError as error:
        print(f"pujax: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    run()
