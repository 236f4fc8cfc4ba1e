"""`pujax predict`: a row for every image of any source, in order; what does not decode; when it is killed."""

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
import pytest
from etils import epath
from PIL import Image
from test_pipeline import environment

from pujax import predict
from pujax.data.decode import ImageSpec, fit_arrays
from pujax.data.embedded import CLASS_NAMES, load_embedded
from pujax.errors import UserError
from pujax.loaded import Model
from pujax.networks import Preprocessing, load_network, save_network
from pujax.predictions import Tally
from pujax.predictions import predict as answers

ROOT = Path(__file__).parent.parent
FLOAT32 = jnp.dtype(jnp.float32)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of 30 images in two folders, of which two do not decode, and their pixels, in file order."""
    root = tmp_path_factory.mktemp("photos")
    images = load_embedded("test")["images"][:30]
    for i, image in enumerate(images):
        (root / str(i // 20)).mkdir(exist_ok=True)
        Image.fromarray(image).save(root / str(i // 20) / f"{i:02d}.png")
    (root / "0" / "07.png").write_bytes((root / "0" / "07.png").read_bytes()[:60])
    (root / "1" / "29.png").write_bytes(b"")
    resized = [Image.fromarray(image).resize((32, 32), Image.Resampling.BILINEAR) for image in images]
    return root, np.stack([np.asarray(image) for image in resized])[..., None]


@pytest.fixture(scope="module")
def expected(finished, photos):
    """The student's probabilities of the photos, and how the classes are sorted by them."""
    logits = load_network(epath.Path(finished / "distill" / "student.safetensors"), dtype=FLOAT32)(photos[1])
    probs = np.exp(logits - logits.max(1, keepdims=True))
    probs /= probs.sum(1, keepdims=True)
    return probs, np.argsort(-probs, axis=1)


def rows_of(path):
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    kinds = {"class": int, "probability": float}
    return [
        {name: None if value == "" else kinds.get(name.split("_")[0], str)(value) for name, value in row.items()}
        for row in csv.DictReader(path.open())
    ]


@pytest.mark.parametrize("file", ["a.csv", "a.parquet", "a.jsonl"])
def test_a_row_for_every_image_in_the_order_of_the_files(finished, photos, expected, tmp_path, capsys, file):
    predict.main([str(finished), str(photos[0]), "--top=3", f"--out={tmp_path}/{file}"])
    assert capsys.readouterr().err.startswith("2 of 30 images do not decode, the first is 0/07.png (")
    rows = rows_of(tmp_path / file)
    assert [row["key"] for row in rows] == [f"{i // 20}/{i:02d}.png" for i in range(30)]
    probs, order = expected
    for i, row in enumerate(rows):
        if i in (7, 29):
            assert row.pop("error") and {row.pop("key")} and set(row.values()) == {None}
            continue
        assert row["error"] is None
        for place, end in enumerate(("", "_2", "_3")):
            k = order[i, place]
            assert (row[f"class{end}"], row[f"name{end}"]) == (k, CLASS_NAMES[k])
            assert row[f"probability{end}"] == pytest.approx(probs[i, k], rel=1e-4)
    assert [path.name for path in tmp_path.iterdir()] == [file]


def test_without_a_file_it_is_printed(finished, photos, tmp_path, capfd):
    predict.main([str(finished), str(photos[0])])
    printed = capfd.readouterr().out
    predict.main([str(finished), str(photos[0]), f"--out={tmp_path}/a.csv"])
    assert printed == (tmp_path / "a.csv").read_text()
    assert printed.splitlines()[0] == '"key","class","name","probability","error"'


@pytest.mark.parametrize("unit", ["student", "export/student.onnx"])
def test_batches_of_any_size_give_the_same(finished, tmp_path, unit):
    for size in (8, 1000):
        options = [f"--unit={unit}", f"--batch_size={size}", f"--out={tmp_path}/{size}.csv"]
        predict.main([str(finished), "embedded:labelled", *options])
    first, second = rows_of(tmp_path / "8.csv"), rows_of(tmp_path / "1000.csv")
    assert len(first) == 100 and [row["key"] for row in first] == [str(i) for i in range(100)]
    assert [row["class"] for row in first] == [row["class"] for row in second]
    np.testing.assert_allclose(*([row["probability"] for row in rows] for rows in (first, second)), atol=1e-5)


def test_images_are_classified_as_the_network_does(finished, tmp_path):
    predict.main([str(finished), "embedded:labelled", "--unit=teacher", f"--out={tmp_path}/a.parquet"])
    network = load_network(epath.Path(finished / "teacher" / "teacher.safetensors"), dtype=FLOAT32)
    images = fit_arrays(load_embedded("labelled")["images"], ImageSpec(32, 1))
    assert pq.read_table(tmp_path / "a.parquet")["class"].to_pylist() == network(images).argmax(1).tolist()


