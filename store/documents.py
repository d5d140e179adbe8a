"""Documents that people and other programs write: YAML and JSON, read within bounds.

YAML is that of version 1.2 (its core schema): `1e-5` is a number, `no`, `on` and dates are text.
Whoever wrote a document may want to harm whoever reads it, so nothing here takes more time or
memory than an honest document of the bounds below, and what is refused is told with its line.
"""

import io
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.representer import SafeRepresenter
from ruamel.yaml.resolver import VersionedResolver

from vqbank.store.errors import VqbankError
from vqbank.store.ordinary import open_ordinary

MOST_YAML_BYTES = 2**20
MOST_YAML_NODES = 10_000
"""The most keys and values of a document: half a second of ruamel.yaml's reader in Python, which
alone is safe from deep nesting.  The card of a head has some hundred."""
MOST_JSON_BYTES = 2**26
"""The longest JSON document that is read; a hundred splits of 39,000 videos take 25 MB."""
MOST_JSON_LISTS = 2**20
MOST_JSON_VALUES = 6 * 2**20
"""Lists and objects take some 72 bytes of memory each, however short they are in the file, and
numbers 40."""
MOST_DEPTH = 64
MOST_DIGITS = 300
"""The most digits of a number: no float has more before its point."""
_TAG = "tag:yaml.org,2002:"


def file_bytes(path: Path, error: type[VqbankError], *, most_bytes: int) -> bytes:
    """The content of a file, which is not read further than it may be long.

    Raises:
        VqbankError: of the class `error`, if it cannot be read or is longer.
    """
    try:
        with open_ordinary(path) as file:
            length = os.fstat(file.fileno()).st_size
            content = b"" if length > most_bytes else file.read(most_bytes + 1)
    except OSError as problem:
        raise error(f"{path} cannot be read: {problem.strerror}") from problem
    except ValueError as problem:  # a zero byte in the name
        raise error(f"{str(path)!r} cannot be read: {problem}") from problem
    if max(length, len(content)) > most_bytes:
        raise error(f"{path} has more than {most_bytes:,} bytes, the most of such a file")
    return content


def file_text(
    path: Path, error: type[VqbankError], *, most_bytes: int = MOST_YAML_BYTES, what: str = "text"
) -> str:
    """A file of UTF-8 text.

    Raises:
        VqbankError: of the class `error`, as `file_bytes`, or if it is no such text.
    """
    content = file_bytes(path, error, most_bytes=most_bytes)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        line = content.count(b"\n", 0, problem.start) + 1
        raise error(f"{path}:{line}: not {what}: {problem}") from problem


def yaml_value(text: str, where: object, error: type[VqbankError]) -> Any:
    """What a YAML document says: mappings of text to values, lists, text, numbers, true, null.

    Args:
        text: of the document.
        where: it stands, for messages.
        error: the class of errors.

    Raises:
        VqbankError: of this class, with the line of what is no YAML, an alias (which may make
            gigabytes of a few lines), a key that stands twice, a tag, or beyond the bounds.
    """
    try:
        node = _reader().compose(text)
        return None if node is None else _value(node)
    except _Refused as problem:
        raise error(f"{where}:{problem}") from None
    except MarkedYAMLError as problem:
        mark = problem.problem_mark or problem.context_mark
        line = f":{mark.line + 1}" if mark is not None else ""
        told = " ".join(str(problem.problem or problem.context or problem).split())
        raise error(f"{where}{line}: not YAML: {told}") from problem
    except YAMLError as problem:  # a character that has no place in YAML, such as a zero byte
        raise error(f"{where}: not YAML: {' '.join(str(problem).split())}") from problem


def yaml_text(value: Any) -> str:
    """A value of mappings, lists, text, numbers, true and null as a YAML document."""
    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style = False
    writer.width = 2**16  # folding a text changes nothing for readers, and nothing is gained
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # seen as None
    writer.Representer = _Plain
    text = io.StringIO()
    writer.dump(value, text)
    return text.getvalue()


