"""YAML of every file and override of hnfed, read by one strict rule, and written to be read so.

A value that stands without quotes is what YAML 1.2 says: ``true``, ``false``, ``null``, a decimal
number, or else text (``no``, ``on``, ``2026-01-31``). Where older readers see another number than a
person does, nobody guesses: ``010`` (their 8), ``1:30`` (their 90), ``1_000``, ``0x1F``, ``+5`` are
refused, and in quotes they are text.
"""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Hashable
from typing import Any, ClassVar

import yaml

from core.errors import UserError
from core.text import shown

MOST_NODES = 100_000  # with every alias followed; the largest file that ships has 600
MOST_SIGNS = 1_000_000
_TAG = "tag:yaml.org,2002:"
_DOUBTFUL = "!doubtful"  # a plain scalar that is refused
_FIRST = list("-+.0123456789~nNtTfF<")
_RULES: tuple[tuple[str, str], ...] = (
    (_TAG + "null", r"~|null|Null|NULL|"),
    (_TAG + "bool", r"true|True|TRUE|false|False|FALSE"),
    (_TAG + "int", r"0|-?[1-9][0-9]*"),
    (
        _TAG + "float",
        r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]*(?:[eE][-+]?[0-9]+)?|[eE][-+]?[0-9]+)"
        r"|-?\.[0-9]+(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
    ),
    (
        _DOUBTFUL,
        r"[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?(?:[eE][-+]?[0-9_]+)?|[-+]\.[0-9_]+(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?0[xX][0-9a-fA-F_]+|[-+]?0[oO][0-7_]+|[-+]?0[bB][01_]+"
        r"|[-+]?[0-9][0-9_]*(?::[0-9]+)+(?:\.[0-9_]*)?",
    ),
    (_TAG + "merge", r"<<"),
)
# What YAML 1.1 takes for something else than text: written in quotes, for other programs' sake.
_OTHERS = r"(?:y|n|yes|no|on|off)|[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}.*|="


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Plain scalars by `_RULES`; no tag but those of plain values."""

    yaml_implicit_resolvers: ClassVar[dict[Any, Any]] = {}
    yaml_constructors: ClassVar[dict[Any, Any]] = {}
    composed = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        """A node, or the alias of one."""
        self.composed += 1
        if self.composed > MOST_NODES:
            raise _too_many()
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """A mapping whose keys stand once each."""
        seen = set()
        for key_node, _ in node.value:
            key = (key_node.tag, str(key_node.value))
            if key in seen:
                problem = f"the key {shown(key_node.value, 60)} stands twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key)
        return dict(super().construct_mapping(node, deep=deep))


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """Texts in quotes where `_Loader`, or a reader of YAML 1.1, would see no text."""

    yaml_implicit_resolvers: ClassVar[dict[Any, Any]] = {}

    def ignore_aliases(self, data: Any) -> bool:
        """Every value is written out."""
        return True


def parse(text: str) -> Any:
    """The values of a YAML document: mappings, lists, texts, numbers, booleans, None.

    Raises:
        UserError: a scalar that is refused (field: its line), a longer text than any plan is, or
            too many values, aliases followed.
        yaml.YAMLError: no YAML, a key twice, or another tag than those of plain values.
    """
    return copy.deepcopy(_parsed(text))


@functools.lru_cache(32)
def _parsed(text: str) -> Any:
    """The same texts are read again for each cell of a study."""
    if len(text) > MOST_SIGNS:
        raise UserError("YAML", f"{len(text)} characters", f"write at most {MOST_SIGNS}")
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _size(node, {}) > MOST_NODES:
            raise _too_many()
        return loader.construct_document(node)
    finally:
        loader.dispose()


def dump(values: Any) -> str:
    """Plain values as YAML that `parse` reads as the same values."""
    return str(yaml.dump(values, Dumper=_Dumper, allow_unicode=True, sort_keys=False))


def _too_many() -> UserError:
    remedy = f"write at most {MOST_NODES} values, what aliases stand for counted"
    return UserError("YAML", "too many values", remedy)


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Values below a node, each alias counted as what it stands for; a circle counts as endless."""
    if id(node) not in known:
        known[id(node)] = MOST_NODES + 1
        parts: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            parts = node.value
        known[id(node)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(node)]


def _doubtful(loader: _Loader, node: yaml.ScalarNode) -> Any:
    text = shown(node.value, 60)
    raise UserError(
        f"line {node.start_mark.line + 1}",
        text,
        f"write it as '{text}', in quotes, where it is a name; else as a plain decimal number",
        problem=f"{text} is read as different numbers by different programs",
    )


def _number(loader: _Loader, node: yaml.ScalarNode) -> int | float:
    """A number by the rule of plain scalars, also under a tag of its own."""
    whole, broken = dict(_RULES)[_TAG + "int"], dict(_RULES)[_TAG + "float"]
    text = str(node.value)
    if node.tag == _TAG + "int" and re.fullmatch(whole, text) and len(text) <= 40:
        return int(text)
    if node.tag == _TAG + "float" and re.fullmatch(f"{whole}|{broken}", text):
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return _doubtful(loader, node)  # type: ignore[no-any-return]


def _bool(loader: _Loader, node: yaml.ScalarNode) -> bool:
    if str(node.value).lower() not in ("true", "false"):
        raise UserError(f"line {node.start_mark.line + 1}", node.value, "write true or false")
    return str(node.value).lower() == "true"


def _no_such_tag(loader: _Loader, node: yaml.Node) -> Any:
    problem = f"the tag {shown(node.tag, 60)} is not allowed"
    raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


for _tag, _pattern in _RULES:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_tag, re.compile(rf"(?:{_pattern})\Z"), ["", *_FIRST])


def _text(dumper: _Dumper, text: str) -> Any:
    """A text; with line breaks of other kinds than a plain one in quotes that escape them."""
    style = '"' if any(sign in text for sign in "\x85\u2028\u2029") else None
    return dumper.represent_scalar(_TAG + "str", text, style=style)


_Dumper.add_representer(str, _text)
_Dumper.add_implicit_resolver(
    "!other", re.compile(rf"(?:{_OTHERS})\Z", re.IGNORECASE), list("yYnNoO=0123456789")
)
_Loader.add_constructor(_TAG + "null", lambda loader, node: None)
_Loader.add_constructor(_TAG + "bool", _bool)
_Loader.add_constructor(_TAG + "int", _number)
_Loader.add_constructor(_TAG + "float", _number)
_Loader.add_constructor(_TAG + "str", yaml.SafeLoader.construct_yaml_str)
_Loader.add_constructor(_TAG + "seq", yaml.SafeLoader.construct_yaml_seq)
_Loader.add_constructor(_TAG + "map", yaml.SafeLoader.construct_yaml_map)
_Loader.add_constructor(_DOUBTFUL, _doubtful)
_Loader.add_constructor(None, _no_such_tag)
