"""One text names a source: what each one means, what is not understood, and how the command line takes it."""

import dataclasses

import formats
import pytest
from test_launch import QUICK, call  # noqa: F401 - a fixture

from pujax import launch
from pujax.config import DataConfig, SourceConfig
from pujax.data.sources import open_source
from pujax.data.sources.spec import KINDS, parse_source
from pujax.errors import UserError


def told(text):
    """Return what a text sets, without what it leaves alone."""
    config, default = parse_source(text), SourceConfig()
    changed = [field.name for field in dataclasses.fields(config)
               if getattr(config, field.name) != getattr(default, field.name)]  # fmt: skip
    return {name: getattr(config, name) for name in changed}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("embedded:pool", {"kind": "embedded", "name": "pool"}),
        ("tfds:mnist", {"kind": "tfds", "name": "mnist"}),
        ("tfds:cifar10/test", {"kind": "tfds", "name": "cifar10", "split": "test"}),
        ("tfds:imagenet_resized/32x32/train", {"kind": "tfds", "name": "imagenet_resized/32x32"}),
        ("tfds:mnist/train[:10%]", {"kind": "tfds", "name": "mnist", "split": "train[:10%]"}),
        ("hf:/data/saved", {"kind": "hf", "path": "/data/saved"}),
        ("hf:/data/saved#test", {"kind": "hf", "path": "/data/saved", "split": "test"}),
        ("cifar:c#test", {"kind": "cifar", "path": "c", "split": "test"}),
        ("list:/x/y.csv", {"kind": "list", "path": "/x/y.csv"}),
        ("list:/x/y.parquet", {"kind": "list", "path": "/x/y.parquet"}),
        ("tar:s3://b/odd_name", {"kind": "tar", "path": "s3://b/odd_name"}),
        ("s3://b/{000..999}.tar", {"kind": "tar", "path": "s3://b/{000..999}.tar"}),
        ("s3://b/{a.tar,b.tar}", {"kind": "tar", "path": "s3://b/{a.tar,b.tar}"}),
        ("gs://b/heap/", {"kind": "folder", "path": "gs://b/heap/"}),
        ("s3://b/v1.0/heap", {"kind": "folder", "path": "s3://b/v1.0/heap"}),
        ("/d/*.PARQUET", {"kind": "parquet", "path": "/d/*.PARQUET"}),
        ("a#b.csv", {"kind": "list", "path": "a#b.csv"}),
        ("x.tar.gz", {"kind": "tar", "path": "x.tar.gz"}),
        ("x.npy", {"kind": "array", "path": "x.npy"}),
        ("x.npz", {"kind": "array", "path": "x.npz"}),
        ("d/train_data_batch_{1..10}.npz", {"kind": "imagenet32", "path": "d/train_data_batch_{1..10}.npz"}),
        ("x.array_record", {"kind": "array_record", "path": "x.array_record"}),
        ("x.array_record-00000-of-00010", {"kind": "array_record", "path": "x.array_record-00000-of-00010"}),
        ("x.array_record*", {"kind": "array_record", "path": "x.array_record*"}),
    ],
)
def test_what_a_text_means(text, expected):
    assert told(text) == expected


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        (["a/1.jpg", "b/2.jpg"], "folder"),
        (["1.jpg", "0.tar"], "folder"),
        (["00000/1.jpg", "00000.parquet"], "folder"),
        ([], "folder"),
        (["00000.tar", "00000.parquet", "00000_stats.json"], "tar"),
        (["0.parquet", "README.md"], "parquet"),
        (["x.array_record-00000-of-00002", "x.array_record-00001-of-00002", "dataset_info.json"], "array_record"),
        (["state.json", "dataset_info.json", "data-00000-of-00001.arrow"], "hf"),
        (["dataset_dict.json", "train/state.json"], "hf"),
        (["data_batch_1", "test_batch", "batches.meta"], "cifar"),
        (["train", "test", "meta"], "cifar"),
        (["train/1.jpg", "test/1.jpg", "meta"], "folder"),
        (["train-images-idx3-ubyte.gz"], "idx"),
        (["train_data_batch_1.npz", "val_data.npz"], "imagenet32"),
    ],
)
@pytest.mark.parametrize("split", ["", "#test"])
def test_what_is_in_a_folder_tells_its_kind(tmp_path, files, kind, split):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    if not split:
        assert told(str(tmp_path)) == {"kind": kind, "path": str(tmp_path)}
    elif kind in ("hf", "cifar", "idx", "imagenet32"):
        assert told(f"{tmp_path}#test") == {"kind": kind, "path": str(tmp_path), "split": "test"}


def test_a_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert told("~") == told("folder:~") == {"kind": "folder", "path": str(tmp_path)}


