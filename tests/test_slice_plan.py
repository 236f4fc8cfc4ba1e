"""Plans for devices that are not there: the arithmetic, what the compiler is asked, and the lines that are printed."""

import contextlib
import importlib.util
import re
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from test_pipeline import quickstart

from pujax import pipeline, plan, programs
from pujax.artifacts import Workdir
from pujax.config import DistillConfig, FrozenScorerConfig, ScorerConfig, TeacherConfig
from pujax.errors import UserError
from pujax.networks import Preprocessing, abstract_network
from pujax.roofline import TPUS, Cost, Device, bound, compute_seconds, cost_of, memory_seconds, roofline_seconds
from pujax.sharding import make_mesh
from pujax.slice_plan import describe_part, describe_slice, for_slice, parts_of, stage_seconds
from pujax.student import abstract_student
from pujax.topology import Topology, open_topology, outside_compile_cache

DEVICE = Device(flops=1e12, bandwidth=1e11, memory=2**30)
COMPILER = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu, the compiler for TPUs, is not installed: pujax[tpu]"
)


def test_the_roofline_is_the_slower_of_operations_and_memory():
    cost = Cost(flops=2e12, accessed=1e11, arguments=10, temporaries=20, all_reduces=3)
    assert (compute_seconds(cost, DEVICE), memory_seconds(cost, DEVICE)) == (2.0, 1.0)
    assert roofline_seconds(cost, DEVICE) == 2.0 and bound(cost, DEVICE) == "compute" and cost.memory == 30
    many_bytes = Cost(flops=2e12, accessed=5e11)
    assert roofline_seconds(many_bytes, DEVICE) == 5.0 and bound(many_bytes, DEVICE) == "memory"
    counted = Cost(flops=3e12)
    assert roofline_seconds(counted, DEVICE) == 3.0 and counted.memory is None


def test_what_the_compiler_says_is_of_one_device():
    mesh = make_mesh()
    x = jax.ShapeDtypeStruct((64, 128), jnp.float32, sharding=NamedSharding(mesh, P("data")))
    w = jax.ShapeDtypeStruct((128, 32), jnp.float32, sharding=NamedSharding(mesh, P()))
    replicated = NamedSharding(mesh, P())
    with outside_compile_cache():
        cost = cost_of(jax.jit(lambda x, w: (x @ w).sum(0), out_shardings=replicated).lower(x, w).compile())
        alone = cost_of(jax.jit(lambda x, w: x @ w).lower(x, w).compile())
    assert cost.arguments == 4 * (8 * 128 + 128 * 32)
    assert (cost.all_reduces, alone.all_reduces) == (1, 0)
    assert alone.flops == 2 * 8 * 128 * 32
    assert alone.accessed >= alone.arguments + 4 * 8 * 32


def test_a_loop_counts_as_one_turn():
    def steps(count):
        return jax.jit(lambda x: jax.lax.scan(lambda y, _: (y @ y, None), x, length=count)[0])

    x = jax.ShapeDtypeStruct((64, 64), jnp.float32)
    with outside_compile_cache():
        few, many = (cost_of(steps(count).lower(x).compile()).flops for count in (100, 10_000))
    assert few == pytest.approx(many, rel=0.01) and few == pytest.approx(2 * 64**3, rel=0.01)


def test_nothing_is_left_in_the_compile_cache():
    name = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, name)
    with pytest.raises(KeyError), outside_compile_cache():
        assert getattr(jax.config, name) > 1e9
        raise KeyError
    assert getattr(jax.config, name) == before


@pytest.mark.parametrize(
    "name", ["", "v5e", "v5e:", "v5e:8", "v5e:2xa", "v9:2x2", "h100", "h100:2x4", "h100:0", "cpu:8", "v5e:0x4"]
)
def test_a_name_of_no_devices_is_refused(name):
    with pytest.raises(UserError, match="give a TPU slice by its layout, as v5e:4x4"):
        open_topology(name)


def test_without_the_compiler_the_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    with pytest.raises(UserError, match=r'needs the compiler for TPUs; pip install "pujax\[tpu\]"'):
        open_topology("v5e:2x4")


def test_a_slice_computes_in_bfloat16_unless_told_otherwise():
    config = quickstart(lambda config: None)
    assert for_slice(config).compute_dtype == "bfloat16"
    config.compute_dtype = "float32"
    assert for_slice(config).compute_dtype == "float32"


