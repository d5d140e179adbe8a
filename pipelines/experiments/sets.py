"""Sets of features that an ablation tries, by name.

Nothing heavy is imported here, so that a name that is wrong is refused at once.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations

from vqbank.store.errors import RecipeError, UnknownNameError, unknown_name

ALL = "all"
WAYS = ("alone", "without", "pairs", "greedy")
"""Each feature alone, all but one, all pairs, and one after the other, the best first."""

Sets = Mapping[str, tuple[str, ...]]
"""Roles by the name of a set of features, in the order of the table."""


def check_ways(ways: Sequence[str]) -> None:
    """Refuse ways that there are not.

    Raises:
        UnknownNameError: naming those that there are.
    """
    for way in ways:
        if way not in WAYS:
            raise UnknownNameError(unknown_name("way to ablate", way, WAYS))


def sets_of(
    roles: Sequence[str], ways: Sequence[str], own: Sequence[Sequence[str]] = ()
) -> dict[str, tuple[str, ...]]:
    """Sets of features by name, the full one first, each once.

    Args:
        roles: of the table.
        ways: of WAYS; `greedy` has no sets before it is run.
        own: further sets.

    Raises:
        RecipeError: if a set names a role that there is not.
    """
    found: dict[str, tuple[str, ...]] = {ALL: tuple(roles)}
    if "alone" in ways:
        found |= {f"{role} alone": (role,) for role in roles}
    if "without" in ways and len(roles) > 1:
        found |= {f"without {role}": tuple(r for r in roles if r != role) for role in roles}
    if "pairs" in ways:
        found |= {" + ".join(pair): pair for pair in combinations(roles, 2)}
    for named in own:
        for role in named:
            if role not in roles:
                raise RecipeError(unknown_name("role of this run", role, roles))
        found[" + ".join(named)] = tuple(role for role in roles if role in named)
    first: dict[tuple[str, ...], str] = {}
    for name, one in found.items():
        first.setdefault(one, name)
    return {name: one for one, name in first.items()}