def test_classes_without_names(finished, tmp_path):
    network = load_network(epath.Path(finished / "teacher" / "teacher.safetensors"), dtype=FLOAT32)
    object.__setattr__(network, "class_names", None)
    save_network(epath.Path(tmp_path / "a.safetensors"), network)
    predict.main([f"{tmp_path}/a.safetensors", "embedded:labelled", f"--out={tmp_path}/a.csv"])
    assert {row["name"] for row in rows_of(tmp_path / "a.csv")} == {None}


def test_too_many_that_do_not_decode_are_an_error_and_the_answers_are_there(finished, photos, tmp_path):
    message = (
        r"2 of 30 images \(6.67 %\) do not decode, the first is 0/07.png \(.*\); all are listed in the column error of "
        r".*a.csv: remove them, or raise --max_unreadable \(0.05\)"
    )
    with pytest.raises(UserError, match=message):
        predict.main([str(finished), str(photos[0]), f"--out={tmp_path}/a.csv", "--max_unreadable=0.05"])
    assert len(rows_of(tmp_path / "a.csv")) == 30


class Source:
    """Endless images, of which it is known which were read."""

    def __init__(self):
        self.read_until = 0

    def __len__(self):
        return 10**7

    def keys(self, indices):
        return [str(i) for i in indices]

    def read(self, indices):
        self.read_until = int(indices[-1]) + 1
        return np.zeros((len(indices), 4, 4, 1), np.uint8), np.full(len(indices), "", object)


def test_what_is_in_memory_does_not_grow(mesh):
    """Images are read no more than three batches ahead of the answers that are taken: here, of ten million, a few."""
    from pujax.inference import compile_map, stream_images

    def stream(read, count, batch_size, progress):
        fn = lambda _, images: {"logits": jnp.zeros((len(images), 3)) + jnp.mean(images)}  # noqa: E731
        outputs = stream_images(compile_map(fn, mesh), (), read, count, batch_size=batch_size, mesh=mesh)
        return (out["logits"] for out in outputs)

    model, source, tally = Model("a", 3, None, Preprocessing(4, 1, (0.5,), (0.5,)), stream), Source(), Tally()
    for done, table in enumerate(answers(model, source, tally, top=1, batch_size=16), start=1):
        assert len(table) == 16 and table["key"][0].as_py() == str(16 * (done - 1))
        assert tally.images == 16 * done and source.read_until <= tally.images + 3 * 16
        if done == 20:
            break


def test_killed_it_leaves_no_file(finished, tmp_path):
    command = [sys.executable, "-m", "pujax.predict", str(finished), "embedded:pool", "--batch_size=1",
               f"--out={tmp_path}/a.csv"]  # fmt: skip
    process = subprocess.Popen(command, cwd=ROOT, env=environment(), stderr=subprocess.DEVNULL)
    while not any(path.stat().st_size for path in tmp_path.iterdir()):  # some answers are written
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "a.csv").exists()
    assert all(path.suffix == ".tmp" for path in tmp_path.iterdir())


def test_what_breaks_it_off_leaves_nothing_at_all(finished, photos, tmp_path, monkeypatch):
    def fails(source, indices):
        raise OSError(5, "the store is away")

    monkeypatch.setattr("pujax.data.sources.encoded.EncodedSource.read", fails)
    with pytest.raises(OSError, match="the store is away"):
        predict.main([str(finished), str(photos[0]), f"--out={tmp_path}/a.csv"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{run}"], "the following arguments are required: SOURCE"),
        (
            ["{run}", "embedded:test", "--out=a.txt"],
            "--out is 'a.txt'; give a name that ends in .csv, .p",
        ),
        (["{run}", "embedded:test", "--top=11"], r"--top is 11, but .* has 10 classes; lower it"),
        (["{run}", "embedded:test", "--top=0"], "argument --top: invalid positive whole number value: '0'"),
        (["{run}", "embedded:test", "--max_unreadable=2"], "invalid share from 0 to 1 value: '2'"),
        (["{run}", "embedded:tset"], "nothing embedded is called 'tset.npz.xz'"),
        (["{run}", "{tmp}"], "there are no images in folder"),
        (["{tmp}/none", "embedded:test"], "there is nothing at"),
    ],
    ids=lambda value: "" if isinstance(value, str) else " ".join(value).replace("/", ":"),
)
def test_what_is_wrong_is_named(finished, tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        predict.main([argument.format(run=finished, tmp=tmp_path) for argument in arguments])
