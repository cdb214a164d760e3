"""Pages that are printed from the code, so that they cannot say anything else than the code does.

Three directives:

- `{task-states}` prints the state table (`rush_executor._protocol.states.TRANSITIONS`): a picture and a table;
- `{module-docstring} some.module` prints a module's docstring, which is Markdown, as it is;
- `{rush-methods}` prints which method of rush in R is called what here, each name a link to its reference entry.

A name that is not there, or a transition whose Lua script is not there, is a warning, and so an error in `make check`.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import ClassVar

import rush_methods
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

import rush_executor
from rush_executor._protocol import states

log = logging.getLogger(__name__)

LUA = Path(rush_executor.__file__).parent / "_ledger" / "lua"
NO_STATE = "(none)"

# Sizes of the picture, in units of its viewBox: about a pixel each in a page of usual width.
COLUMN = 124
ROW = 34
HEAD = 30
CHARACTER = 6.4  # a little more than the mean width of a character at the size of the labels


def draw(transitions: Sequence[states.Transition], terminal: Iterable[str]) -> str:
    """Draws the state table as SVG.

    A column for each state, in the order in which the table names them, and an arrow for each row, from its source to
    its target. So nothing has to be laid out: any table gives a picture in which no two arrows meet.

    Args:
        transitions: The rows.
        terminal: The states that are the end of a task; their boxes have a double border.

    Returns:
        An ``<svg>`` element that takes its colours from the page.
    """
    names = list(dict.fromkeys(state for row in transitions for state in (row.source, row.target)))
    centre = {name: COLUMN * (i + 0.5) for i, name in enumerate(names)}
    width, height = COLUMN * len(names), HEAD + ROW * len(transitions) + 20
    columns = [_column(name, centre[name], height, is_terminal=name in terminal) for name in names]
    arrows = [
        _arrow(row.event, centre[row.source], centre[row.target], HEAD + ROW * (i + 1), width)
        for i, row in enumerate(transitions)
    ]
    style = f"width: 100%; max-width: {width}px; font-family: inherit; font-size: 12px"
    return f"""\
<svg role="img" aria-label="States of a task" viewBox="0 0 {width} {height}" style="{style}" fill="currentColor">
<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">
<path d="M0 0 8 4 0 8z"/></marker></defs>
{"".join(columns)}{"".join(arrows)}</svg>"""


def _column(name: str, x: float, height: float, *, is_terminal: bool) -> str:
    """A state: its name in a box, and a line down through the rows."""
    insets = (0, 3) if is_terminal else (0,) if name else ()
    boxes = [
        f'<rect x="{x - COLUMN / 2 + 8 + inset}" y="{1 + inset}" width="{COLUMN - 16 - 2 * inset}" '
        f'height="{HEAD - 6 - 2 * inset}" rx="4" fill="none" stroke="currentColor"/>\n'
        for inset in insets
    ]
    return f"""\
<line x1="{x}" y1="{HEAD - 5}" x2="{x}" y2="{height}" stroke="currentColor" stroke-opacity="0.25"/>
<text x="{x}" y="{HEAD / 2 + 2}" text-anchor="middle" font-weight="bold">{escape(name) or NO_STATE}</text>
{"".join(boxes)}"""


def _arrow(event: str, start: float, end: float, y: float, width: float) -> str:
    """A transition: an arrow, its event above it. One from a state to itself goes out, down and back."""
    half = len(event) * CHARACTER / 2
    if start == end:
        path, middle = f"M{start} {y - 12} h26 v12 h-26", start + 32 + half
    else:
        path, middle = f"M{start} {y} H{end}", (start + end) / 2
    x = min(max(middle, half), width - half)
    return f"""\
<path d="{path}" fill="none" stroke="currentColor" marker-end="url(#tip)"/>
<text x="{x}" y="{y - 6}" text-anchor="middle" paint-order="stroke" stroke-width="4"
style="stroke: var(--color-background-primary, white)">{escape(event)}</text>
"""


class TaskStates(SphinxDirective):
    """`{task-states}`: the state table, as a picture (in HTML) and as a table."""

    has_content = False
    headings: ClassVar = ("from", "event", "to", "who decides", "script")

    def run(self) -> list[nodes.Node]:
        """Prints the table."""
        self.env.note_dependency(inspect.getfile(states))
        picture = nodes.raw("", draw(states.TRANSITIONS, states.TERMINAL_STATES), format="html")
        return [picture, self._table()]

    def _table(self) -> nodes.table:
        head, body = nodes.thead(), nodes.tbody()
        head += self._row([nodes.Text(text) for text in self.headings])
        for row in states.TRANSITIONS:
            if not (LUA / f"{row.script}.lua").exists():
                log.warning("the state table names %s.lua: no such script", row.script, location=self.get_location())
            source = nodes.literal(text=row.source) if row.source else nodes.Text(NO_STATE)
            target = nodes.literal(text=row.target)
            script = nodes.literal(text=f"{row.script}.lua")
            body += self._row([source, nodes.Text(row.event), target, nodes.Text(row.decider), script])
        group = nodes.tgroup(cols=len(self.headings))
        group += [nodes.colspec(colwidth=1) for _ in self.headings]
        group += [head, body]
        table = nodes.table(classes=["colwidths-auto"])
        table += group
        return table

    @staticmethod
    def _row(cells: Iterable[nodes.Node]) -> nodes.row:
        row = nodes.row()
        for cell in cells:
            paragraph = nodes.paragraph()
            paragraph += cell
            entry = nodes.entry()
            entry += paragraph
            row += entry
        return row


class ModuleDocstring(SphinxDirective):
    """`{module-docstring} some.module`: what the module says about itself, read as Markdown."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Prints the docstring."""
        module = importlib.import_module(self.arguments[0])
        file = inspect.getfile(module)
        self.env.note_dependency(file)
        text = inspect.getdoc(module)
        if not text:
            log.warning("%s has no docstring", self.arguments[0], location=self.get_location())
            return []
        holder = nodes.container()
        self.state.nested_parse(StringList(text.splitlines(), source=file), self.content_offset, holder)
        return holder.children


class RushMethods(SphinxDirective):
    """`{rush-methods}`: the methods of rush in R, and what they are called here."""

    has_content = False

    def run(self) -> list[nodes.Node]:
        """Prints the table."""
        self.env.note_dependency(inspect.getfile(rush_methods))
        lines = ["| in R | here | |", "|---|---|---|"]
        for method in rush_methods.METHODS:
            names = ", ".join(self._link(name) for name in method.here)
            lines.append(f"| {method.in_r} | {names} | {method.note} |")
        holder = nodes.container()
        self.state.nested_parse(StringList(lines, source=inspect.getfile(rush_methods)), self.content_offset, holder)
        return holder.children

    def _link(self, name: str) -> str:
        home: object = rush_executor
        for part in name.split("."):
            home = getattr(home, part, None)
        if home is None:
            log.warning("the table of methods names %s: it does not exist", name, location=self.get_location())
        role = "py:class" if inspect.isclass(home) else "py:func" if "." not in name else "py:obj"
        return f"{{{role}}}`{name} <rush_executor.{name}>`"


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_directive("task-states", TaskStates)
    app.add_directive("module-docstring", ModuleDocstring)
    app.add_directive("rush-methods", RushMethods)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
