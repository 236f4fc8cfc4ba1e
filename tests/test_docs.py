"""The documentation keeps its word: links lead somewhere, options and commands exist, code runs, lists are complete."""

import ast
import dataclasses
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from pujax import command
from pujax.command_line import Parser
from pujax.config import Config, flatten, require_known_field
from pujax.data.sources.spec import parse_source
from pujax.errors import UserError
from pujax.models import CLASSIFIERS
from pujax.pipeline import STAGES

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "docs" / "_ext"))

import config_reference  # noqa: E402
import messages  # noqa: E402
import pujax_site  # noqa: E402

NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"
NAMES = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    *sorted(f"docs/{path.name}" for path in ROOT.glob("docs/*.md")),
]
TEXTS = {name: (ROOT / name).read_text() for name in NAMES}
TEXTS["docs/tutorial.ipynb"] = pujax_site.notebook(json.loads(NOTEBOOK.read_text()))
EVERY_PAGE = pytest.mark.parametrize("name", TEXTS)
BLOCK = re.compile(r"(?:<!-- (?P<mark>[^\n]*?) -->\n)?^```(?P<kind>[\w{}-]*)[^\n]*\n(?P<code>.*?)^```$", re.M | re.S)


@dataclasses.dataclass(frozen=True)
class Block:
    """A block of code: how it is marked, what it is, and its lines."""

    mark: str
    kind: str
    code: str


def blocks(name, *kinds):
    found = [Block(match["mark"] or "", match["kind"], match["code"]) for match in BLOCK.finditer(TEXTS[name])]
    return [block for block in found if block.kind in kinds]


def prose(name):
    """The text of a page without its code."""
    return re.sub(r"(`+)[^`]+?\1", "", BLOCK.sub("", TEXTS[name]))


# --- links ----------------------------------------------------------------------------------------------------


def anchors(name):
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", BLOCK.sub("", TEXTS[name]), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@EVERY_PAGE
def test_links_lead_somewhere(name):
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(name)):
        address = urlsplit(target)
        if address.scheme:
            if address.scheme != "https" or "." not in address.netloc:
                wrong.append(target)
            continue
        path = (ROOT / name).parent / address.path if address.path else ROOT / name
        page = path.resolve().relative_to(ROOT.resolve()).as_posix() if path.exists() else None
        if not path.is_file() or (address.fragment and address.fragment not in anchors(page)):
            wrong.append(target)
    assert not wrong


def test_every_page_is_linked_from_the_first():
    linked = set(re.findall(r"\]\(([\w.]+)\)", TEXTS["docs/index.md"]))
    assert {name.removeprefix("docs/") for name in TEXTS if name.startswith("docs/")} - linked == {"index.md"}


# --- options and commands --------------------------------------------------------------------------------------


@EVERY_PAGE
def test_options_exist(name):
    given = re.findall(r"--config\.([a-z_.0-9]*[a-z_0-9])", TEXTS[name])
    groups = "|".join(field.name for field in dataclasses.fields(Config))
    spoken_of = re.findall(rf"`((?:{groups})\.[a-z_.]*[a-z_])(?:=[^`]*)?`", TEXTS[name])
    for option in {*given, *spoken_of} - {"data"}:  # `--config.data...` and the like
        if not option.endswith((".py", ".safetensors", ".parquet")):
            require_known_field(option)


@EVERY_PAGE
def test_sources_given_as_text_are_understood(name):
    for text in re.findall(r"--config\.data\.(?:labelled|pool|test|full)=([^\s`]+)", TEXTS[name]):
        text = text.strip("'")
        kind = "" if re.search(r"[.:]", text) else "folder:"  # a folder is looked into to tell its kind
        if text != "PATH":
            assert parse_source(kind + text).kind, text


def commands(name):
    """Every command of a page, in blocks of shell and in lines, as lists of words."""
    spans = re.findall(r"(?<!`)`([^`]+)`(?!`)", BLOCK.sub("", TEXTS[name]))
    found = [words for block in blocks(name, "sh") for words in lines(block.code)]
    return found + [shlex.split(text) for text in spans if text.startswith(STARTS)]


def lines(code):
    """The commands of a block of shell, as lists of words."""
    split = (shlex.split(line, comments=True) for line in code.replace("\\\n", " ").splitlines())
    return [words for words in split if words]


STARTS = ("pujax ", "python ", "make ", "pip ", "launch/", "source ", ".venv/bin/python ")


