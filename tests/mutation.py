"""Mutation testing: break the code in each small way that mutmut knows, and list the breakages that no test notices.

``python tests/mutation.py [module ...] [-- pytest options]`` works on copies in build/mutation; docs/mutation.md reads the
result. mutmut writes the mutants. They run here, each in a fork of one process that has collected the tests, because to
start pytest afresh for each of some thousands would take hours.
"""

from __future__ import annotations

import ast
import difflib
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
WORK = ROOT / "build" / "mutation"
TESTS = {name: f"tests/test_{name}.py" for name in ("schedules", "diffusion", "gaussian", "losses", "likelihood")}
TESTS["_bins"] = TESTS["gaussian"]  # whose decoder it is
OPTIONS = ["-p", "mutation", "-p", "no:cacheprovider", "-s", "--tb=native", "--hypothesis-profile=mutation"]
OPTIONS += ["-k", "not jax and not jit"]  # which compile for seconds


def main(arguments: list[str]) -> None:
    end = arguments.index("--") if "--" in arguments else len(arguments)
    for module in arguments[:end] or TESTS:
        copy = prepare(module)
        env = os.environ | {"PYTHONPATH": f"{copy}:{copy / 'tests'}", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "pytest", *OPTIONS, *arguments[end + 1 :], TESTS[module]]
        subprocess.run(command, cwd=copy, env=env, check=True)
        killers = json.loads((copy / "killers.json").read_text())
        survivors = [mutant for mutant, test in killers.items() if test is None]
        share = 1 - len(survivors) / len(killers)
        report = f"{module}: {len(killers) - len(survivors)} of {len(killers)} killed, {share:.1%}\n"
        print(report, end="")
        (WORK / f"{module}.txt").write_text("\n".join([report, *differences(copy, survivors)]))


# Writing the mutants.


