"""Values out of JSON and TOML files, held against the types they should have."""

from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

LARGEST = 1e300
"""Beyond it, means and deviations overflow."""


def misfit(value: Any, hint: Any, name: str) -> str | None:
    """What about `value`, called `name`, is not as the type `hint` says, in a few words; None if nothing.

    Knows `Any`, plain types, `Literal`, unions and `dict[str, …]`. A float may be whole, and is one to reckon with.
    """
    kind, inner = get_origin(hint), get_args(hint)
    if kind is dict and isinstance(value, dict):
        misfits = (misfit(each, inner[1], f"{name}.{key}") for key, each in value.items())
        return next((found for found in misfits if found), None)
    if kind in (Union, UnionType):
        misfits = (misfit(value, each, name) for each in inner)
        found = [each for each in misfits if each]
        return None if len(found) < len(inner) else found[0]
    if kind is Literal:
        return None if value in inner else f"{name} is {value!r:.40}, none of {', '.join(map(repr, inner))}"
    return None if hint is Any or _is_a(value, hint) else f"{name} is {value!r:.40}, not {_named(hint)}"


def _is_a(value: Any, hint: Any) -> bool:
    if hint is float:
        return (_is_a(value, int) or isinstance(value, float)) and -LARGEST < value < LARGEST
    return isinstance(value, get_origin(hint) or hint) and not (hint is int and isinstance(value, bool))


def _named(hint: Any) -> str:
    return {str: "a text", int: "a whole number", float: "a number"}.get(hint, "a table")