@EVERY_PAGE
def test_commands_can_be_given(name):
    for program, *words in commands(name):
        check_command(program, words)


def check_command(program, words):
    """Fail unless there is such a command, with such a subcommand and such options."""
    if program == "make":
        assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), re.M), words
    elif program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert set(re.findall(r"\[(\w+)\]", words[-1])) <= extras.keys(), words
    elif program == "source":
        assert words == [".venv/bin/activate"]
    elif program == "pujax":
        assert words[0] in command.COMMANDS or words == ["--help"], words
        check_module(command.COMMANDS.get(words[0], ("pujax.command",))[0], words[1:])
    elif program.startswith("launch/"):
        assert (ROOT / program).exists(), program
        at = words.index("--config") if words else 0
        assert all(f"# {word.split('=')[0]}" in (ROOT / program).read_text() for word in words[:at]), words
        check_module("pujax.launch", words[at:])
    elif words[0].endswith(".py"):
        assert (ROOT / words[0]).is_file() and (ROOT / words[1]).is_file(), words
    else:
        assert program in ("python", ".venv/bin/python") and words[0] == "-m", words
        check_module(words[1], words[2:])


def check_module(module, arguments):
    """Fail unless a command has such arguments; without any it is only spoken of."""
    loaded = importlib.import_module(module)
    if module == "pytest" or not arguments:
        return
    if module == "pujax.launch":
        options = [word.split("=")[0] for word in arguments if word.startswith("--") and "--config." not in word]
        known = {"--config", "--workdir", "--stages", "--dry_run", "--topology", "--host_timeout", "--help"}
        assert set(options) <= known, arguments
        recipe = arguments[arguments.index("--config") + 1]
        assert (ROOT / recipe).is_file(), recipe
        for stages in (word.removeprefix("--stages=") for word in arguments if word.startswith("--stages=")):
            assert set(stages.split(",")) <= set(STAGES), stages
    elif hasattr(loaded, "make_parser"):
        loaded.make_parser().parse_args([word for word in arguments if word != "--help"])
    else:  # a benchmark
        options = [word for word in arguments if word.startswith("--")]
        assert options and all(f'"{option}"' in Path(loaded.__file__).read_text() for option in options), arguments


def test_a_wrong_command_is_found():
    with pytest.raises(AssertionError):
        check_command("pujax", ["evalaute", "runs/a"])
    with pytest.raises(UserError, match="--corruption"):
        check_command("pujax", ["evaluate", "runs/a", "--corruption"])
    with pytest.raises(AssertionError):
        check_command("launch/gpu_box.sh", ["--wrokers=2", "--config", "configs/quickstart.py"])
    with pytest.raises(AssertionError):
        check_module("pujax.launch", ["--config", "configs/quickstart.py", "--dryrun"])
    with pytest.raises(AssertionError):
        check_module("pujax.launch", ["--config", "configs/no_such_recipe.py"])
    with pytest.raises(UserError, match="--outt"):
        check_module("pujax.report_runs", ["runs/a", "--outt", "b.html"])
    with pytest.raises(AssertionError):
        check_module("benchmarks.ablation", ["--tables", "quickstart"])
    assert isinstance(importlib.import_module("pujax.import_torch").make_parser(), Parser)


AFTER = "after the quickstart"  # marks commands that are run on a finished job


# --- code -----------------------------------------------------------------------------------------------------


@EVERY_PAGE
def test_code_says_what_it_needs_or_is_run(name):
    for block in blocks(name, "sh", "python"):
        assert block.mark in ("", "slow", AFTER) or re.fullmatch(r"needs: .{5,}", block.mark), block
    for block in blocks(name, "", "text"):
        assert not re.search(rf"^ *({'|'.join(STARTS)})", block.code, re.M), f"a command in a block of text: {block}"
    assert not re.search(rf"^ {{4,}}({'|'.join(STARTS)})", BLOCK.sub("", TEXTS[name]), re.M)


def to_run(kind, mark):
    """Pages with code that is marked so, and the code; a notebook's is run by itself."""
    found = {name: [own.code for own in blocks(name, kind) if own.mark == mark] for name in NAMES}
    return [pytest.param(code, id=name) for name, code in found.items() if code]


@pytest.mark.parametrize("code", to_run("python", ""))
def test_python_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in code:
        exec(block, names)


@pytest.fixture
def checkout(tmp_path):
    """A folder that looks like the repository, with this Python as `python`: results go there."""
    for own in ("benchmarks", "configs", "pujax", "tests", "pyproject.toml"):
        (tmp_path / own).symlink_to(ROOT / own)
    return tmp_path


