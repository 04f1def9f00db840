"""The command ``tinyddpm``: the table of commands, and the only code that prints results and errors.

Results go to standard output; progress and errors go to standard error. Exit codes: 0; 1 if ``verify`` finds a failure; 2 for
bad input, with one line that names it; 130 after an interrupt; 141 if the reader of the output has gone. Each command is a
module of `tinyddpm._commands` that is imported when the command is run. It has ``EXAMPLES``, ``arguments(parser)``, and
``run(args)``, which yields the lines to print.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import NoReturn

from tinyddpm import __version__, backends
from tinyddpm._arrays.check import is_out_of_memory, nearest
from tinyddpm._io.files import shown
from tinyddpm._io.progress import say

__all__ = ["COMMANDS", "main", "parser"]

COMMANDS = {
    "demo": "train on images of digits, draw new ones, score the model: a few minutes on two cores",
    "train": "train a U-Net on images",
    "sample": "draw samples from a trained run",
    "edit": "change pictures: fill in a part, go from one to another, redraw one",
    "evaluate": "score images under a trained run in bits per dimension, compare its samples with them",
    "calibrate": "find the best chain of any number of network calls for a trained run",
    "plot": "draw a figure: schedules, the forward process, a run's loss or its bound, ...",
    "verify": "measure the identities behind the library on this machine",
    "info": "show versions, backends and devices",
}
"""The name of each command and what it does."""

_SMALLER = {"train": "--batch-size, --channels or --image-size", "plot": "--limit", "calibrate": "--batch-size or --limit"}
_BAD_INPUT = (ValueError, TypeError, LookupError, OSError, backends.BackendUnavailable)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Parameters
    ----------
    argv : sequence of str, optional
        The words after ``tinyddpm``. Default: those of this process.

    Returns
    -------
    int
        The exit code.

    Examples
    --------
    >>> main(["info", "--quiet"])  # doctest: +ELLIPSIS
      numpy ...
    0
    """
    words = list(sys.argv[1:] if argv is None else argv)
    name = words[0] if words and words[0] in COMMANDS else None
    if argv is None:
        _open_closed_streams()
    try:
        if name is None:
            return _no_command(words)
        args = parser(name).parse_intermixed_args(words[1:])
        for line in import_module(f"tinyddpm._commands.{name}").run(args):
            try:
                print(_printable(line), flush=True)
            except BrokenPipeError:  # the reader, such as head, has gone
                return 128 + 13
            except OSError as error:
                _complain(name, f"standard output can't be written: {error.strerror}")
                return 2
    except SystemExit as end:  # after --help or --version, or with a command's own code
        return int(end.code or 0)
    except KeyboardInterrupt as interrupt:
        _complain(name, str(interrupt) or "interrupted")
        return 128 + getattr(interrupt, "signum", 2)
    except ModuleNotFoundError as error:
        library = str(error.name).partition(".")[0]
        _complain(name, f"{library} is not installed; pip install 'tinyddpm[train,plots]' brings it")
        return 2
    except (*_BAD_INPUT, MemoryError, RuntimeError) as error:
        if is_out_of_memory(error) or is_out_of_memory(error.__cause__):
            said = "" if isinstance(error, RuntimeError) else str(error)  # Torch's is long
            _complain(name, f"{said or 'out of memory'}; smaller {_SMALLER.get(str(name), '--batch-size')} take less of it")
        elif isinstance(error, _BAD_INPUT):
            _complain(name, _told(error))
        elif type(error).__module__.startswith(("torch._dynamo.", "torch._inductor.")):  # torch.compile, without a compiler, say
            _complain(name, f"compile: {str(error).partition(chr(10))[0]}; it works without --compile")
        else:
            raise
        return 2
    finally:
        _drop_what_nobody_reads()
    return 0


def parser(name: str) -> argparse.ArgumentParser:
    """Make the parser of a command's arguments.

    Parameters
    ----------
    name : str
        A key of `COMMANDS`.

    Returns
    -------
    argparse.ArgumentParser
        A parser that raises ValueError for a wrong argument.
    """
    command = import_module(f"tinyddpm._commands.{name}")
    made = _Parser(f"tinyddpm {name}", COMMANDS[name], command.EXAMPLES)
    command.arguments(made)
    return made


class _Parser(argparse.ArgumentParser):
    """A parser that raises ValueError, which `main` prints as one line."""

    def __init__(self, prog: str, about: str, examples: Sequence[str]) -> None:
        super().__init__(
            prog,
            description=f"{about[0].upper()}{about[1:]}.",
            epilog="\n  ".join(["examples:", *(f"{prog} {example}".strip() for example in examples)]),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        start, _, words = message.partition("unrecognized arguments: ")
        if words and not start:
            flag, known = words.split()[0], [flag for flag in self._option_string_actions if flag.startswith("--")]
            message = f"{flag} is not an option of {self.prog}{nearest(flag, known)}; known are {', '.join(known)}"
        raise ValueError(message)


def _no_command(words: list[str]) -> int:
    """Show the usage, or what ``--help`` and ``--version`` ask for; refuse an unknown command."""
    if words and not words[0].startswith("-"):
        raise LookupError(f"command must be one of {', '.join(COMMANDS)}, got {words[0]!r}{nearest(words[0], COMMANDS)}")
    top = _Parser("tinyddpm", "diffusion mathematics you can trust", ("demo", "train --help"))
    top.usage = "tinyddpm COMMAND ..."
    top.add_argument("--version", action="version", version=f"tinyddpm {__version__}")
    commands = top.add_argument_group("commands")
    for name, about in COMMANDS.items():
        commands.add_argument(name, nargs="?", help=about)
    top.parse_args(words)
    say(top.format_usage().strip())
    _complain(None, f"command must be one of {', '.join(COMMANDS)}")
    return 2


def _complain(name: str | None, message: str) -> None:
    """Print an error as one line on standard error."""
    say(f"tinyddpm{f' {name}' if name else ''}: {' '.join(message.split())}")


def _told(error: Exception) -> str:
    """An error's message; one of the system is the file and the reason, without the number."""
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _printable(text: str) -> str:
    """The text as standard output can show it; what a terminal would obey is escaped."""
    lines = "\n".join("\t".join(map(shown, line.split("\t"))) for line in text.split("\n"))
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return lines.encode(encoding, "backslashreplace").decode(encoding)


def _open_closed_streams() -> None:
    """Give the standard streams that the caller closed to the null device, so that no file of ours gets their numbers."""
    while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(handle)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115


def _drop_what_nobody_reads() -> None:
    """Empty the standard streams; what can't be written is dropped, so that the exit code stays the command's."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # closed, or no file
            try:
                stream.flush()
            except OSError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