def test_a_hash_in_the_name_of_what_is_there_is_no_split(tmp_path):
    formats.write_saved(tmp_path / "a#b", *formats.real_images(10)[:3])
    assert told(f"{tmp_path}/a#b") == {"kind": "hf", "path": f"{tmp_path}/a#b"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "/no/where",
            r"'/no/where' names nothing that is there; a source is a folder of images; .*KIND:PATH with a kind",
        ),
        ("", "'' names nothing that is there"),
        ("s3://b/x.zip", r"'s3://b/x.zip' is of no kind that is known"),
        ("parket:/x", r"there is no kind 'parket' of data source; did you mean parquet:/x\?"),
        ("zip:/x", r"there is no kind 'zip' of data source; a source is a folder"),
    ],
)
def test_what_is_not_understood_is_refused_with_what_is(text, message):
    with pytest.raises(UserError, match=message):
        parse_source(text)


def test_a_file_of_no_known_kind_is_refused(tmp_path):
    (tmp_path / "images.zip").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"images.zip' is of no kind that is known; a source is a folder"):
        parse_source(f"{tmp_path}/images.zip")


def test_every_kind_of_the_config_can_be_named():
    choices = dataclasses.fields(SourceConfig)[0].metadata["choices"]
    assert set(KINDS) | {""} == set(choices)
    for kind in KINDS:
        assert parse_source(f"{kind}:x").kind == kind


@pytest.mark.parametrize(
    ("kind", "options"),
    [("tar", {"name": "x"}), ("list", {"split": "test"}), ("hf", {"name": "x"}), ("cifar", {"name": "x"})],
)
def test_options_that_a_kind_does_not_use_are_refused(kind, options):
    name = next(iter(options))
    with pytest.raises(UserError, match=rf"{name} is .* for a data source of kind {kind}, which does not use it"):
        open_source(SourceConfig(kind=kind, path="x", **options), DataConfig(), labelled=False)


# --- the command line ---


def spelled(*options):
    return launch._begin_sources_anew(launch._spell_out_sources(["pujax", "--config=r.py", *options]))


@pytest.mark.parametrize("form", ["--config.data.pool={}", "--config.data.pool {}", "-config.data.pool={}"])
def test_a_text_on_the_command_line_sets_the_fields(form):
    argv = spelled(*form.format("tfds:cifar10/test").split(" "), "--config.data.pool.limit=5")
    assert argv[:2] == ["pujax", "--config=r.py"] and argv[-1] == "--config.data.pool.limit=5"
    found = dict(option.removeprefix("--config.data.pool.").split("=", 1) for option in argv[2:])
    assert found == {"kind": "tfds", "name": "cifar10", "split": "test", "path": "", "limit": "5"}


def test_a_later_field_wins_and_other_options_stay():
    argv = spelled("--config.data.test=cifar:c", "--config.data.test.split=test", "--config.seed=1")
    assert [option for option in argv if ".split=" in option][-1] == "--config.data.test.split=test"
    assert argv[-1] == "--config.seed=1"
    assert spelled("--config.data.full=")[-4:-2] == ["--config.data.full.kind=", "--config.data.full.path="]
    with pytest.raises(UserError, match=r"--config.data.pool is given more than once; put a pattern in quotes"):
        spelled("--config.data.pool=0.tar", "--config.data.pool=1.tar")
    with pytest.raises(UserError, match=r"--config.data.pool needs a value"):
        spelled("--config.data.pool")


def test_the_command_line_takes_a_text_for_a_source(tmp_path, monkeypatch, call):  # noqa: F811
    _, files, labels, _ = formats.real_images(200)
    formats.write_tar(tmp_path / "0.tar", formats.samples(files, labels))
    options = [*QUICK, f"--workdir={tmp_path}/run", "--dry_run"]
    for option, message in (
        ("--config.data.pool=/no/where", "names nothing that is there; a source is"),
        ("--config.data.pol=x", "there is no option --config.data.pol; did you mean --config.data.pool"),
        (f"--config.data.pool={tmp_path}/{{0..3}}.tar", "3 of the 4 files"),
    ):
        status, line = call(*options, option)
        assert status == 2 and message in line
    found = []

    def seen(config, *_):
        found.append(config.data)
        raise UserError("seen")

    monkeypatch.setattr("pujax.plan.describe", seen)
    assert call(*options, "--config.data.pool", f"{tmp_path}/0.tar", "--config.data.pool.limit=150")[1] == "pujax: seen"
    assert found[0].pool == SourceConfig(kind="tar", path=f"{tmp_path}/0.tar", limit=150)
    assert found[0].labelled == SourceConfig(kind="embedded", name="labelled")
