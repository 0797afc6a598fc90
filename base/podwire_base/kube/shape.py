"""The shape of an object as a converter reads it: which fields are maps, lists and texts. Pure.

It tells whose fault it is that an object cannot be converted: where the object has its shape, the converter has a bug.
A field that is absent or null fits. ANY fits everything: the converter checks the value and names the problem.
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
    """The object is malformed; the text names the field, the expected type and the value."""


def require(value: Any, shape: Shape, where: str = "") -> None:
    """Raises Misshapen at the first field that has another shape. Items of a list may not be null."""
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
    """The problem of the object; "" if there is none."""
    try:
        require(value, shape)
    except Misshapen as err:
        return str(err)
    return ""


def _kind(shape: Shape) -> type:
    return type(shape) if isinstance(shape, dict | list) else shape
