"""The messages that a user of pujax can meet, read from its source, so that the page that explains them cannot rot.

A message's pattern has `…` where a value stands. By the rule of the house a message says after a semicolon what to do.
One that does not is explained on the page, and a test asks for it.
"""

import ast
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).parent.parent.parent / "pujax"
# What ends a command with a message.
_ENDS = {"UserError", "FloatingPointError", "RuntimeError", "HostLost", "Preempted", "in_one_line"}
GAP = "…"

# Section of the page -> the modules whose messages it lists; a folder stands for all in it, the longest name counts.
THEMES = {
    "options": ("command", "launch", "command_line", "config", "pipeline", "models", "topology"),
    "workdir": ("artifacts", "lock", "checkpoint", "score_table", "data.manifest", "data.chosen", "status"),
    "images": ("data", "api", "inference"),
    "weights": ("weights", "networks", "stages.teacher", "importers.state_dict", "importers.naming",
                "importers.network", "importers.pickles"),
    "import": ("import_torch", "importers"),
    "mining": ("pu", "selection", "stages.scorer", "stages.baselines"),
    "training": ("train", "student", "sharding", "preemption"),
    "hosts": ("hosts",),
    "export": ("stages.export", "export_model", "exporters", "parity"),
    "networks": ("loaded", "evaluate", "evaluation", "predict"),
    "reports": ("report_runs",),
}  # fmt: skip


@dataclass(frozen=True)
class Message:
    """One way in which a command ends."""

    pattern: str
    module: str  # below pujax

    @property
    def says_what_to_do(self) -> bool:
        """Whether a remedy follows what is wrong."""
        return "; " in self.pattern


@functools.cache
def messages() -> list[Message]:
    """Return every message that can end a command, in the order of the source; those of values alone are left out."""
    found = {}
    for module, tree in _modules():
        for pattern in patterns(tree, _ENDS):
            if re.search(r"\w{2}", pattern):
                found[Message(pattern, module)] = None
    return list(found)


def patterns(tree: ast.Module, called: set[str]) -> Iterator[str]:
    """Yield what the first argument may be, in every call of functions of these names."""
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef):
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in called and node.args:
                for pattern in _expand(node.args[0], tree, function):
                    yield re.sub(rf"{GAP}(\W?{GAP})*", GAP, " ".join(pattern.split()))


def theme_of(module: str) -> str:
    """Return the section that lists a module's messages."""
    own = [(len(prefix), theme) for theme, prefixes in THEMES.items() for prefix in prefixes
           if module == prefix or module.startswith(f"{prefix}.")]  # fmt: skip
    assert own, f"{module} has messages and is in no theme: add it to docs/_ext/messages.py"
    return max(own)[1]


def explained(page: str) -> list[str]:
    """Return the patterns that a page explains: those that stand as code, in bold, at the head of a list's item."""
    found = re.findall(r"^- \*\*(`+)(.+?)\1\*\*", page, re.MULTILINE | re.DOTALL)
    return [" ".join(text.split()) for _, text in found]


def covered(explanations: list[str], patterns: list[str]) -> dict[str, list[str]]:
    """Return explanation -> the patterns that it is for.

    That is the one of the same words; where there is none, all that begin and go on as it does, a gap being any text.
    """
    found = {}
    for text in explanations:
        gaps = re.compile(".*".join(map(re.escape, text.split(GAP))), re.DOTALL)
        found[text] = [text] if text in patterns else [pattern for pattern in patterns if gaps.fullmatch(pattern)]
    return found


def texts() -> set[str]:
    """Return the patterns of all texts of the package, for what is no error: warnings, and lines of the report."""
    kinds = (ast.Constant, ast.JoinedStr, ast.BinOp)
    nodes = [(node, tree) for _, tree in _modules() for node in ast.walk(tree) if isinstance(node, kinds)]
    return {pattern for node, tree in nodes for pattern in _expand(node, tree, None)}


def markdown(theme: str, page: str) -> str:
    """Return the list of a theme's messages that the page does not explain one by one."""
    found = messages()
    known = covered(explained(page), [message.pattern for message in found])
    done = {pattern for patterns in known.values() for pattern in patterns}
    left = [own for own in found if theme_of(own.module) == theme and own.pattern not in done]
    return "\n".join(
        ["These say themselves what to do:", "", *sorted({f"- {_code(message.pattern)}" for message in left})]
    )


def _code(text: str) -> str:
    return f"`` {text} ``" if "`" in text else f"`{text}`"


@functools.cache
def _modules() -> list[tuple[str, ast.Module]]:
    paths = {path.relative_to(PACKAGE).with_suffix("").as_posix(): path for path in PACKAGE.rglob("*.py")}
    names = {name: name.replace("/", ".").removesuffix(".__init__") for name in sorted(paths)}
    return [(name, ast.parse(paths[own].read_text())) for own, name in names.items()]


def _expand(node: ast.AST | None, tree: ast.Module, function: ast.FunctionDef | None, depth: int = 3) -> list[str]:
    """Return the texts that an expression may be; values are gaps.

    A name stands for what the function sets it to, and a call of a function of the same module for what that returns;
    so far into them as `depth` says.
    """
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) else [GAP]
    if isinstance(node, ast.JoinedStr):
        return ["".join(part.value if isinstance(part, ast.Constant) else GAP for part in node.values)]
    parts: list[tuple[ast.AST | None, ast.FunctionDef | None]] = []
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = (_expand(side, tree, function, depth) for side in (node.left, node.right))
        return [a + b for a in left for b in right]
    if isinstance(node, ast.BoolOp):
        parts = [(value, function) for value in node.values]
    elif isinstance(node, ast.IfExp):
        parts = [(node.body, function), (node.orelse, function)]
    elif function and isinstance(node, ast.Name):
        parts = [(value, function) for name, value in _assigned(function) if name == node.id]
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        called = [own for own in tree.body if isinstance(own, ast.FunctionDef) and own.name == node.func.id]
        parts = [(step.value, own) for own in called for step in ast.walk(own) if isinstance(step, ast.Return)]
    if not parts or not depth:
        return [GAP]
    return [text for part, within in parts for text in _expand(part, tree, within, depth - 1)]


def _assigned(function: ast.FunctionDef) -> Iterator[tuple[str, ast.AST]]:
    """Yield (name, value) of what a function assigns."""
    for step in ast.walk(function):
        if isinstance(step, ast.Assign):
            yield from ((ast.unparse(target), step.value) for target in step.targets)
        elif isinstance(step, ast.NamedExpr):
            yield ast.unparse(step.target), step.value
