"""The command line that makes a PyTorch network a pujax teacher: `pujax import --help`."""

import argparse
import dataclasses
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from pujax.artifacts import replacing
from pujax.command_line import Parser, run
from pujax.data.class_names import read_names
from pujax.data.decode import EXTENSIONS, fit_arrays, try_decode
from pujax.data.embedded import load_embedded
from pujax.data.reading import spread
from pujax.errors import UserError
from pujax.importers.convert import convert
from pujax.importers.network import import_network
from pujax.importers.parity import NUM_IMAGES, TOLERANCE, Parity, compare, logits_without_torch, torch_logits
from pujax.importers.torch_module import load_into, make_module, require
from pujax.metrics import num_params
from pujax.networks import Network, Preprocessing, save_network

_DESCRIPTION = """Make a PyTorch image classifier a pujax teacher.

The network is traced once, and written with its weights to one .safetensors file, which
--config.teacher.weights takes; jobs then need no PyTorch. The file is then run without PyTorch on real
images, and kept only if its logits are those of the original.

  python -m pujax.import_torch --network timm:regnety_004 --weights regnety.safetensors \\
      --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 --crop 0.875 --out teacher.safetensors
  python -m pujax.import_torch --network mypackage.networks:make --weights best.pth \\
      --image_size 32 --class_names classes.txt --out teacher.safetensors

With --model the weights go into a network of pujax's own, which can also be trained. They are compared with
PyTorch's network where --network names it, or with logits that were recorded before:

  python -m pujax.import_torch --model resnet18 --weights resnet18.pth --golden golden.npz --out teacher.safetensors

Exit status: 0 done, 2 the input is wrong, 1 anything else."""


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def _positive(text: str) -> int:
    if int(text) < 1:
        raise ValueError(text)
    return int(text)


def _share(text: str) -> float:
    if not 0 < float(text) <= 1:
        raise ValueError(text)
    return float(text)


# For argparse's messages.
_numbers.__name__, _positive.__name__, _share.__name__ = "list of numbers", "positive whole number", "share above 0"


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = Parser("pujax.import_torch", _DESCRIPTION)
    add = parser.add_argument
    add("--network", default="", metavar="NAME", help="timm:NAME, torchvision:NAME, or package.module:function; "
        "the function is called with num_classes and channels, where it takes them")  # fmt: skip
    add("--model", default="", metavar="NAME", help="instead of a graph, the network of pujax that has these weights")
    add("--weights", metavar="FILE", help=".safetensors, or a state dict that torch.save wrote; may be left out where "
        "the function returns a trained network")  # fmt: skip
    add("--image_size", type=_positive, default=224, metavar="N", help="height and width it sees (default: 224)")
    add("--channels", type=int, choices=(1, 3), default=3, help="1 grey, 3 RGB (default: 3)")
    add("--mean", type=_numbers, default=(0.5,), metavar="A,B,C", help="of its pixels in [0, 1]; one number or one "
        "per channel (default: 0.5)")  # fmt: skip
    add("--std", type=_numbers, default=(0.5,), metavar="A,B,C", help="likewise (default: 0.5)")
    add("--crop", type=_share, default=1.0, metavar="S", help="share of the short side that the centre crop of an "
        "image file keeps (default: 1)")  # fmt: skip
    add(
        "--interpolation",
        choices=("bilinear", "bicubic"),
        default="bilinear",
        help="of image files (default: bilinear)",
    )
    add("--num_classes", type=_positive, metavar="K", help="checked against the logits (default: as many as these)")
    add("--class_names", metavar="FILE", help="text file with one name a line, in the order of the logits")
    add("--features", default="", metavar="A,B", help="submodules whose outputs, pooled, are the features that mining "
        "sees, shallow to deep (default: the network's stages, found by their shapes)")  # fmt: skip
    add("--images", metavar="FOLDER", help="images to compare with PyTorch on (default: images inside the package)")
    add(
        "--golden", metavar="FILE", help="with --model: .npz of images, uint8 [N, H, W, C], and PyTorch's logits [N, K]"
    )
    add("--write_golden", metavar="FILE", help="leave such a file, for where there is no PyTorch")
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
    if not (options.network or (options.model and options.weights)):
        raise UserError("give --network, or --model and --weights; see --help")
    if options.golden and not (options.model and not options.network):
        raise UserError("--golden is for --model without --network, which would give the logits itself; leave it out")
    class_names = read_names(options.class_names, "--class_names") if options.class_names else None
    images, expected = _sample_images(options.images, preprocessing), None
    if options.golden:
        images, expected = _read_golden(options.golden, preprocessing)
    module = _torch_module(options) if options.network else None
    if options.model:
        network = import_network(
            epath.Path(options.weights),
            options.model,
            num_classes=options.num_classes or 0,
            preprocessing=preprocessing,
            dtype=np.dtype(np.float32),
        )
        network, features = dataclasses.replace(network, class_names=class_names), ()
    else:
        named = tuple(name for name in options.features.split(",") if name)
        converted = convert(
            module, preprocessing, num_classes=options.num_classes, class_names=class_names, features=named
        )
        network, features = converted.network, converted.features
    if module is not None:
        expected = torch_logits(module, preprocessing, images)
    print(_describe(options.model or options.network, network, features), flush=True)
    parity = write(epath.Path(options.out), network, features, expected, images, options)
    compared = parity or "not measured; give --network or --golden"
    print(f"parity with PyTorch: {compared}\n{options.out}")
    if options.write_golden and expected is not None:
        np.savez_compressed(options.write_golden, images=images, logits=expected)


