"""The reference of the command line, printed from its parsers, so that it cannot say anything else than they do.

Two directives:

- `{command} name` prints a command of `rush-executor`: what it does, how it is called, its options, examples;
- `{exit-codes}` prints what exit codes mean.
"""

from __future__ import annotations

import argparse
import functools
import re
from collections.abc import Iterable, Iterator

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from rush_executor import _cli

__all__ = ["Command", "ExitCodes", "command_lines", "exit_code_lines"]


def command_lines(name: str) -> Iterator[str]:
    """A command as lines of Markdown.

    Raises:
        KeyError: There is no such command.
    """
    parser = _choices(_cli.make_parser())[name]
    yield from (_prose(parser.description), "")
    actions = _choices(parser)
    for leaf in actions.values():
        yield from (f"`{_call(leaf)}`", f": {_prose(leaf.description)}", "")
    if actions:
        # What all of them take is said once.
        shared = functools.reduce(lambda a, b: a & b, (set(_options(leaf)) for leaf in actions.values()))
        for action, leaf in actions.items():
            own = {option: text for option, text in _options(leaf).items() if option not in shared}
            if own:
                yield from (f"Of `{action}`:", "", *_table(own.items()))
        common = {option: text for option, text in _options(next(iter(actions.values()))).items() if option in shared}
        yield from ("Of all of them:", "", *_table(common.items()))
    else:
        yield from (f"`{_call(parser)}`", "", *_table(_options(parser).items()))
    examples = (parser.epilog or "").partition("examples:\n")[2]
    yield from ("```sh", *(line.removeprefix("  ") for line in examples.splitlines()), "```", "")


def exit_code_lines() -> Iterator[str]:
    """The exit codes as lines of Markdown."""
    yield from _table((str(code), text) for code, text in _cli.EXIT_CODES.items())


def _choices(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    return {
        name: choice
        for action in parser._actions  # noqa: SLF001 - argparse has no other way to ask
        if isinstance(action, argparse._SubParsersAction)  # noqa: SLF001
        for name, choice in action.choices.items()
    }


def _call(parser: argparse.ArgumentParser) -> str:
    """How it is called: program, what must or may follow, and that there are options."""
    words = []
    for action in parser._get_positional_actions():  # noqa: SLF001
        name = str(action.metavar or action.dest)
        words.append(f"[{name} ...]" if action.nargs == "*" else name)
    return " ".join([parser.prog, "[options]", *words])


def _options(parser: argparse.ArgumentParser) -> dict[str, str]:
    """What is said of each option, and of what must or may follow."""
    found = {}
    for action in parser._actions:  # noqa: SLF001
        if isinstance(action, argparse._HelpAction | argparse._SubParsersAction):  # noqa: SLF001
            continue
        names = ", ".join(action.option_strings) or str(action.metavar)
        takes = "" if action.nargs == 0 or not action.option_strings else f" {_value_of(action)}"
        text = (action.help or "") % {"default": action.default, "prog": parser.prog}
        found[f"`{names}{takes}`"] = _prose(text)
    return found


def _prose(text: str | None) -> str:
    """Running text in one line; options in it are code, or their hyphens would become dashes."""
    return re.sub(r"(?<![\w`-])(--[a-z][a-z-]*)", r"`\1`", " ".join((text or "").split()))


def _value_of(action: argparse.Action) -> str:
    if action.metavar is not None:
        return str(action.metavar)
    return "|".join(action.choices) if action.choices is not None else action.dest.upper()


def _table(rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    yield from ("| | |", "|---|---|")
    for name, text in rows:
        # A vertical line would end the cell.
        cells = [cell.replace("|", "\\|") for cell in (name, text)]
        yield f"| {cells[0]} | {cells[1]} |"
    yield ""


class Command(SphinxDirective):
    """`{command} name`: a command, from its parser."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Prints the command."""
        return _parsed(self, command_lines(self.arguments[0]))


class ExitCodes(SphinxDirective):
    """`{exit-codes}`: what exit codes mean."""

    has_content = False

    def run(self) -> list[nodes.Node]:
        """Prints the table."""
        return _parsed(self, exit_code_lines())


def _parsed(directive: SphinxDirective, lines: Iterable[str]) -> list[nodes.Node]:
    directive.env.note_dependency(_cli.__file__)
    holder = nodes.container()
    directive.state.nested_parse(StringList(list(lines), source=_cli.__file__), directive.content_offset, holder)
    return holder.children


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_directive("command", Command)
    app.add_directive("exit-codes", ExitCodes)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