def job_of(**options):
    """As much of a job as the arithmetic looks at."""
    config = quickstart(lambda config: None)
    for name, value in options.items():
        setattr(config, name, value)
    return SimpleNamespace(config=config, sources={"pool": range(100_000), "labelled": range(1000)})


def test_the_time_of_every_stage():
    frozen = FrozenScorerConfig(num_steps=100, reliable_negatives=0.5)
    job = job_of(
        teacher=TeacherConfig(num_steps=7), distill=DistillConfig(num_steps=50), baselines=("random", "all"),
        scorer=ScorerConfig(pool_sample=4000, frozen=frozen),
    )  # fmt: skip
    calls = {"teacher": 3.0, "scorer": 0.5, "distill": 2.0}
    everything = pipeline.STAGES
    assert stage_seconds(job, everything, calls, 10.0) == {
        "teacher": 21.0,
        "scorer": 2 * 100 * 0.5 + (4000 + 1000) / 10,
        "score": 10_000.0,
        "distill": 100.0,
        "baselines/random": 100.0,
        "baselines/all": 100.0,
    }
    assert stage_seconds(job, ("score",), {}, 10.0) == {"score": 10_000.0}
    assert stage_seconds(job, ("distill",), {"distill": 2.0}, None) == {"distill": 100.0}
    frozen.styles, frozen.reliable_negatives = "on", 0.0  # ten styles of each labelled image
    assert stage_seconds(job, ("scorer",), calls, 10.0)["scorer"] == 100 * 0.5 + (4000 + 10 * 1000) / 10
    job.config.scorer.mode, job.config.scorer.finetune.num_steps = "finetune", 30
    assert stage_seconds(job, ("scorer",), calls, 10.0)["scorer"] == pytest.approx(30 * 0.5 + 0.2 * 5000 / 10)


@pytest.fixture
def opened(tmp_path):
    """A function from a change of the quickstart to an opened job of it."""
    with contextlib.ExitStack() as stack:

        def opened(change, stages=pipeline.STAGES):
            config, workdir = for_slice(quickstart(change)), Workdir(epath.Path(tmp_path / "run"))
            return stack.enter_context(pipeline.opened(config, workdir, stages, dry=True))[0]

        yield opened