def _torch_module(options: argparse.Namespace) -> Any:
    require("torch", 'pip install "pujax[import]"')
    module = make_module(options.network, num_classes=options.num_classes, channels=options.channels)
    if options.weights:
        load_into(module, epath.Path(options.weights))
    elif options.network.startswith(("timm:", "torchvision:")):
        raise UserError(f"--network {options.network} has random weights; give trained ones with --weights")
    return module.eval()


def write(
    path: epath.Path,
    network: Network,
    features: Sequence[str],
    expected: np.ndarray | None,
    images: np.ndarray,
    options: argparse.Namespace,
) -> Parity | None:
    """Write a network, if it gives the logits that are expected; nothing is left of one that does not.

    Args:
        path: of the file.
        network: what was converted.
        features: what was chosen of a graph's results.
        expected: float32 [NUM_IMAGES, K], PyTorch's; None where nothing is there to compare with.
        images: uint8 [NUM_IMAGES, H, W, C].
        options: of the command, of which the file tells where the network is from.

    Raises:
        UserError: the logits differ.
    """
    origin = {"network": options.network, "weights": options.weights, "features": list(features)}
    with replacing(path) as target:
        save_network(target, network, origin=origin)
        if expected is None:
            return None
        parity = compare(expected, logits_without_torch(target, images))
        if not parity.holds():
            raise UserError(f"the converted network is not PyTorch's, to {TOLERANCE:g}, and was not written: {parity}")
        save_network(target, network, origin=origin | {"parity": dataclasses.asdict(parity)})
    return parity


def _read_golden(path: str, preprocessing: Preprocessing) -> tuple[np.ndarray, np.ndarray]:
    """Return images and logits, NUM_IMAGES of each: again from the first where they are too few."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            images, logits = arrays["images"], arrays["logits"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"--golden {path} is no .npz with images and logits: {error}") from error
    if images.dtype != np.uint8 or images.shape[1:] != preprocessing.image_shape or len(images) != len(logits):
        raise UserError(
            f"--golden {path} has images {images.dtype} {images.shape} and logits {logits.shape}; the network wants "
            f"uint8 [N, {', '.join(map(str, preprocessing.image_shape))}] and as many logits"
        )
    rows = np.arange(NUM_IMAGES) % len(images)
    return images[rows], logits[rows].astype(np.float32)


def _preprocessing(options: argparse.Namespace) -> Preprocessing:
    for name in ("mean", "std"):
        if len(getattr(options, name)) not in (1, options.channels):
            raise UserError(f"--{name} needs one number, or one for each of the {options.channels} channels")
    if min(options.std) <= 0:
        raise UserError(f"--std is {options.std}; it must be greater than 0")
    return Preprocessing(
        options.image_size, options.channels, options.mean, options.std, options.crop, options.interpolation
    )


def _sample_images(folder: str | None, preprocessing: Preprocessing) -> np.ndarray:
    """Return uint8 [NUM_IMAGES, H, W, C]: images of a folder, again from the first where they are too few, or our own.

    Raises:
        UserError: there is no image in the folder, or one does not decode.
    """
    if folder is None:
        return fit_arrays(load_embedded("test")["images"][:NUM_IMAGES], preprocessing.spec)
    paths = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in EXTENSIONS)
    if not paths:
        raise UserError(f"--images: there is no image in {folder}")
    chosen = [paths[i] for i in spread(len(paths), NUM_IMAGES)]
    images = []
    for path in chosen:
        image, reason = try_decode(path.read_bytes(), preprocessing.spec)
        if image is None:
            raise UserError(f"--images: {path} does not decode ({reason}); repair or remove it")
        images.append(image)
    return np.resize(np.stack(images), (NUM_IMAGES, *preprocessing.image_shape))


def _describe(name: str, network: Network, features: Sequence[str]) -> str:
    lines = [f"{name}: {network.num_classes} classes, {num_params(network.variables) / 1e6:.3g} million parameters"]
    if network.graph:
        graph = network.graph
        lines[0] += f", {graph.flops_per_image / 1e9:.3g} GFLOPs an image, graph of {len(graph.artifact) / 1e3:.0f} kB"
        lines += ["features, shallow to deep, with the shapes that are pooled:", *(f"  {line}" for line in features)]
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
