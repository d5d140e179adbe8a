"""Names to classes that are imported when they are first asked for."""

import ast
import importlib
import importlib.util
import inspect
from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib.metadata import entry_points
from pathlib import Path
from typing import Generic, TypeVar

from vqbank.store.errors import UnknownNameError, VqbankError, unknown_name

Kind = TypeVar("Kind")


class Registry(Mapping[str, type[Kind]], Generic[Kind]):
    """A table of names, open to other packages.

    Listing names and their lines of text imports none of the classes, nor the libraries that these
    need.  A package adds its own by an entry point: `name = "module:Class"` in the table
    `[project.entry-points."vqbank.heads"]`, or `vqbank.extractors`, of its `pyproject.toml`.
    """

    def __init__(self, noun: str, group: str, own: Mapping[str, str]) -> None:
        """Nothing is imported.

        Args:
            noun: what an entry is, for messages.
            group: of entry points, by which other packages add theirs.
            own: "module:Class" by name, in the order in which they are listed.
        """
        self._noun = noun
        self._group = group
        self._own = own

    def __getitem__(self, name: str) -> type[Kind]:
        """The class.

        Raises:
            UnknownNameError: if the table has no such name; says which it has.
            VqbankError: if another package's class is not where its entry point says.
        """
        module, attribute = self._place(name)
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if not _is_in(module, error.name):
                raise  # it is there, and needs something that is not
            raise self._misplaced(name, module, attribute) from error
        kind: type[Kind] | None = getattr(found, attribute, None)
        if kind is None:
            raise self._misplaced(name, module, attribute)
        return kind

    def __contains__(self, name: object) -> bool:
        return name in self._own or name in self._others

    def __iter__(self) -> Iterator[str]:
        yield from self._own
        yield from self._others

    def __len__(self) -> int:
        return len(self._own) + len(self._others)

    def text(self, name: str) -> str:
        """The first line of the class's docstring.

        Read from the file where the class should be, and imported only where that has it from
        another one.

        Raises:
            UnknownNameError: as for the class.
            VqbankError: if another package's class is not where its entry point says.
        """
        module, attribute = self._place(name)
        try:
            spec = importlib.util.find_spec(module)
        except ModuleNotFoundError as error:  # of a package that is not there
            raise self._misplaced(name, module, attribute) from error
        if spec is None or spec.origin is None:
            raise self._misplaced(name, module, attribute)
        tree = ast.parse(Path(spec.origin).read_bytes())
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and node.name == attribute:
                return (ast.get_docstring(node) or "").split("\n", 1)[0]
        return (inspect.getdoc(self[name]) or "").split("\n", 1)[0]

    def _place(self, name: str) -> tuple[str, str]:
        place = self._own.get(name) or self._others.get(name)
        if place is None:
            raise UnknownNameError(unknown_name(self._noun, name, self))
        module, _, attribute = place.partition(":")
        return module, attribute

    def _misplaced(self, name: str, module: str, attribute: str) -> VqbankError:
        return VqbankError(
            f"{self._noun} {name}: there is no class {attribute!r} in {module}, where an entry "
            f"point of {self._group} says that it is; mend or remove the package that says so"
        )

    @cached_property
    def _others(self) -> Mapping[str, str]:
        """Those of other packages; none of them replaces ours."""
        found = {entry.name: entry.value for entry in entry_points(group=self._group)}
        return {name: found[name] for name in sorted(found.keys() - self._own.keys())}


def _is_in(module: str, name: str | None) -> bool:
    """Whether `name` is the module, or a package that it would lie in."""
    return name is not None and f"{module}.".startswith(f"{name}.")
