"""Checks the shape of an object before a converter reads it: which fields must be maps, lists and texts. Pure.

If an object cannot be converted, the shape shows the cause: if the object has the right shape, the converter has a bug;
otherwise the object is malformed. An absent or null field has the right shape. ANY accepts every value; the converter
then checks the value itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final


class Anything:
    pass


ANY: Final = Anything()
Shape = Any  # a type; {field: Shape}; [Shape]; ANY
_NAMES: dict[Any, str] = {dict: "a map", list: "a list", str: "a text"}


class Misshapen(ValueError):
    """The object is malformed. The text names the field, the expected type and the value."""


def require(value: Any, shape: Shape, where: str = "") -> None:
    """Raise Misshapen for the first field that has another shape. Items of a list must not be null."""
    if shape is ANY or value is None:
        return
    wanted = type(shape) if isinstance(shape, dict | list) else shape
    if not isinstance(value, wanted):
        raise Misshapen(f"{where or 'the object'}: should be {_NAMES[wanted]}, is {value!r:.80}")
    if isinstance(shape, dict) and isinstance(value, Mapping):
        for name, inner in shape.items():
            require(value.get(name), inner, f"{where}.{name}" if where else name)
    elif isinstance(shape, list):
        for index, item in enumerate(value):
            if item is None and shape[0] is not ANY:
                raise Misshapen(f"{where}[{index}]: should be {_NAMES[_kind(shape[0])]}, is null")
            require(item, shape[0], f"{where}[{index}]")


def misshapen(value: Any, shape: Shape) -> str:
    """Returns the problem of the object; "" if there is none."""
    try:
        require(value, shape)
    except Misshapen as err:
        return str(err)
    return ""


def _kind(shape: Shape) -> type:
    return type(shape) if isinstance(shape, dict | list) else shape
