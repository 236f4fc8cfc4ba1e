"""Every form that images lie in gives the same images, here and in a store; and a job does not see the difference."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import formats
import numpy as np
import pyarrow.parquet as pq
import pytest
from test_pipeline import in_process

from pujax.config import DataConfig
from pujax.data.sources import open_source
from pujax.data.sources.spec import parse_source
from pujax.errors import UserError

DATA = DataConfig(num_classes=2, image_size=32, channels=3)
COUNT = 200
FORMS = ("heap", "heap/list.csv", "list.parquet", "shards/cls", "shards/json", "rows", "img2dataset", "saved", "dict",
         "examples", "cifar", "all.npz", "train_data", "idx")  # fmt: skip


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return formats.write_all(tmp_path_factory.mktemp("written"), COUNT)


def pick(written, form):
    sources, labels, pixels = written
    text = next(text for text in sources if f"/{form}" in text and (form != "heap" or text.endswith("heap")))
    return text, sources[text], labels, pixels


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_images_labels_and_names(written, form):
    text, (first, last, names), labels, pixels = pick(written, form)
    source = open_source(parse_source(text), DATA)
    images, reasons = source.read(np.arange(COUNT))
    assert len(source) == COUNT and not any(reasons)
    assert (images == pixels).all()
    assert source.labels.dtype == np.int32 and source.labels.tolist() == labels.tolist()
    assert source.class_names == names
    keys = source.keys(np.arange(COUNT))
    assert (keys[0], keys[-1]) == (first, last) and len(set(keys)) == COUNT

    pool = open_source(parse_source(text), DATA, labelled=False)
    assert pool.labels is None and pool.keys(np.array([COUNT - 1, 3])) == [last, keys[3]]
    rows = np.random.default_rng(0).permutation(COUNT)[:50]
    assert (pool.read(rows)[0] == pixels[rows]).all()
    again = open_source(parse_source(text), DATA, labelled=False)
    assert again.fingerprint == pool.fingerprint

    config = parse_source(text)
    config.per_class = 3
    few = open_source(config, DATA)
    assert few.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert few.keys(np.arange(6)) == keys[:3] + keys[COUNT // 2 : COUNT // 2 + 3]
    config.per_class, config.limit = 0, 5
    assert (open_source(config, DATA, labelled=False).read(np.arange(5))[0] == pixels[:5]).all()


@pytest.mark.parametrize("form", FORMS)
def test_images_are_fetched_in_several_threads(written, form):
    text, _, _, pixels = pick(written, form)
    source = open_source(parse_source(text), DATA, labelled=False)
    rows = np.random.default_rng(1).integers(0, COUNT, (40, 5))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda own: source.read(own)[0], rows))
    assert (np.stack(found) == pixels[rows]).all()


@pytest.mark.parametrize("form", ["heap", "heap/list.csv", "shards/cls", "shards/json", "rows", "img2dataset"])
def test_forms_in_a_store_are_those_on_this_machine(written, bucket, form):
    text, (first, last, names), labels, pixels = pick(written, form)
    root = Path(next(iter(written[0]))).parent
    bucket.put_folder(root, "data")
    address = text.replace(str(root), "s3://bucket/data")
    source = open_source(parse_source(address if form != "rows" else f"parquet:{address}"), DATA)
    images, reasons = source.read(np.arange(COUNT))
    assert not any(reasons) and (images == pixels).all()
    assert source.labels.tolist() == labels.tolist() and source.class_names == names
    assert source.keys(np.array([0, COUNT - 1])) == [first, last]
    for key in [key for key in bucket.objects if key.startswith(f"data/{form}")][:1]:
        bucket.objects[key] += b"\0" * 512  # after the end of an image or of a tar it does no harm
    if form in ("heap", "shards/cls", "shards/json"):
        assert open_source(parse_source(address), DATA).fingerprint != source.fingerprint


def test_forms_that_are_mapped_or_unpickled_are_read_on_this_machine_only():
    for text in ("s3://b/a.npz", "hf:s3://b/saved", "gs://b/x.array_record", "cifar:s3://b/cifar", "idx:s3://b/m"):
        with pytest.raises(UserError, match=r"are read on this machine only; copy them here"):
            open_source(parse_source(text), DATA, labelled=False)


def test_a_job_scores_and_chooses_alike_whatever_form_the_pool_has(written, tmp_path):
    found = []
    for form in ("heap", "shards/cls"):
        config = parse_source(pick(written, form)[0])

        def change(job, config=config):
            job.data.pool, job.scorer.min_in_range = config, 0.0
            job.select.rule, job.select.budget = "top_k", 40
            job.distill.batch_size, job.scorer.frozen.styles, job.scorer.class_prior = 32, "off", "0.5"

        workdir = tmp_path / form.replace("/", "-")
        in_process(tmp_path, change, stages=("teacher", "scorer", "score", "select"), workdir=workdir)
        shards = sorted(workdir.glob("score/shards/*.parquet"))
        scores = [pq.read_table(path) for path in shards]
        found.append((scores, pq.read_table(workdir / "select" / "selected.parquet")))
    (scores, chosen), (other_scores, other_chosen) = found
    assert len(scores) == len(other_scores) > 0
    for table, other in zip(scores, other_scores):
        assert table.drop_columns(["key"]).equals(other.drop_columns(["key"]))
    assert chosen["index"].to_pylist() == other_chosen["index"].to_pylist()
    assert chosen["score"].to_pylist() == other_chosen["score"].to_pylist()
