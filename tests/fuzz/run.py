"""``python -m fuzz.run TARGET [FOLDER] [libFuzzer's options]``, in tests/: fuzz one target with atheris, guided by coverage.

Inputs that reach new code are written to FOLDER, if it is given; fuzz/corpus/TARGET has those of earlier runs.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["tinyddpm", "PIL"]):
    from fuzz.targets import TARGETS, inputs


def main() -> None:
    """Fuzz from the seeds and the kept inputs."""
    name, *options = sys.argv[1:]
    target = TARGETS[name]
    with tempfile.TemporaryDirectory() as corpus:
        for k, seed in enumerate(inputs(name)):
            Path(corpus, f"seed-{k}").write_bytes(seed)
        atheris.Setup([sys.argv[0], *options, corpus], lambda data: target(data) and None)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
