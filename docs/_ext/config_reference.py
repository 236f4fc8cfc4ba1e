"""The options of `pujax.config` as Markdown: type, default, values, and the comment that stands beside each field.

Python forgets comments, so they are read from the source: those on the lines right above a field, and those behind it.
"""

import ast
import dataclasses
import inspect
import io
import re
import tokenize
import typing
from collections.abc import Iterator
from types import GenericAlias
from typing import Any

from pujax import config
from pujax.models import CLASSIFIERS

_KINDS = {bool: "True or False", int: "whole number", float: "number", str: "text"}
_LIMITS = {"above": "above", "at_least": "at least", "below": "below", "at_most": "at most"}


@dataclasses.dataclass(frozen=True)
class Option:
    """A field of one of the dataclasses, wherever in the tree that class stands."""

    names: tuple[str, ...]  # dotted, one for each place
    kind: str
    default: str
    values: str  # empty where every value of the kind will do
    text: str  # Markdown, from the comment


@dataclasses.dataclass(frozen=True)
class Group:
    """A dataclass: the places where it stands, and its own options."""

    name: str
    prefixes: tuple[str, ...]  # "data.pool."; ("",) of `Config` itself
    text: str
    options: tuple[Option, ...]
    bases: tuple[str, ...]  # names of the groups whose options hold here too


def groups() -> list[Group]:
    """Return every group of options in the order of the source, `Config` first."""
    places = list(_places(config.Config(), ""))
    comments = field_comments(inspect.getsource(config))
    found = []
    for name in sorted(comments, key="Config".__ne__):
        cls, own = getattr(config, name), comments[name]
        inside = [(prefix, other) for prefix, other in places if issubclass(other, cls)]
        bases = tuple(base.__name__ for base in cls.__mro__[1:] if dataclasses.is_dataclass(base))
        options = []
        for item in dataclasses.fields(cls):
            if item.name in own and not dataclasses.is_dataclass(_hint(cls, item)):
                here = [prefix for prefix, other in inside if _defines(other, item.name) is cls]
                options.append(_option(cls, item, here, own[item.name]))
        found.append(Group(name, tuple(prefix for prefix, _ in inside), _code(cls.__doc__), tuple(options), bases))
    return found


def _places(group: Any, prefix: str) -> Iterator[tuple[str, type]]:
    """Yield (prefix, class) of a dataclass and of all those in it."""
    yield prefix, type(group)
    for item in dataclasses.fields(group):
        value = getattr(group, item.name)
        if dataclasses.is_dataclass(value):
            yield from _places(value, f"{prefix}{item.name}.")


def _defines(cls: type, name: str) -> type:
    """Return the class that a field comes from; a subclass may give it another default."""
    return next(base for base in cls.__mro__ if name in vars(base).get("__annotations__", {}))


def _hint(cls: type, item: dataclasses.Field) -> Any:
    return typing.get_type_hints(cls)[item.name]


def field_comments(source: str) -> dict[str, dict[str, str]]:
    """Return class -> field -> comment, of all dataclasses of a module, in its order; empty where there is none."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {token.start[0]: token.string[1:].strip() for token in tokens if token.type == tokenize.COMMENT}
    comments = {line: text for line, text in comments.items() if not text.startswith("fmt:")}
    lines = source.splitlines()
    found: dict[str, dict[str, str]] = {}
    for cls in ast.parse(source).body:
        if not (isinstance(cls, ast.ClassDef) and any("dataclass" in ast.unparse(name) for name in cls.decorator_list)):
            continue
        found[cls.name] = {}
        for item in cls.body:
            if isinstance(item, ast.AnnAssign):
                first = item.lineno
                while lines[first - 2].lstrip().startswith("#"):
                    first -= 1
                parts = [comments[line] for line in range(first, item.end_lineno + 1) if line in comments]
                found[cls.name][item.target.id] = " ".join(parts)
    return found


def _option(cls: type, item: dataclasses.Field, prefixes: list[str], comment: str) -> Option:
    hint = _hint(cls, item)
    if isinstance(hint, GenericAlias):
        kind = "numbers, as a,b,c" if typing.get_args(hint)[0] is float else "names, as a,b,c"
    else:
        kind = _KINDS[hint]
    return Option(
        names=tuple(prefix + item.name for prefix in prefixes),
        kind=kind,
        default=_written(item.default),
        values=_values(item.metadata),
        text=_code(comment),
    )


def _written(value: Any) -> str:
    """Return a value as the command line takes it."""
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "empty"
    return "empty" if value == "" else str(value)


def _values(rules: Any) -> str:
    """Return what a field may be, and when it counts, from the rules beside it."""
    parts = [" and ".join(f"{word} {rules[rule]:g}" for rule, word in _LIMITS.items() if rule in rules)]
    if "choices" in rules:
        parts = [f"of {_list([choice for choice in rules['choices'] if choice])}"]
    for other, values in rules.get("used_if", {}).items():
        parts.append(f"only where `{other}` is {' or '.join(f'`{value}`' for value in values)}")
    return "; ".join(part for part in parts if part)


def _code(text: str) -> str:
    """Return a comment or docstring as Markdown: what stands in double quotes is a value."""
    text = "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
    return re.sub('"([^"]*)"', r"`\1`", text)


def markdown() -> str:
    """Return the body of the page: a section a group, an `options` directive an option."""
    found = groups()
    titles = {group.name: _title(group) for group in found}
    out = []
    for group in found:
        if not group.options:
            continue
        out += [f"({group.name.lower()})=", f"## {titles[group.name]}", "", group.text, ""]
        if group.bases:
            links = [f"[those of {titles[base]}](#{base.lower()})" for base in group.bases]
            out += [f"It also has {', and '.join(links)}.", ""]
        for option in group.options:
            out += [f"```{{options}} {' '.join(option.names)}", _told(option), "```", ""]
    return "\n".join(out)


def _title(group: Group) -> str:
    names = [f"`{prefix.rstrip('.')}`" for prefix in group.prefixes if prefix]
    return ", ".join(names) or "The job"


def _told(option: Option) -> str:
    """Return two lines: the comment, and what the option may be."""
    values = f"; {option.values}" if option.values else ""
    default = "empty by default" if option.default == "empty" else f"by default `{option.default}`"
    text = option.text[:1].upper() + option.text[1:]
    return (
        f"{text}{'' if text.endswith('.') else '.'}\n\n*{option.kind[0].upper()}{option.kind[1:]}*, {default}{values}."
    )


def networks() -> str:
    """Return the names of the networks that a teacher and a student may have, as Markdown."""
    scaled = [name for name, make in CLASSIFIERS.items() if "width_multiplier" in inspect.signature(make).parameters]
    other = [name for name in CLASSIFIERS if name not in scaled]
    return f"{_list(scaled)}.\n\nOf one width only: {_list(other)}."


def _list(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