@pytest.fixture
def unoptimized():
    """Compile as fast as can be: nothing is run."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def eight_cpus():
    """Virtual devices in the place of a slice of two hosts."""
    devices = jax.devices()
    mesh = make_mesh(devices), make_mesh(devices[:4])
    return Topology("toy:2x4", DEVICE, 8, hosts=2, unit="chip", mesh=mesh[0], host_mesh=mesh[1])


def small(config):
    config.baselines = ("random",)
    config.distill.batch_size = 64
    config.run.inference_batch_size = 62  # rounded up to split over a host's four


def test_a_job_is_described_by_its_own_programs(opened, unoptimized, capsys):
    lines = describe_slice(opened(small), eight_cpus(), pipeline.STAGES)
    assert lines[0] == (
        "topology toy:2x4: 8 chips in 2 hosts, 1 TFLOP/s in bfloat16, 100 GB/s and 1 GiB each, as published; compiled "
        "for them, run nowhere"
    )
    scoring, heads, distill, times = lines[1:]
    assert scoring.startswith("  scoring, each host by itself, 64 images on 4 chips: a chip ")
    assert heads.startswith("  a step of the scorer's heads, 320 images on 8 chips: a chip ")
    assert distill.startswith("  a step of distilling lenet5 -> lenet5_half, 64 images on 8 chips: a chip ")
    assert "0 all-reduces" in scoring and ", 0 all-reduces" not in distill and "MiB (fits)" in distill
    assert all("bound by " in line and "images/s" in line for line in lines[1:-1])
    assert times.startswith("  so the stages take: scorer ") and times.count("baselines/random ") == 1
    assert capsys.readouterr().err.count("for toy:2x4, which may take minutes") == 3


def test_of_gpus_the_operations_are_counted(opened):
    job = opened(small)
    gpus = open_topology("h100:8")
    lines = describe_slice(job, gpus, ("scorer", "score", "distill"))
    assert "8 GPUs, 989 TFLOP/s" in lines[0] and "counted, no more" in lines[0]
    assert all("MiB" not in line and "bound by" not in line for line in lines)
    part = parts_of(job, gpus, ("distill",))["distill"]
    assert part.flops == programs_flops(job)
    told = describe_part(part, Cost(part.flops * 64 / 8), gpus)
    assert f", {989e12 * 8 / part.flops:,.0f} images/s" in told


def programs_flops(job):
    """One pass of LeNet-5 and three of its half, two operations a multiply-add, worked out by hand."""

    def lenet(c1, c2, c3, f1):
        return 2 * (28**2 * 25 * c1 + 10**2 * 25 * c1 * c2 + 25 * c2 * c3 + c3 * f1 + f1 * 10)

    return lenet(6, 16, 120, 84) + 3 * lenet(3, 8, 60, 42)


def test_a_batch_that_does_not_split_is_refused(opened):
    job = opened(small)
    with pytest.raises(UserError, match=r"distill\.batch_size is 64, which does not split over 5 devices"):
        describe_slice(job, open_topology("h100:5"), ("distill",))


def test_a_fine_tuned_scorer_and_a_teacher_that_is_trained_here(opened, monkeypatch):
    monkeypatch.setattr("pujax.sharding.platform_of", lambda mesh: "any")  # of a CPU's forms some multiply by zeros

    def change(config):
        small(config)
        config.data.full = config.data.labelled
        config.teacher = TeacherConfig(model="lenet5", batch_size=16)
        config.scorer = ScorerConfig(mode="finetune", pool_sample=500)
        config.scorer.finetune.batch_size = 16

    parts = parts_of(opened(change), eight_cpus(), ("teacher", "scorer"))
    assert list(parts) == ["teacher", "score", "scorer"]
    for name, part in parts.items():
        program = part.program()
        assert program.batch_size == part.images
        flops = program.fn.lower(*program.arguments).cost_analysis()["flops"]  # of the batch, before it is split
        assert 0.9 < flops / (part.flops * part.images) < 1.3, name


def test_cached_logits_and_perturbed_weights_are_arguments(mesh):
    seen = Preprocessing(32, 1, (0.5,), (0.5,))
    teacher = abstract_network(
        "lenet5", num_classes=10, class_names=None, preprocessing=seen, dtype=np.dtype("float32")
    )
    config = quickstart(lambda config: None)
    config.distill = DistillConfig(model="lenet5", batch_size=16, cached_views=3, robust="paper", num_perturbations=4)
    program = programs.distillation(config, teacher, abstract_student(config.distill, teacher), mesh)
    frozen, _, _, rows = program.arguments
    assert rows["teacher_logits"].shape == (16, 3, 10) and frozen["class_weights"].shape == (5, 10)
    assert "teacher" not in frozen and rows["image"].sharding.shard_shape((16, 32, 32, 1))[0] == 16 // mesh.size
    assert [x.shape for x in jax.tree.leaves(programs.zeros(program))] == [
        x.shape for x in jax.tree.leaves(program.arguments)
    ]


def test_the_dry_run_names_what_is_here_and_what_is_planned_for(tmp_path):
    workdir = Workdir(epath.Path(tmp_path / "run"))
    told = plan.describe(quickstart(small), workdir, pipeline.STAGES, open_topology("a100:4"))
    assert told.startswith(f"here: {len(jax.devices())} x cpu") and "\ntopology a100:4: 4 GPUs" in told
    assert "on this machine, which for 1,000 images takes" in told and "ms a step" not in told


@COMPILER
@pytest.mark.slow
def test_the_compiler_for_tpus_tells_of_a_slice(opened):
    topology = open_topology("v5e:2x4")
    assert (topology.count, topology.hosts, topology.unit) == (8, 2, "chip") and topology.device == TPUS["v5e"]
    lines = describe_slice(opened(small), topology, ("score", "distill"))
    assert all("(fits)" in line and "bound by memory" in line for line in lines[1:3])
    assert ", 0 all-reduces" not in lines[2]
    cores = open_topology("v4:2x2x1")  # two a chip
    assert (cores.count, cores.hosts, cores.unit, cores.device.flops) == (8, 1, "core", 137.5e12)
    with pytest.raises(UserError, match=r"v5e:3x5: .* take a layout that this TPU has"):
        open_topology("v5e:3x5")


@COMPILER
@pytest.mark.slow
def test_a_program_that_is_too_large_for_a_chip_is_named(opened):
    def change(config):
        small(config)
        config.run.inference_batch_size = 2**24  # 17 GB of pixels

    lines = describe_slice(opened(change, ("score",)), open_topology("v5e:1x1"), ("score",))
    assert re.fullmatch(
        r"  scoring: does not fit: .*memory.* \([\d.]+G\) exceeds available HBM \(15\.\d*G\).*", lines[1]
    )
    assert len(lines) == 2
