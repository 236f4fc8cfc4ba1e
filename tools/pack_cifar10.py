"""Pack image folders into the arrays of the CIFAR-10 table: what `benchmarks.ablation --table cifar10` reads.

    python tools/pack_cifar10.py --cifar DIR --pool DIR --out raw

`--cifar` holds train/<class>/*.jpg and test/<class>/*.jpg; `--pool` holds train/<wnid>/**/*.jpg, ImageNet photographs
of any number of synsets. Written are cifar_train.npz and cifar_test.npz (images, labels) and in_pool.npz (images,
truth, synset), all at 32x32 in a fixed shuffled order. `truth` says whether the photograph's synset lies inside one of
CIFAR-10's classes: a proxy, for there are photographs of cats in other synsets too. It serves evaluation alone.
"""

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from pujax.data.decode import EXTENSIONS, ImageSpec, decode

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# ImageNet synsets, among the 200 of Tiny ImageNet, that lie inside a class of CIFAR-10.
IN_DOMAIN = {
    "dog": "n02085620 n02094433 n02099601 n02099712 n02106662 n02113799",
    "cat": "n02123045 n02123394 n02124075",
    "frog": "n01641577 n01644900",
    "bird": "n02056570 n02058221 n02002724 n01855672",
    "automobile": "n04285008 n03100240 n02814533 n03670208",
    "truck": "n03796401",
}


def read_images(paths: list[Path]) -> np.ndarray:
    """Return uint8 [N, 32, 32, 3]; a file that does not decode is an error."""
    with ThreadPoolExecutor() as pool:
        return np.stack(list(pool.map(lambda path: decode(path.read_bytes(), ImageSpec(32, 3)), paths)))


def shuffled(paths: list[Path]) -> list[Path]:
    """Return the sorted paths in a fixed random order, so that no later step sees whole classes in a row."""
    paths = sorted(paths)
    return [paths[i] for i in np.random.default_rng(0).permutation(len(paths))]


def main() -> None:
    """Write the three files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", type=Path, required=True)
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("raw"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        paths = shuffled([path for name in CLASSES for path in (args.cifar / split / name).glob("*")])
        labels = np.array([CLASSES.index(path.parent.name) for path in paths], np.int32)
        np.savez(args.out / f"cifar_{split}.npz", images=read_images(paths), labels=labels)
        print(f"cifar_{split}: {len(paths)} images", flush=True)
    paths = shuffled([path for path in (args.pool / "train").glob("n*/**/*") if path.suffix.lower() in EXTENSIONS])
    synsets = np.array([path.relative_to(args.pool / "train").parts[0] for path in paths])
    truth = np.isin(synsets, " ".join(IN_DOMAIN.values()).split())
    np.savez(args.out / "in_pool.npz", images=read_images(paths), truth=truth, synset=synsets)
    print(f"in_pool: {len(paths)} images, {truth.mean():.3f} in-domain")


if __name__ == "__main__":
    main()
