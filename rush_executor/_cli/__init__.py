"""The command `rush-executor`: which subcommands there are, and what their ends mean.

argparse, and nothing heavy is imported before a subcommand runs: `--help` must come at once. Each subcommand has a file
of its own here, with `DESCRIPTION`, `EXAMPLES`, `add_arguments(parser)` and `run(args, fail)`, which is imported only
when its name stands on the command line; what they share is in `target.py` (which server and network), `output.py`
(text, tables, JSON) and `errors.py`.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Iterable, Sequence

from rush_executor import __version__

__all__ = ["COMMANDS", "EXIT_CODES", "main", "make_parser"]

COMMANDS = {
    "worker": "start workers on this machine that join a network",
    "server": "start a server for programs and workers to share",
    "status": "say what a network, or a server, is at",
    "top": "watch a network: workers, what each runs, queue, throughput, failures",
    "tasks": "list tasks, show one, retry or cancel some",
    "workers": "list workers; stop, kill or restart some",
    "logs": "print what workers have logged and printed, and follow it",
    "snapshot": "write a network into a file",
    "restore": "make a network from a snapshot",
    "reset": "delete a network, with all that it keeps",
    "doctor": "check a server, and a network: what is wrong, and what to do",
}

EXIT_CODES = {
    0: "it was done; of `doctor`: nothing failed",
    1: "it could not be done: the server is not reached or refuses, a file cannot be read or written, a task is in "
    "another state; of `doctor`: a check failed",
    2: "the command line is wrong, or something is missing that it needs",
    3: "there is no such network, task or worker; for `doctor` that is a check that failed",
    130: "Ctrl-C, of a command that does not go on until then",
    141: "whoever read the output has closed it",
}

# Without a word that says what to do, they list.
_LISTS = ("tasks", "workers")

_DESCRIPTION = "Networks of workers for RushExecutor and Rush, on a Redis or Valkey server."
_EPILOG = """\
Which server: --url, --url-file or RUSH_URL. A password belongs into the file or the variable: others on
the machine can read a command line. Commands that look at a network find your private server on this
machine by themselves, and the network, if there is only one.

examples:
  rush-executor server                      # in one terminal
  rush-executor worker --url-file FILE --network demo
  rush-executor top

`rush-executor COMMAND --help` tells the rest.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    # The options that may stand before it have no values.
    wanted = next((word for word in words if not word.startswith("-")), "")
    if wanted in _LISTS:
        at = words.index(wanted) + 1
        if not words[at:] or (words[at].startswith("-") and words[at] not in ("-h", "--help")):
            words.insert(at, "list")
    args = make_parser([wanted]).parse_args(words)
    command = importlib.import_module(f"rush_executor._cli.{args.command}")
    try:
        code: int = command.run(args, args.fail)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Otherwise the interpreter would try again to write what is left, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        from rush_executor._cli.errors import error_text, exit_code_of

        failed = exit_code_of(error)
        if failed is None:
            raise
        print(f"rush-executor: {error_text(error)}", file=sys.stderr)
        return failed
    return code


def make_parser(filled: Iterable[str] = COMMANDS) -> argparse.ArgumentParser:
    """Makes the parser.

    Args:
        filled: Commands whose arguments are added; of the others there is only the name.
    """
    parser = argparse.ArgumentParser(
        prog="rush-executor",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    filled = set(filled)
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, formatter_class=argparse.RawDescriptionHelpFormatter)
        if name in filled:
            # ruff: noqa: PLC0415 - not for `rush-executor --help`
            import shutil
            import textwrap

            module = importlib.import_module(f"rush_executor._cli.{name}")
            command.description = textwrap.fill(module.DESCRIPTION, min(shutil.get_terminal_size().columns, 100) - 2)
            command.epilog = f"examples:\n{module.EXAMPLES}"
            module.add_arguments(command)
            command.set_defaults(fail=command.error)
    return parser


if __name__ == "__main__":
    sys.exit(main())
