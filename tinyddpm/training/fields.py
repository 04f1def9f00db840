"""Fields of a dataclass of settings: each holds a check, its help text and the group that help lists it in.

`check` and `documented` read that metadata, and so does the command line, which makes a flag of each field.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import Field, field, fields
from functools import partial
from typing import Any, TypeVar

from tinyddpm._arrays.check import as_bool, as_instance, as_int, as_list, as_real, lookup, one_of
from tinyddpm.training.data.values import as_ends

C = TypeVar("C", bound=type)


def integer(default: int | None, group: str, text: str, low: int = 1, high: int = 2**31) -> Any:
    """An int in low..high."""
    bounds = f"at least {low}" if high >= 2**31 else f"in {low}..{high}"
    return _field(default, group, text, partial(as_int, low=low, high=high), int, "N", bounds=bounds)


def real(default: float, group: str, text: str, low: float, high: float, *, open_ends: bool = False) -> Any:
    """A real number from `low` to `high`, or strictly between them."""
    bounds = f"above {low:g}" if open_ends else f"in [{low:g}, {high:g}]"
    return _field(default, group, text, partial(as_real, low=low, high=high, open_ends=open_ends), float, "X", bounds=bounds)


def choice(default: str, group: str, text: str, names: Iterable[str]) -> Any:
    """One of these names."""
    known = {name: name for name in names}
    return _field(default, group, text, partial(lookup, known=known), str, "NAME", choices=tuple(known))


def switch(group: str, text: str) -> Any:
    """A bool, False by default."""
    return _field(False, group, text, as_bool, None, None)


def sizes(group: str, text: str, *, empty: bool = False) -> Any:
    """Positive ints, None by default."""
    return _field(None, group, text, partial(_as_sizes, empty=empty), _ints, "N,N,...")


def sides(group: str, text: str) -> Any:
    """An image's height and width, or one int for both; None by default."""
    return _field(None, group, text, _as_sides, _ints, "N,N")


def ends(group: str, text: str) -> Any:
    """Two numbers, the first of them less; None by default."""
    return _field(None, group, text, as_ends, float, ("LOW", "HIGH"))


def path(default: str, group: str, text: str, metavar: str) -> Any:
    """A path or another text that is not empty."""
    return _field(default, group, text, _as_path, str, metavar)


def name(group: str, text: str) -> Any:
    """A text, None by default."""
    return _field(None, group, text, partial(as_instance, kind=str, called="name"), str, "NAME")


def names(group: str, text: str, known: tuple[str, ...]) -> Any:
    """Some of these names, None by default."""
    return _field(None, group, text, partial(_as_names, known=known), _words, "NAME,...", choices=known)


def check(settings: Any) -> None:
    """Check each field of a frozen dataclass and keep its value as Python's own type; None passes if it is the default."""
    for each in fields(settings):
        value = getattr(settings, each.name)
        if value is not None or each.default is not None:
            object.__setattr__(settings, each.name, each.metadata["check"](each.name, value))


def help_of(setting: Field[Any], sized: frozenset[str] = frozenset()) -> str:
    """The help text of a field for the command line, with what it takes and its default, which a preset has for those `sized`."""
    about = setting.metadata
    some = "some" if about["parse"] is _words else "one"
    takes = [f"{some} of {', '.join(about['choices'])}"] if about["choices"] else [about["bounds"]] if about["bounds"] else []
    if setting.default is not None and about["parse"]:
        takes.append("default by the preset" if setting.name in sized else f"default {setting.default}")
    return f"{about['help']} ({'; '.join(takes)})" if takes else about["help"]


def spelled(value: Any) -> str:
    """A value as a flag takes it."""
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


def documented(cls: C) -> C:
    """The dataclass with its fields as the Parameters of its docstring, which has a section Raises."""
    lines = ["Parameters", "    ----------"]
    for each in fields(cls):
        text, bounds = each.metadata["help"], each.metadata["bounds"]
        kind = f"{{{', '.join(each.metadata['choices'])}}}" if each.metadata["choices"] else each.type
        default = "" if each.default is None else f" Default: {each.default!r}."
        lines += [f"    {each.name} : {kind}{bounds and ', ' + bounds}", f"        {text[0].upper()}{text[1:]}.{default}"]
    cls.__doc__ = (cls.__doc__ or "").replace("Raises", "\n".join([*lines, "", "    Raises"]), 1)
    return cls


def _field(
    default: Any,
    group: str,
    text: str,
    check: Callable[[str, Any], Any],
    parse: Callable[[str], Any] | None,
    metavar: str | tuple[str, ...] | None,
    bounds: str = "",
    choices: tuple[str, ...] = (),
) -> Any:
    """A dataclass field; `parse` reads a flag's text and is None for a flag without one."""
    about = {"check": check, "parse": parse, "metavar": metavar, "bounds": bounds, "choices": choices}
    return field(default=default, metadata={"group": group, "help": text, **about})


def _as_path(name: str, value: Any) -> str:
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str) or not text:
        raise TypeError(f"{name} must be a path, got {'an empty one' if text == '' else type(value).__name__}")
    return text


def _as_sizes(name: str, value: Any, empty: bool) -> tuple[int, ...]:
    return tuple(as_int(name, size, 1, 2**16) for size in as_list(name, value, empty=empty))


def _as_sides(name: str, value: Any) -> tuple[int, int]:
    given = tuple(value) if isinstance(value, tuple | list) else (value,)
    if len(given) not in (1, 2):
        raise ValueError(f"{name} must be a side or height and width, got {value!r}")
    height, width = (as_int(name, side, 1, 2**14) for side in (given * 2)[:2])
    return height, width


def _as_names(name: str, value: Any, known: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(one_of(name, word, known) for word in as_list(name, value, empty=True))


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _ints(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split(","))