def environment(checkout):
    from conftest import CACHE

    own = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(checkout), "XLA_FLAGS": ""}
    return os.environ | own | {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(CACHE)}


@pytest.mark.slow
@pytest.mark.parametrize("code", to_run("sh", "slow"))
def test_commands_run(code, checkout):
    for block in code:
        command = ["bash", "-euo", "pipefail", "-c", block]
        done = subprocess.run(command, cwd=checkout, env=environment(checkout), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("code", to_run("sh", AFTER))
def test_commands_after_the_quickstart(code, finished, tmp_path, monkeypatch):
    left_out = shutil.ignore_patterns("checkpoints", "tensorboard")
    shutil.copytree(finished, tmp_path / "runs" / "quickstart", ignore=left_out)  # a smaller job
    monkeypatch.chdir(tmp_path)
    for words in lines("\n".join(code)):
        monkeypatch.setattr(sys, "argv", words)
        command.main()  # in this process: importing takes longer than all of them


def test_shell_without_a_mark_would_be_run_by_nothing():
    assert not to_run("sh", "") and not to_run("python", "slow") and not to_run("python", AFTER)


def outputs(notebook):
    return [cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code"]


@pytest.mark.slow
def test_the_notebook_runs_and_shows_what_it_says(checkout):
    out = checkout / "out.ipynb"
    command = [sys.executable, str(ROOT / "tools" / "run_notebook.py"), str(NOTEBOOK), "--out", str(out)]
    done = subprocess.run(command, cwd=checkout, env=environment(checkout), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shown, now = outputs(json.loads(NOTEBOOK.read_text())), outputs(json.loads(out.read_text()))
    kinds = [[sorted(output.get("data", output)) for output in cell] for cell in shown]
    assert kinds == [[sorted(output.get("data", output)) for output in cell] for cell in now]

    def percentages(cells):
        text = "".join(line for cell in cells for output in cell for line in output.get("text", ()))
        return np.array([float(number) for number in re.findall(r"([\d.]+) %", text)])

    assert len(percentages(shown)) >= 5
    np.testing.assert_allclose(percentages(now), percentages(shown), atol=4)
    check_summary(json.loads((checkout / "runs/tutorial/summary.json").read_text()))


def check_summary(summary):
    """Fail unless the page that explains the summary has all its keys."""
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", TEXTS["docs/report.md"], re.M))
    told = {block: set(re.findall(r"`(\w+)`", text)) | {"seconds"} for block, text in rows.items()}
    for block, content in summary.items():
        if block == "export":
            keys = {key for own in content.values() for key in own}
            known = set(re.findall(r"`(\w+)`", TEXTS["docs/export.md"])) | told["export"]
        else:
            keys = {key for own in content.values() for key in own} if block == "baselines" else set(content)
            known = told[block] | (told["student"] if block == "baselines" else set())
        assert keys <= known, (block, keys - known)


def test_the_pictures_in_the_notebook_are_small():
    assert NOTEBOOK.stat().st_size < 150_000


# --- lists that are made from the source -----------------------------------------------------------------------


def test_every_option_is_listed_once_and_explained():
    options = [option for group in config_reference.groups() for option in group.options]
    names = [name for option in options for name in option.names]
    assert sorted(names) == sorted(name for name, _ in flatten(Config()))
    assert [option.names for option in options if len(option.text) < 8] == []
    page = config_reference.markdown()
    for option in options:
        assert f"```{{options}} {' '.join(option.names)}\n" in page
    defaults = dict(flatten(Config()))
    for option in options:
        for name in option.names:
            value = ",".join(map(str, defaults[name])) if isinstance(defaults[name], tuple) else str(defaults[name])
            assert option.default == (value or "empty")


def test_comments_are_read_from_above_and_from_behind():
    source = (
        "@dataclass(slots=True)\nclass A:\n"
        "    # Two lines,\n    # above.\n    a: int = 1  # and behind\n"
        "    b: str = option(\n        '#',\n    )  # fmt: skip\n"
        "class B:\n    c: int = 2  # no dataclass\n"
    )
    assert config_reference.field_comments(source) == {"A": {"a": "Two lines, above. and behind", "b": ""}}


def test_limits_and_conditions_are_told():
    told = {name: option for group in config_reference.groups() for option in group.options for name in option.names}
    assert told["data.holdout"].values == "above 0 and below 1"
    assert told["select.sharpness"].values == "at least 0; only where `rule` is `sample`"
    assert told["distill.robust"].values == "of `none`, `paper`, `worst_case`"
    assert told["data.mean"].kind == "numbers, as a,b,c" and told["data.mean"].default == "0.5"
    assert told["distill.momentum"] == told["teacher.momentum"]


def test_every_network_is_listed():
    listed = re.findall(r"`(\w+)`", config_reference.networks())
    assert sorted(listed) == sorted(CLASSIFIERS)


# --- messages --------------------------------------------------------------------------------------------------


FOUND = messages.messages()
TROUBLE = TEXTS["docs/troubleshooting.md"]


def test_messages_are_found_wherever_they_are_made():
    patterns = {message.pattern for message in FOUND}
    assert len(FOUND) > 200
    assert "data.… is not set; give --config.data.…=PATH" in patterns
    assert "…: … is of images of …x… pixels; set data.image_size to …" in patterns  # a function returns it
    assert "no space left on the disk of …; make room, and give the same command again" in patterns
    assert any(pattern.startswith("of … pool images looked at") for pattern in patterns)
    assert "scorer: the loss is not finite at step …; lower scorer.frozen.learning_rate" in patterns
    raised = sum(path.read_text().count("raise UserError(") for path in messages.PACKAGE.rglob("*.py"))
    user_errors = [node for path in messages.PACKAGE.rglob("*.py") for node in ast.walk(ast.parse(path.read_text()))
                   if isinstance(node, ast.Raise) and "UserError(" in ast.unparse(node)]  # fmt: skip
    assert raised == len(user_errors)  # none is raised in another way, which would not be found


def test_every_message_says_what_to_do_or_is_explained():
    known = messages.covered(messages.explained(TROUBLE), [message.pattern for message in FOUND])
    done = {pattern for patterns in known.values() for pattern in patterns}
    assert [message for message in FOUND if not (message.says_what_to_do or message.pattern in done)] == []


def test_every_explanation_is_of_something_that_is_said():
    patterns = [message.pattern for message in FOUND]
    left = [text for text, found in messages.covered(messages.explained(TROUBLE), patterns).items() if not found]
    assert [text for text, found in messages.covered(left, list(messages.texts())).items() if not found] == []


def test_every_message_is_on_the_page():
    generated = re.findall(r"<!-- generated: messages (\w+) -->", TROUBLE)
    assert sorted(generated) == sorted(messages.THEMES)
    listed = [line for theme in generated for line in messages.markdown(theme, TROUBLE).splitlines()[2:]]
    known = messages.covered(messages.explained(TROUBLE), [message.pattern for message in FOUND])
    done = {pattern for patterns in known.values() for pattern in patterns}
    assert {line[2:].strip("` ") for line in listed} == {message.pattern for message in FOUND} - done
    assert len(done) > 80


def test_an_explanation_is_for_its_own_message_before_others():
    patterns = ["… is …", "… is …; lower it", "a is b"]
    assert messages.covered(["… is …", "… is …; …", "c is …"], patterns) == {
        "… is …": ["… is …"],
        "… is …; …": ["… is …; lower it"],
        "c is …": [],
    }


def test_the_findings_of_a_report_are_all_explained():
    tree = ast.parse((messages.PACKAGE / "report" / "findings.py").read_text())
    titles = set(messages.patterns(tree, {"Finding"}))
    assert len(titles) >= 12
    rows = re.findall(r"^\| ([^|`]+?) \|", TEXTS["docs/report.md"], re.M)
    told = messages.covered([row for row in rows if row not in ("it says", "block")], sorted(titles))
    assert {title for found in told.values() for title in found} == titles
    assert all(told.values())


# --- the site -------------------------------------------------------------------------------------------------


def test_what_the_site_shows_instead():
    class App:
        class env:
            doc2path = staticmethod(lambda name: f"{name}.md")
            note_dependency = staticmethod(lambda name: None)

    def filled(text):
        source = [text]
        pujax_site.fill(App, "page", source)
        return source[0]

    assert filled("a\n<!-- site:\nb\n-->\nc") == "a\nb\n\nc"
    assert filled("a\n<!-- site instead:\nb\n-->\nc") == "b\n"
    assert filled("a <!-- needs: b --> c") == "a <!-- needs: b --> c"
    assert "`there is no config file …`" not in filled(
        "<!-- generated: messages options -->\n- **`there is no config …`**"
    )
    assert "`there is no config file …`" in filled("<!-- generated: messages options -->")
