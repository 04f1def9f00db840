"""Labels from a file that lists image files with their classes: CSV or JSON."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tinyddpm._io.files import read_bytes, shown
from tinyddpm.training.data.shards import Labels, is_image

__all__ = ["listed_labels"]

_MOST = 2**25  # bytes
_FILE = ("file_name", "filename", "file", "image", "path", "name", "id")
_CLASS = ("label", "class", "labels", "category", "target", "y")


def listed_labels(listing: str | os.PathLike[str], names: Sequence[str]) -> Labels:
    """The class of each image of these names, as a file lists them; names in it may leave out folders where one fits only.

    A CSV file has a row for each image, with its name and its class in the columns that its first row calls so, else in the first
    two. A JSON file holds {name: class}, a list of [name, class] or of {"file_name": ..., "label": ...}, or that under "labels".
    Classes are numbers if all of them are, else names, which are numbered in their order.
    """
    if not isinstance(listing, str | os.PathLike):
        raise TypeError(f"labels must be a CSV or JSON file for image files, got {type(listing).__name__}")
    file = Path(listing)
    try:
        text = read_bytes(file, _MOST).decode("utf-8-sig")
        rows = list(_of_json(json.loads(text)) if file.suffix.lower() == ".json" else _of_csv(text))
        return _numbered(_matched(rows, names))
    except FileNotFoundError:
        raise FileNotFoundError(f"labels: {shown(file)}: there is no such file") from None
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise ValueError(f"labels: {shown(file)}: {shown(getattr(error, 'strerror', None) or error)}") from None


def _of_csv(text: str) -> Iterator[tuple[str, Any]]:
    """Name and class in each row."""
    rows = [row for row in csv.reader(io.StringIO(text)) if row]
    head = [cell.strip().lower() for cell in rows[0]] if rows else []
    name = next((head.index(word) for word in _FILE if word in head), 0)
    label = next((head.index(word) for word in _CLASS if word in head), 1 if name == 0 else 0)
    for number, row in enumerate(rows, 1):
        if len(row) <= max(name, label):
            raise ValueError(f"row {number} must have a name and a class, got {','.join(row)!r}")
        if number > 1 or is_image(row[name]):
            yield row[name].strip(), row[label].strip()


def _of_json(value: Any) -> Iterator[tuple[str, Any]]:
    """Name and class of each entry."""
    if isinstance(value, dict) and isinstance(value.get("labels"), dict | list):
        value = value["labels"]
    for entry in value.items() if isinstance(value, dict) else value if isinstance(value, list) else [value]:
        if isinstance(entry, dict):
            entry = [next((entry[word] for word in words if word in entry), None) for words in (_FILE, _CLASS)]
        if not isinstance(entry, list | tuple) or len(entry) != 2 or not isinstance(entry[0], str):
            raise ValueError(f"must hold names and classes, got {json.dumps(entry)[:80]}")
        yield entry[0], entry[1]


def _matched(rows: Sequence[tuple[str, Any]], names: Sequence[str]) -> list[Any]:
    """The class of each name."""
    whole, last = dict[str, Any](), dict[str, Any]()
    for name, label in rows:
        key = os.path.normpath(name).replace(os.sep, "/")
        if whole.setdefault(key, label) != label:
            raise ValueError(f"{name} must have one class, got {whole[key]!r} and {label!r}")
        base = key.rpartition("/")[2]
        last[base] = label if last.get(base, label) == label else None
    found = []
    for name in names:
        label = whole.get(name, last.get(name.rpartition("/")[2]))
        if label is None:
            raise ValueError(f"must have a class for {name}, as for every image; it lists {len(rows)} names")
        found.append(label)
    return found


def _numbered(labels: Sequence[Any]) -> Labels:
    """The classes as numbers from 0."""
    for label in labels:
        if isinstance(label, bool) or not isinstance(label, int | str) or label == "":
            raise ValueError(f"a class must be an integer or a name, got {label!r}")
    texts = [str(label) for label in labels]
    if all(text.isascii() and text.isdecimal() and len(text) < 8 for text in texts):
        numbers = np.array([int(text) for text in texts], np.int64)
        return Labels(numbers, int(numbers.max()) + 1, ())
    names = sorted(set(texts))
    for name in names:
        if _is_real(name) and not name.isdecimal():
            raise ValueError(f"a class must be an integer or a name, got {name!r}")
    place = {name: k for k, name in enumerate(names)}
    return Labels(np.array([place[text] for text in texts], np.int64), len(names), tuple(names))


def _is_real(text: str) -> bool:
    return re.fullmatch(r"-?\d*\.?\d+([eE][-+]?\d+)?", text) is not None
