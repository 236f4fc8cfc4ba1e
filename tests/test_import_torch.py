"""`python -m pujax.import_torch`: PyTorch networks become teachers that need no PyTorch, or one line says why not."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from etils import epath
from PIL import Image
from reference import torch_teachers
from torch import nn

from configs import quickstart
from pujax import import_torch, pipeline
from pujax.config import resolve
from pujax.errors import UserError
from pujax.importers import convert, parity
from pujax.importers.features import Result, choose_features, spatial_axes
from pujax.metrics import flops_per_image, num_params
from pujax.models import create_classifier
from pujax.networks import Preprocessing, load_network, save_network
from pujax.weights import load_metadata, save_weights

ROOT = Path(__file__).parent.parent
FLOAT32 = jnp.dtype(jnp.float32)
OWN = "reference.torch_teachers"
SEEN = ["--image_size=32", "--channels=1", "--mean=0.286", "--std=0.353"]  # the quickstart's images


@pytest.fixture(scope="module")
def cnn(tmp_path_factory):
    """A convolutional teacher's file, and what the command printed when it made it."""
    folder = tmp_path_factory.mktemp("cnn")
    torch.save({"epoch": 3, "state_dict": {f"module.{name}": value for name, value in cnn_state().items()}},
               folder / "w.pth")  # fmt: skip
    (folder / "names.txt").write_text("\n".join("abcdefghij"))
    command = [sys.executable, "-m", "pujax.import_torch", f"--network=tests.{OWN}:small_cnn", *SEEN,
               f"--weights={folder}/w.pth", "--num_classes=10", f"--out={folder}/teacher.safetensors",
               f"--class_names={folder}/names.txt"]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return epath.Path(folder / "teacher.safetensors"), done.stdout


def cnn_state():
    """Weights that are not those that the network begins with."""
    return {name: value * 1.01 for name, value in torch_teachers.small_cnn().state_dict().items()}


def uint8_images(count, *, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 1), np.uint8)


def for_torch(images):
    return torch.from_numpy((images.astype(np.float32).transpose(0, 3, 1, 2) / 255 - 0.286) / 0.353)


@torch.no_grad()
def assert_same(network, images, logits, features):
    """Logits and features of a loaded network are those that PyTorch gave."""
    own_logits, own_features = network.module.apply(network.variables, network.preprocessing.prepare(images))
    assert own_logits.dtype == jnp.float32
    np.testing.assert_allclose(own_logits, logits, rtol=1e-4, atol=1e-5)
    for own, expected in zip(own_features, features, strict=True):
        assert own.dtype == jnp.float32
        np.testing.assert_allclose(own, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("count", "dtype"), [(1, jnp.float32), (5, jnp.bfloat16)])
@torch.no_grad()
def test_a_convolutional_network_is_the_same_for_every_batch_size(cnn, count, dtype):
    module = torch_teachers.small_cnn()
    module.load_state_dict(cnn_state())
    stages = module.eval().stages(for_torch(uint8_images(count)))
    network = load_network(cnn[0], dtype=jnp.dtype(dtype))
    assert network.class_names == tuple("abcdefghij") and network.num_classes == 10
    assert_same(
        network, uint8_images(count), module(for_torch(uint8_images(count))), [stage.mean((2, 3)) for stage in stages]
    )


def test_the_command_tells_what_it_chose_and_measured(cnn):
    path, output = cnn
    for line in (
        "10 classes",
        "  stem [8, 16, 16]",
        "  body [12, 8, 8]",
        "  last [16, 4, 4]",
        "40 images, batches of 32",
    ):
        assert line in output
    assert "top-1 agreement 100 %" in output
    origin = json.loads(load_metadata(path)["origin"])
    assert origin["network"].endswith(":small_cnn") and origin["parity"]["relative_difference"] < 1e-5
    assert [feature.split()[0] for feature in origin["features"]] == ["stem", "body", "last"]


def test_size_and_cost_are_those_of_the_network(cnn):
    network = load_network(cnn[0], dtype=FLOAT32)
    module = torch_teachers.small_cnn()
    assert num_params(network.variables) == sum(weight.numel() for weight in module.parameters())
    stem, depthwise, pointwise = 16**2 * 8 * 9, 8**2 * 8 * 25, 8**2 * 8 * 12
    multiplications = stem + depthwise + pointwise + 12 * 12 + 4**2 * 12 * 16 * 9 + 16 * 10
    assert flops_per_image(network.module, network.variables, (32, 32, 1)) == 2 * multiplications


