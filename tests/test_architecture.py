"""The rules of the house: imports run one way, no stage knows another, and each outer library has one door."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "pujax"
# Lower layers first; a module imports from its own layer or from below. Names are files or folders of the package.
# docs/architecture.md says what they are.
LAYERS = (
    {"errors"},
    {"config", "artifacts", "progress", "models", "kd_losses"},
    {"weights", "checkpoint", "score_table", "selection", "sharding", "optim", "metrics", "measures", "corruptions",
      "parity", "folding", "command_line", "roofline", "topology"},
    {"presence", "lock", "shard_sharing", "preemption", "hosts", "goodput", "profiling"},
    {"data"},
    {"networks", "train"},
    {"inference", "quantization", "importers", "exporters"},
    {"student", "pu", "near_duplicates", "teacher_check", "model_card", "report", "job", "loaded"},
    {"stages", "evaluation", "predictions"},
    {"pipeline"},
    {"plan", "slice_plan", "programs", "api"},
    {"launch", "evaluate", "predict", "export_model", "report_runs", "status", "import_torch"},
    {"command", "__main__"},
)  # fmt: skip


def modules():
    return {
        path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", "."): path for path in PACKAGE.rglob("*.py")
    }


def imported(path):
    """Every module that a file imports, wherever in it; `from pujax.a import b` counts as pujax.a and pujax.a.b."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports():
    known = modules()
    for name, path in known.items():
        for target in imported(path):
            target = target.removeprefix("pujax.") if target != "pujax" else "__init__"
            if target in known or f"{target}.__init__" in known:
                yield name, target


def layer(module):
    name = module.split(".")[0]
    found = [i for i, names in enumerate(LAYERS) if name in names or name == "__init__"]
    assert found, f"{module} is in no layer: add it to LAYERS"
    return found[0]


def test_imports_run_one_way():
    wrong = [f"{name} imports {target}" for name, target in own_imports() if layer(target) > layer(name)]
    assert not wrong


def test_the_layers_are_those_of_the_package_and_of_the_documentation():
    there = {module.split(".")[0] for module in modules()} - {"__init__"}
    assert sorted(name for names in LAYERS for name in names) == sorted(there)
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text()
    rows = page.partition("| layer |")[2].partition("\n\n")[0].splitlines()[2:]
    assert [set(re.findall(r"`(\w+)/?`", row.split("|")[1])) for row in rows] == list(reversed(LAYERS))


def test_no_stage_imports_another():
    assert not [pair for pair in own_imports() if all(module.startswith("stages.") for module in pair)]


def test_a_network_knows_no_importer():
    assert not [pair for pair in own_imports() if pair[0] == "networks" and pair[1].startswith("importers")]


def test_there_is_no_circle():
    graph = {name: set() for name in modules()}
    for name, target in own_imports():
        if target in graph and target != name:
            graph[name].add(target)
    done, open_ = set(), []

    def visit(name):
        assert name not in open_, " -> ".join([*open_[open_.index(name) :], name])
        if name in done:
            return
        open_.append(name)
        for target in sorted(graph[name]):
            visit(target)
        done.add(open_.pop())

    for name in graph:
        visit(name)


@pytest.mark.parametrize(
    ("library", "doors"),
    [
        ("grain", ("data.",)),
        ("orbax", ("checkpoint",)),
        ("tensorflow_datasets", ("data.sources.tfds",)),
        ("array_record", ("data.records",)),
        ("fsspec", ("data.storage", "artifacts")),
        ("pickle", ("data.decoders", "data.sources.plain_pickle", "importers.pickles")),
        ("absl", ("launch",)),
        ("safetensors", ("weights",)),
        ("jinja2", ("report.",)),
        ("markupsafe", ("report.",)),
        ("torch", ("importers.", "import_torch")),
        ("timm", ("importers.",)),
        ("torchvision", ("importers.",)),
        ("onnx", ("exporters.onnx",)),
        ("onnxruntime", ()),
        ("litert_converter", ("exporters.litert",)),
        ("ai_edge_litert", ("exporters.litert",)),
        ("ai_edge_quantizer", ("exporters.litert",)),
    ],
)
def test_each_outer_library_has_one_door(library, doors):
    users = [name for name, path in modules().items() if any(m.split(".")[0] == library for m in imported(path))]
    assert all(name.startswith(doors) if doors else False for name in users), users


def test_a_job_needs_no_torch():
    """What imports PyTorch or a phone's format does so inside a function, at the user's wish."""
    optional = {"torch", "timm", "torchvision", "onnx", "litert_converter", "ai_edge_litert", "ai_edge_quantizer"}
    for name, path in modules().items():
        tree = ast.parse(path.read_text())
        inside = {id(node) for fn in ast.walk(tree) if isinstance(fn, ast.FunctionDef) for node in ast.walk(fn)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom) and id(node) not in inside:
                found = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
                assert not optional & {target.split(".")[0] for target in found}, name


def test_every_module_is_imported():
    import importlib

    for name in modules():
        importlib.import_module(f"pujax.{name}".removesuffix(".__init__"))
