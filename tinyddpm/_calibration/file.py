"""A calibration's file: JSON, with tables as base64 of float64, which keeps every number exactly."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np

from tinyddpm._arrays import check
from tinyddpm._arrays.namespace import Table
from tinyddpm._calibration.measure import GROUPS
from tinyddpm._io import files
from tinyddpm._losses.call import Decoder
from tinyddpm.conversions import KINDS

_FORMAT = "tinyddpm calibration 1"
_LIMIT = 2**31  # bytes


def write(path: str | os.PathLike[str], plain: Mapping[str, Any], tables: Mapping[str, Table]) -> None:
    """Write the file, whole or not at all."""
    encoded = {
        name: {"shape": x.shape, "float64": base64.b64encode(x.astype("<f8").tobytes()).decode()} for name, x in tables.items()
    }
    files.write(path, json.dumps({"format": _FORMAT, **plain, "tables": encoded}, indent=1).encode())


def read(path: str | os.PathLike[str], plain: Sequence[str], tables: Sequence[str]) -> tuple[dict[str, Any], dict[str, Table]]:
    """The plain values and the tables; whatever is wrong with the file is a ValueError, LookupError or TypeError."""
    known = files.read_json(path, links=True, limit=_LIMIT)
    if known.get("format") != _FORMAT:
        raise ValueError(f"its format must be {_FORMAT!r}")
    found = {name: _table(known["tables"][name]) for name in tables}
    values = {name: known[name] for name in plain}
    _check(values, found)
    return values, found


def _table(encoded: Any) -> Table:
    values = np.frombuffer(base64.b64decode(encoded["float64"], validate=True), "<f8").astype(np.float64)
    table: Table = values.reshape([check.as_int("shape", n, 0, len(values)) for n in encoded["shape"]])
    return table


def _check(plain: Mapping[str, Any], tables: Mapping[str, Table]) -> None:
    """Raise unless the values are those of a calibration, and the tables' shapes fit."""
    groups = min(check.as_positive_int("rows", plain["rows"]), GROUPS)
    check.as_int("levels", plain["levels"], 2, 65536)
    check.one_of("decoder", plain["decoder"], get_args(Decoder))
    check.one_of("predicts", plain["predicts"], KINDS)
    check.as_instance("network", plain["network"], str)
    steps = check.as_int("the number of betas", len(tables["beta"]), 1, check.MOST_STEPS)
    for name, table in tables.items():
        shape = (groups,) if name == "group_prior" else (groups, steps) if name.startswith("group") else (steps,)
        if steps < 2 or table.shape[: table.ndim if name != "x0_mse" else 1] != shape:
            raise ValueError(f"{name} must have shape {shape}, got {table.shape}")
        counted = table[1:] if name == "x0_mse" else table if name == "group_prior" else table[..., 1:]
        if np.any(np.isnan(counted)) or (name in ("beta", "x0_mse", "last_scale", "group_mse") and np.any(counted < 0)):
            raise ValueError(f"{name} must hold numbers that are not negative")
