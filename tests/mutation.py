"""Mutation testing: break the code in each small way that mutmut knows, and list the breakages that no test notices.

``python tests/mutation.py [module ...] [-- pytest options]`` works on copies in build/mutation; docs/mutation.md explains the
result. A module is named by its path, e.g. ``gaussian`` or ``_numerics/bins``. mutmut writes the mutants. They run here, each in
a fork of one process that has collected the tests: to start pytest for each of some thousands would take hours.
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
from functools import reduce
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
WORK = ROOT / "build" / "mutation"
MODULES = {  # by the test module that is to notice their mutants
    "schedules": ("schedules", "_schedules/alpha_bar", "_schedules/beta"),
    "double": ("_numerics/double",),
    "diffusion": ("diffusion", "_process", "_numerics/tables", "_numerics/weights"),
    "gaussian": ("gaussian", "_numerics/bins", "_numerics/divergence", "_numerics/operands"),
    "losses": ("losses", "_losses/call", "_losses/times"),
    "likelihood": ("likelihood", "_likelihood/steps", "_likelihood/bound"),
    "calibration": ("calibration", "_calibration"),
}
TESTS = {module: [f"tests/test_{test}.py"] for test, modules in MODULES.items() for module in modules}
TESTS["likelihood"] += TESTS["calibration"]  # whose measurements are made there
SHARED = [f"tests/test_malformed.py::test_{name}" for name in ("on_the_host", "in_every_library[numpy]")]
SHARED += ["tests/test_verify.py::test_every_identity_holds[numpy-float64]"]
DECORATORS = ("property", "cached_property", "np.errstate(", "quietly", "names_unknown_options")
OPTIONS = ["-p", "mutation", "-p", "no:cacheprovider", "-s", "--tb=native", "--hypothesis-profile=mutation"]
OPTIONS += ["-k", "not jax and not jit"]  # which compile for seconds
OPTIONS += ["-W", "ignore:os.fork"]  # JAX warns, once it is imported


def main(arguments: list[str]) -> None:
    end = arguments.index("--") if "--" in arguments else len(arguments)
    for module in arguments[:end] or TESTS:
        copy = prepare(module)
        env = os.environ | {"PYTHONPATH": f"{copy}:{copy / 'tests'}", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "pytest", *OPTIONS, *arguments[end + 1 :], *TESTS[module], *SHARED]
        subprocess.run(command, cwd=copy, env=env, check=True)
        killers = json.loads((copy / "killers.json").read_text())
        survivors = [mutant for mutant, test in killers.items() if test is None]
        share = 1 - len(survivors) / len(killers)
        report = f"{module}: {len(killers) - len(survivors)} of {len(killers)} killed, {share:.1%}\n"
        print(report, end="")
        (WORK / f"{copy.name}.txt").write_text("\n".join([report, *differences(copy, survivors)]))


# Writing the mutants.


def prepare(module: str) -> Path:
    """A copy of what the tests need, in which the module carries all its mutants and the environment picks one."""
    copy = WORK / module.replace("/", ".")
    killed = {code: test for code, test in verdicts(copy).items() if test}
    shutil.rmtree(copy, ignore_errors=True)
    for folder in ("tinyddpm", "tests", "docs", "examples"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    settings = '[tool.mutmut]\nsource_paths = ["tinyddpm"]\n'
    (copy / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text() + settings)
    os.chdir(copy)  # where mutmut looks for its settings
    from mutmut.mutation.file_mutation import mutate_file_contents

    source = source_of(copy)
    mutated = mutate_file_contents(str(source), undecorated(source.read_text()))
    source.write_text(mutated.code)
    names = {f"tinyddpm.{copy.name}.{name}": None for name in mutated.mutant_names}
    (copy / "killers.json").write_text(json.dumps(names))
    killers = {name: killed.get(code) for name, code in texts(copy, names).items()}
    (copy / "killers.json").write_text(json.dumps(killers, indent=0))
    return copy


def source_of(copy: Path) -> Path:
    """The mutated module's file in a copy, which is named like the module."""
    return copy / "tinyddpm" / f"{copy.name.replace('.', '/')}.py"


def verdicts(copy: Path) -> dict[str, str | None]:
    """The results of an earlier run by the mutant's text; a mutant that was killed then is not run again."""
    if not ((copy / "killers.json").exists() and source_of(copy).exists()):
        return {}
    killers = json.loads((copy / "killers.json").read_text())
    return {text: killers[name] for name, text in texts(copy, killers).items()}


def texts(copy: Path, names: Iterable[str]) -> dict[str, str]:
    """Each function's arguments and body, by its name in full."""
    tree = ast.parse(source_of(copy).read_text())
    functions = {f.name: f for f in ast.walk(tree) if isinstance(f, ast.FunctionDef)}
    return {
        name: f"{ast.unparse(f.args)}\n{ast.unparse(ast.Module(f.body, []))}"
        for name in names
        if (f := functions[name.rpartition(".")[2]])
    }


def undecorated(source: str) -> str:
    """The same code, with decorators applied by a call after the function: mutmut skips what is decorated."""
    lines, tree = source.splitlines(), ast.parse(source)
    classes = [c for c in tree.body if isinstance(c, ast.ClassDef)]
    plain = [c for c in classes if "NamedTuple" not in map(ast.unparse, c.bases)]  # in a NamedTuple every name would be a field
    owners: list[ast.Module | ast.ClassDef] = [tree, *plain]
    functions = [f for owner in owners for f in owner.body if isinstance(f, ast.FunctionDef)]
    for f in sorted(functions, key=lambda f: f.lineno, reverse=True):
        kinds = [ast.unparse(decorator) for decorator in f.decorator_list]
        if kinds and all(kind.startswith(DECORATORS) for kind in kinds):
            wrapped = reduce(lambda inner, kind: f"{kind}({inner})", reversed(kinds), f.name)
            lines.insert(f.end_lineno or 0, f"{' ' * f.col_offset}{f.name} = {wrapped}")
            del lines[f.decorator_list[0].lineno - 1 : f.decorator_list[-1].end_lineno]
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