def test_a_copy_of_the_file_holds_the_same_network(cnn, tmp_path):
    network = load_network(cnn[0], dtype=FLOAT32)
    save_network(epath.Path(tmp_path / "copy.safetensors"), network)
    again = load_network(epath.Path(tmp_path / "copy.safetensors"), dtype=FLOAT32)
    images = uint8_images(3)
    np.testing.assert_array_equal(*(own.logits(own.variables, images) for own in (network, again)))


@pytest.mark.slow
def test_a_network_of_tokens(tmp_path, capsys):
    path = epath.Path(tmp_path / "teacher.safetensors")
    import_torch.main([f"--network={OWN}:small_transformer", *SEEN, f"--out={path}"])
    assert "  blocks.4 [17, 24]" in capsys.readouterr().out
    module = torch_teachers.small_transformer().eval()
    images, features = uint8_images(3), []
    with torch.no_grad():
        tokens = module.embed(for_torch(images))
        for block in module.blocks:
            tokens = block(tokens)
            features.append(tokens.mean(1))
        logits = module(for_torch(images))["logits"]
    assert_same(load_network(path, dtype=FLOAT32), images, logits, [features[i] for i in (1, 2, 3, 4)])


def job(cnn, **scorer):
    config = quickstart.get_config()
    config.teacher.model, config.teacher.weights, config.baselines = "", str(cnn), ()
    config.data.pool.limit, config.data.test.limit = 1000, 200
    config.data.num_classes = 10
    config.select.rule, config.select.budget, config.select.copies = "top_k", 100, "ignore"
    config.scorer.min_in_range, config.scorer.frozen.styles = 0.0, "off"
    config.scorer.frozen.num_steps, config.scorer.frozen.batch_size = 20, 64
    config.scorer.frozen.positives_per_batch = 16
    config.distill.num_steps, config.distill.batch_size, config.distill.warmup_steps = 4, 64, 1
    config.export.formats = ()
    config.run.inference_batch_size = 104  # compiled once
    return dataclasses.replace(config, scorer=dataclasses.replace(config.scorer, **scorer))


@pytest.fixture
def nameless(cnn, tmp_path):
    """The teacher without class names, which are not those of the quickstart's images."""
    path = epath.Path(tmp_path / "nameless.safetensors")
    save_network(path, dataclasses.replace(load_network(cnn[0], dtype=FLOAT32), class_names=None))
    return path


def test_a_whole_job_runs_with_such_a_teacher(nameless, tmp_path):
    summary = pipeline.run(resolve(job(nameless)), epath.Path(tmp_path / "run"), pipeline.STAGES)
    assert summary["teacher"]["num_params"] == num_params(load_network(nameless, dtype=FLOAT32).variables)
    assert summary["mining"]["selected"] == 100
    assert summary["student"]["steps"] == 4 and 0 <= summary["student"]["accuracy"] <= 1


def test_what_cannot_be_done_with_a_graph_is_refused(nameless, tmp_path):
    config = quickstart.get_config()
    network = load_network(nameless, dtype=FLOAT32)
    config = job(nameless, mode="finetune", frozen=config.scorer.frozen.__class__())
    with pytest.raises(
        UserError, match=r"scorer.mode=finetune trains the teacher's network, but .* use scorer.mode=fro"
    ):
        pipeline.run(resolve(config), epath.Path(tmp_path / "run"), pipeline.STAGES)
    for options in ({"train": True}, {"mutable": ["batch_stats"]}):
        with pytest.raises(ValueError, match="an exported network is a fixed graph"):
            network.module.apply(network.variables, jnp.zeros((1, 32, 32, 1)), **options)
    with pytest.raises(ValueError, match="there is no model 'exported'"):
        create_classifier("exported", 10)
    config = job(nameless)
    config.distill.model = "exported"
    with pytest.raises(UserError, match=r"distill.model is 'exported': there is no model"):
        pipeline.run(resolve(config), epath.Path(tmp_path / "run"), pipeline.STAGES)


def test_damaged_graphs_are_refused(cnn, tmp_path):
    network, path = load_network(cnn[0], dtype=FLOAT32), epath.Path(tmp_path / "w.safetensors")
    save_network(path, dataclasses.replace(network, graph=dataclasses.replace(network.graph, artifact=b"123456789")))
    with pytest.raises(UserError, match=r"w.safetensors holds a graph that this JAX, .*, does not read"):
        load_network(path, dtype=FLOAT32)
    save_weights(path, network.variables, metadata=load_metadata(cnn[0]))
    with pytest.raises(UserError, match=r"w.safetensors is damaged: it has no readable tensor graph"):
        load_network(path, dtype=FLOAT32)