def json_value(text: str | bytes, where: object, error: type[VqbankError]) -> Any:
    """What a JSON document says.

    Args:
        text: of the document; bytes are UTF-8.
        where: it stands, for messages.
        error: the class of errors.

    Raises:
        VqbankError: of this class, with the line of what is no JSON, or if it is beyond the bounds.
    """
    content = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    lists = content.count(b"[") + content.count(b"{")
    if (
        len(content) > MOST_JSON_BYTES
        or lists > MOST_JSON_LISTS
        or content.count(b",") > MOST_JSON_VALUES
    ):
        raise error(
            f"{where} is larger than any that vqbank writes: {len(content):,} bytes, {lists:,} "
            "lists and objects"
        )
    try:
        return json.loads(content.decode())
    except json.JSONDecodeError as problem:
        raise error(f"{where}:{problem.lineno}: not JSON: {problem.msg}") from problem
    except UnicodeDecodeError as problem:
        raise error(f"{where}: not JSON: {problem}") from problem
    except ValueError as problem:  # Python converts no number of more than 4,300 digits
        raise error(f"{where}: a number has too many digits: {problem}") from problem
    except RecursionError as problem:
        raise error(f"{where}: lists or objects are nested too deep") from problem


class _Refused(Exception):
    """Line and reason."""


class _Composer(Composer):
    """Nodes, as many as may be; no alias is followed."""

    def __init__(self, loader: Any = None) -> None:
        super().__init__(loader)
        self.warn_double_anchors = False  # nothing refers to them
        self.nodes = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.parser.check_event(AliasEvent):
            _refuse(self.parser.peek_event(), "aliases (*) are not read; write the value out")
        self.nodes += 1
        if self.nodes > MOST_YAML_NODES:
            _refuse(self.parser.peek_event(), f"more than {MOST_YAML_NODES:,} keys and values")
        if self.depth >= MOST_DEPTH:
            _refuse(self.parser.peek_event(), f"nested more than {MOST_DEPTH} deep")
        return super().compose_node(parent, index)


class _Resolver(VersionedResolver):
    """Of YAML 1.2, also where a document says `%YAML 1.1`."""

    @property
    def processing_version(self) -> Any:
        return (1, 2)


class _Plain(SafeRepresenter):
    """A value that stands in two places is written twice: aliases are not read."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, data: Any) -> Any:
        # Single quotes would fold the line ends that Unicode has beside those of ASCII.
        style = None if data.isprintable() else '"'
        return self.represent_scalar(f"{_TAG}str", data, style=style)


_Plain.add_representer(str, _Plain.represent_str)


def _reader() -> YAML:
    reader = YAML(typ="safe", pure=True)
    reader.Composer = _Composer
    reader.Resolver = _Resolver
    return reader


def _refuse(place: Any, why: str) -> NoReturn:
    raise _Refused(f"{place.start_mark.line + 1}: {why}")


def _value(node: Node) -> Any:
    kind = str(node.tag).removeprefix(_TAG)
    if isinstance(node, MappingNode) and kind == "map":
        return dict(_items(node))
    if isinstance(node, SequenceNode) and kind == "seq":
        return [_value(item) for item in node.value]
    if isinstance(node, ScalarNode):
        match kind:
            case "null" if node.value.lower() in ("", "~", "null"):
                return None
            case "bool" if node.value.lower() in ("true", "false"):
                return node.value.lower() == "true"
            case "int" | "float":
                return _number(node, kind)
            # What YAML 1.1 took for dates, and for words of merging mappings, is text.
            case "str" | "timestamp" | "merge" | "value" | "yaml":
                return str(node.value)
    _refuse(node, f"{node.tag} is no value of YAML's core: text, numbers, true, null")


def _items(node: MappingNode) -> Iterable[tuple[Any, Any]]:
    seen = set()
    for key_node, value_node in node.value:
        if not isinstance(key_node, ScalarNode):
            _refuse(key_node, "a key is text or a number, not a list or mapping")
        key = _value(key_node)
        if key in seen:
            _refuse(key_node, f"key {key!r} stands there twice")
        seen.add(key)
        yield key, _value(value_node)


def _number(node: ScalarNode, kind: str) -> int | float:
    text = str(node.value).replace("_", "").lower()
    if len(text) > MOST_DIGITS:
        _refuse(node, f"a number of more than {MOST_DIGITS} digits")
    unsigned = text.lstrip("+-")
    try:
        if kind == "int":
            return int(text, {"0x": 16, "0o": 8, "0b": 2}.get(unsigned[:2], 10))
        return float(text.replace(".inf", "inf").replace(".nan", "nan"))
    except ValueError:
        _refuse(node, f"{text!r} is no number")