def prepare(module: str) -> Path:
    """A copy of what the tests need, in which the module carries all its mutants and the environment picks one."""
    copy = WORK / module
    killed = {code: test for code, test in verdicts(copy).items() if test}
    shutil.rmtree(copy, ignore_errors=True)
    for folder in ("tinyddpm", "tests", "docs"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    settings = '[tool.mutmut]\nsource_paths = ["tinyddpm"]\n'
    (copy / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text() + settings)
    os.chdir(copy)  # where mutmut looks for its settings
    from mutmut.mutation.file_mutation import mutate_file_contents

    source = copy / "tinyddpm" / f"{module}.py"
    mutated = mutate_file_contents(str(source), undecorated(source.read_text()))
    source.write_text(mutated.code)
    names = {f"tinyddpm.{module}.{name}": None for name in mutated.mutant_names}
    (copy / "killers.json").write_text(json.dumps(names))
    killers = {name: killed.get(code) for name, code in texts(copy, names).items()}
    (copy / "killers.json").write_text(json.dumps(killers, indent=0))
    return copy


def verdicts(copy: Path) -> dict[str, str | None]:
    """What an earlier run found, by the mutant's text: what was killed then need not run again."""
    if not ((copy / "killers.json").exists() and (copy / "tinyddpm" / f"{copy.name}.py").exists()):
        return {}
    killers = json.loads((copy / "killers.json").read_text())
    return {text: killers[name] for name, text in texts(copy, killers).items()}


def texts(copy: Path, names: Iterable[str]) -> dict[str, str]:
    """Each function's arguments and body, by its name in full."""
    tree = ast.parse((copy / "tinyddpm" / f"{copy.name}.py").read_text())
    functions = {f.name: f for f in ast.walk(tree) if isinstance(f, ast.FunctionDef)}
    return {
        name: f"{ast.unparse(f.args)}\n{ast.unparse(ast.Module(f.body, []))}"
        for name in names
        if (f := functions[name.rpartition(".")[2]])
    }


def undecorated(source: str) -> str:
    """The same, with properties made by a call after the method: mutmut passes by what is decorated."""
    lines = source.splitlines()
    classes = [c for c in ast.parse(source).body if isinstance(c, ast.ClassDef)]
    plain = [c for c in classes if "NamedTuple" not in map(ast.unparse, c.bases)]  # whose every name would be a field
    for f in reversed([f for c in plain for f in c.body if isinstance(f, ast.FunctionDef)]):
        kinds = [ast.unparse(decorator) for decorator in f.decorator_list]
        if kinds in (["property"], ["cached_property"]):
            lines.insert(f.end_lineno or 0, f"    {f.name} = {kinds[0]}({f.name})")
            del lines[f.decorator_list[0].lineno - 1]
    return "\n".join(lines) + "\n"


def differences(copy: Path, mutants: list[str]) -> list[str]:
    """What each of the mutants changes."""
    originals = {mutant: mutant.rpartition("_")[0] + "_orig" for mutant in mutants}
    text = texts(copy, [*mutants, *originals.values()])
    found = []
    for mutant, original in originals.items():
        lines = difflib.ndiff(text[original].splitlines(), text[mutant].splitlines())
        found.append("\n".join([mutant, *(line for line in lines if line[:2] in ("- ", "+ ")), ""]))
    return found


# Running them: a plugin of pytest's.

_failed: list[str] = []


def pytest_runtest_logreport(report: Any) -> None:
    if report.failed:
        _failed.append(report.nodeid)


def pytest_runtestloop(session: Any) -> bool:
    """Instead of the tests, the tests on each mutant until one fails; `killers.json` says which."""
    import scipy.special  # noqa: F401  # what takes long to import, and forks well
    import torch  # noqa: F401
    from mutmut.workers.isolation import run_in_fork_with_result

    seconds, callers = run_in_fork_with_result(profile, session.items)
    by_time = sorted(session.items, key=lambda item: ("jax" in item.nodeid, seconds[item.nodeid]))  # JAX: slow to start
    killers: dict[str, str | None] = json.loads(Path("killers.json").read_text())
    for mutant in (name for name, test in killers.items() if test is None):
        items = [item for item in by_time if item.nodeid in callers[mutant.rpartition("__mutmut_")[0]]]
        try:
            killers[mutant] = run_in_fork_with_result(first_failure, mutant, items, 60 + 10 * sum(seconds.values()))
        except ChildProcessError:
            killers[mutant] = "crash or time limit"
        Path("killers.json").write_text(json.dumps(killers, indent=0))
    return True


def profile(items: list[Any]) -> tuple[dict[str, float], dict[str, set[str]]]:
    """The time that each test takes, and the tests that enter each function."""
    from mutmut.mutation.trampoline import set_mutant_under_test
    from mutmut.state import state

    set_mutant_under_test("stats")
    seconds: dict[str, float] = {}
    callers: dict[str, set[str]] = defaultdict(set)
    for item, following in zip(items, [*items[1:], None], strict=True):
        state()._stats.clear()
        start = time.perf_counter()
        item.ihook.pytest_runtest_protocol(item=item, nextitem=following)
        seconds[item.nodeid] = time.perf_counter() - start
        for function in state()._stats:
            callers[function].add(item.nodeid)
    if _failed:
        pytest.exit(f"fails on the code as it is: {_failed}")
    return seconds, callers


def first_failure(mutant: str, items: list[Any], limit: float) -> str | None:
    """The first test that fails on this mutant."""
    from mutmut.mutation.trampoline import set_mutant_under_test

    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    resource.setrlimit(resource.RLIMIT_CPU, (int(limit), int(limit) + 1))
    set_mutant_under_test(mutant)
    for item, following in zip(items, [*items[1:], None][: len(items)], strict=True):
        item.ihook.pytest_runtest_protocol(item=item, nextitem=following)
        if _failed:
            return _failed[0]
    return None


if __name__ == "__main__":
    main(sys.argv[1:])