# --- features -------------------------------------------------------------------------------------------------


def chosen(*results, size=64):
    results = [Result(name, module, (2, *shape), False) for name, shape, module in results]
    return [result.name for result in choose_features(results, batch_size=2, image_size=size)]


def test_a_stage_is_the_last_result_of_each_resolution():
    names = chosen(("stem", (8, 64, 64), None), ("a.0", (8, 32, 32), None), ("a", (8, 32, 32), None),
                   ("squeeze", (8, 1, 1), None), ("b.wide", (48, 32, 32), None),
                   ("b", (16, 16, 16), None), ("flat", (16,), None))  # fmt: skip
    assert names == ["a", "b"]
    assert chosen(("a", (8, 64, 64), None), ("b", (8, 64, 64), None)) == ["b"]  # where nothing is smaller
    deep = [(str(n), (4, 256 >> n, 256 >> n), None) for n in range(8)]
    assert chosen(*deep, size=512) == ["3", "4", "5", "6", "7"]


def test_channels_may_come_last():
    assert chosen(("a", (16, 16, 8), None), ("b", (8, 8, 16), None)) == ["a", "b"]
    assert spatial_axes((2, 16, 16, 8)) == (1, 2)
    assert spatial_axes((2, 8, 16, 16)) == spatial_axes((2, 8, 8, 8)) == (2, 3)
    assert spatial_axes((2, 5, 8)) == (1,) and spatial_axes((2, 8)) == ()


def test_attention_maps_are_not_taken():
    block = nn.Linear(9, 9)
    tokens = [(f"blocks.{i}", (16, 8), block) for i in range(6)]
    small = [(f"blocks.{i}.norm", (16, 8), nn.LayerNorm(8)) for i in range(6)]
    maps = [(f"blocks.{i}.softmax", (3, 16, 16), nn.Softmax(-1)) for i in range(6)]
    mixed = [entry for group in zip(small, maps, tokens) for entry in group]
    assert chosen(("patches", (8, 4, 4), None), *mixed) == ["blocks.1", "blocks.2", "blocks.4", "blocks.5"]
    probabilities = Result("softmax", None, (2, 3, 16, 16), True)
    assert choose_features([Result("a", None, (2, 8, 32, 32), False), probabilities], batch_size=2, image_size=64)
    with pytest.raises(UserError, match="name those whose outputs are features with --features"):
        choose_features([probabilities], batch_size=2, image_size=64)


# --- parity ---------------------------------------------------------------------------------------------------


def test_parity_measures_differences_and_forgives_ties():
    expected = np.array([[2.0, 1.0, -4.0], [1.0, 1.00001, 0.0]], np.float32)
    same = parity.compare(expected, expected + np.array([[0.0001, 0, 0], [0.0002, 0, 0]], np.float32))
    assert same.relative_difference == pytest.approx(5e-5, rel=0.01) and same.top1_agreement == 1 and same.holds()
    other = parity.compare(expected, expected[:, ::-1])
    assert other.top1_agreement == 0.5 and not other.holds()
    assert not parity.compare(expected, expected * np.nan).holds()


def test_a_network_whose_logits_differ_is_not_written(cnn, monkeypatch, tmp_path):
    monkeypatch.setattr(import_torch, "logits_without_torch", lambda path, images: np.ones((40, 10), np.float32))
    network = load_network(cnn[0], dtype=FLOAT32)
    options = import_torch.make_parser().parse_args(["--network=a:b", "--out=t.safetensors"])
    with pytest.raises(UserError, match=r"is not PyTorch's, to 0.0001, and was not written: 40 images.* agreement"):
        import_torch.write(
            epath.Path(tmp_path / "t.safetensors"),
            network,
            (),
            np.eye(40, 10, dtype=np.float32),
            uint8_images(40),
            options,
        )
    assert not list(tmp_path.iterdir())


def test_weights_become_a_network_of_our_own_that_is_compared(tmp_path, capsys, monkeypatch):
    torch.save(torch_teachers.narrow_resnet().state_dict(), tmp_path / "w.pth")
    options = ["--model=resnet18_x0.125", f"--weights={tmp_path}/w.pth", "--image_size=32", "--mean=0.3", "--crop=0.9"]
    compared = [*options, f"--network={OWN}:narrow_resnet", f"--write_golden={tmp_path}/g.npz"]
    import_torch.main([*compared, f"--out={tmp_path}/a.safetensors"])
    assert "40 images, batches of 32, 7, 1: logits differ by at most" in capsys.readouterr().out
    network = load_network(epath.Path(tmp_path / "a.safetensors"), dtype=FLOAT32)
    assert network.model == "resnet18_x0.125" and network.num_classes == 10 and network.preprocessing.crop == 0.9
    golden = dict(np.load(tmp_path / "g.npz"))
    monkeypatch.setattr(import_torch, "logits_without_torch", lambda path, images: golden["logits"])  # as was measured
    import_torch.main([*options, f"--golden={tmp_path}/g.npz", f"--out={tmp_path}/b.safetensors"])
    assert "top-1 agreement 100 %" in capsys.readouterr().out
    np.savez(tmp_path / "wrong.npz", images=golden["images"], logits=golden["logits"] + 0.1)
    with pytest.raises(UserError, match=r"is not PyTorch's, to 0.0001, and was not written"):
        import_torch.main([*options, f"--golden={tmp_path}/wrong.npz", f"--out={tmp_path}/c.safetensors"])
    assert not (tmp_path / "c.safetensors").exists()
    with pytest.raises(UserError, match=r"the network wants uint8 \[N, 64, 64, 3\] and as many logits"):
        import_torch.main(
            [*options, "--image_size=64", f"--golden={tmp_path}/g.npz", f"--out={tmp_path}/c.safetensors"]
        )
    import_torch.main([*options, f"--out={tmp_path}/d.safetensors"])
    assert "not measured; give --network or --golden" in capsys.readouterr().out


# --- mistakes -------------------------------------------------------------------------------------------------


@pytest.fixture
def call(monkeypatch, capfd, tmp_path):
    """A function from options to the one line on stderr, with status 2."""

    def call(*options, out="t.safetensors"):
        monkeypatch.setattr(sys, "argv", ["pujax.import_torch", *options, f"--out={tmp_path}/{out}"])
        with pytest.raises(SystemExit) as stop:
            import_torch.run(import_torch.main)
        assert stop.value.code == 2
        lines = capfd.readouterr().err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("pujax: "), lines
        return lines[0]

    return call


def of(name):
    return f"--network={OWN}:{name}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give --network, or --model and --weights; see --help"),
        (["--model=resnet18"], "give --network, or --model and --weights; see --help"),
        (["--model=resnet19", "--weights=none.pth"], "no weights file at none.pth"),
        ([of("small_cnn"), "--golden=g.npz"], "--golden is for --model without --network"),
        (["--model=resnet18", "--weights=w.pth", "--golden=none.npz"], "--golden none.npz is no .npz with images and"),
        ([of("small_cnn"), "--crop=0"], "--crop: invalid share above 0 value: '0'"),
        ([of("small_cnn"), "--image_sise=3"], "unrecognized arguments: --image_sise=3"),
        ([of("small_cnn"), "--image_size=0"], "--image_size: invalid positive whole number value: '0'"),
        ([of("small_cnn"), "--mean=a"], "--mean: invalid list of numbers value: 'a'"),
        ([of("small_cnn"), "--mean=0.1,0.2"], "--mean needs one number, or one for each of the 3 channels"),
        ([of("small_cnn"), "--std=0"], "it must be greater than 0"),
        (["--network=resnet18"], "give timm:NAME, torchvision:NAME or package.module:function"),
        (["--network=no_such:thing"], "ModuleNotFoundError: No module named 'no_such'"),
        ([of("nothing")], "there is no function nothing in reference.torch_teachers"),
        ([of("maker_that_fails")], "RuntimeError: no such checkpoint"),
        ([of("no_module")], "returns a int, not a torch.nn.Module"),
        ([of("small_cnn"), "--weights=none.pth"], "no weights file at none.pth"),
        ([of("small_cnn"), "--weights=none.safetensors"], "no weights file at none.safetensors"),
        (
            [of("small_cnn"), "--class_names=none.txt"],
            "--class_names is 'none.txt', which is no text file that can be read",
        ),
        ([of("small_cnn"), "--images=none"], "--images: there is no image in none"),
        ([of("small_transformer")], "the network fails on images [2, 3, 224, 224]: RuntimeError: Given groups=1"),
        ([of("small_transformer"), *SEEN, "--num_classes=12"], "returns 10 logits, but --num_classes is 12"),
        ([of("small_cnn"), *SEEN, "--features=stem,boddy"], "no submodule 'boddy' returns a tensor; did you mean body"),
        ([of("perceptron"), *SEEN], "no submodule returns images or tokens; name those"),
        ([of("branching"), *SEEN], "torch.export cannot trace the network: "),
        (
            [of("fixed_batch"), *SEEN],
            "the network fixes the size of its batch; in its code write x.shape[0] for len(x)",
        ),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_mistakes_end_in_one_line(call, options, message):
    assert message in call(*options)


def test_a_name_that_is_no_weights_file_is_refused(call):
    assert "give a name that ends in .safetensors" in call(of("small_cnn"), out="teacher.pth")


def wrong_names(path):
    torch.save({f"trunk.{name}": value for name, value in cnn_state().items()}, path)


def wrong_shapes(path):
    torch.save(torch_teachers.small_cnn(num_classes=7).state_dict(), path)


def whole_module(path):
    torch.save(torch_teachers.small_cnn(), path)


def no_tensors(path):
    torch.save({"epoch": 3}, path)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (wrong_names, "does not fit the network; not in the file: stem.0.weight, stem.1.weight, stem.1.bias, ...; "
         "not in the network: trunk.stem.0.weight"),
        (wrong_shapes, "head.weight has shape [7, 16], the network needs [10, 16]"),
        (whole_module, "holds an object of reference.torch_teachers.SmallCNN, which is not executed; save it"),
        (no_tensors, "holds no tensors; save it with torch.save("),
        (lambda path: path.write_bytes(b"\xff" * 99), "w.pth"),
    ],
    ids=["names", "shapes", "a module", "no tensors", "damaged"],
)  # fmt: skip
def test_weights_that_do_not_fit_are_refused_by_what_differs(call, tmp_path, write, message):
    write(tmp_path / "w.pth")
    assert message in call(of("small_cnn"), *SEEN, f"--weights={tmp_path}/w.pth")


def test_safetensors_are_read_and_compiled_prefixes_removed(tmp_path):
    module = torch_teachers.small_cnn()
    with torch.no_grad():
        for weight in module.parameters():
            weight.zero_()
    path = epath.Path(tmp_path / "w.safetensors")
    state = {f"_orig_mod.{name}": value.numpy() for name, value in cnn_state().items() if "batches" not in name}
    save_weights(path, state)
    import_torch.load_into(module, path)
    for name, value in cnn_state().items():
        assert "batches" in name or torch.equal(module.state_dict()[name], value)


def test_without_torch_the_remedy_is_given(call, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert 'torch is not installed; pip install "pujax[import]"' in call(of("small_cnn"), *SEEN)


def test_model_libraries_are_looked_for_and_their_names_checked(call, monkeypatch):
    class Library:
        @staticmethod
        def list_models():
            return ["resnet18", "resnet50"]

        @staticmethod
        def create_model(name, **options):
            return torch_teachers.small_cnn(options["num_classes"], options["in_chans"])

    monkeypatch.setitem(sys.modules, "timm", Library)
    assert "timm has no model 'resnet19'; did you mean resnet18?" in call("--network=timm:resnet19")
    assert "has random weights; give trained ones with --weights" in call("--network=timm:resnet18", "--num_classes=3")
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert "torchvision is not installed; pip install torchvision" in call("--network=torchvision:resnet18")


def test_images_of_a_folder_are_used(tmp_path):
    for i in range(3):
        Image.fromarray(np.full((40, 50), 80 * i, np.uint8)).save(tmp_path / f"{i}.png")
    seen = Preprocessing(32, 1, (0.5,), (0.5,))
    images = import_torch._sample_images(str(tmp_path), seen)
    assert images.shape == (40, 32, 32, 1) and set(images[:, 0, 0, 0].tolist()) == {0, 80, 160}
    (tmp_path / "3.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"3.png does not decode"):
        import_torch._sample_images(str(tmp_path), seen)


def test_help_is_readable(capsys):
    with pytest.raises(SystemExit) as stop:
        import_torch.main(["--help"])
    output = capsys.readouterr().out
    assert stop.value.code == 0 and "--network NAME" in output and max(map(len, output.splitlines())) <= 120


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenetv3_small_100", "swin_tiny_patch4_window7_224", "vit_tiny_patch16_224"])
@pytest.mark.filterwarnings("ignore")
def test_networks_of_timm(name):
    timm = pytest.importorskip("timm")
    module = timm.create_model(name)
    seen = Preprocessing(224, 3, (0.5,), (0.5,))
    network = convert.convert(module, seen).network
    images = np.random.default_rng(0).integers(0, 256, (3, 224, 224, 3), np.uint8)
    expected = parity.torch_logits(module, seen, images)
    logits = jax.jit(network.logits)(network.variables, images)
    assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()
