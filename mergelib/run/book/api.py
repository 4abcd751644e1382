"""The API reference as reStructuredText: autosummary and autodoc fill it from docstrings, and the
command line's parser says what it takes."""

from __future__ import annotations

import argparse
import inspect
import re
from importlib import import_module
from typing import Any

from ...merging import METHODS
from ...protocols import PROTOCOLS
from ...study import Study
from .pages import DATA

EXAMPLES, TITLES = DATA["examples"], DATA["reference"]


def names_of(page: str) -> list[str]:
    """The full names that a page explains."""
    if page in ("study", "functions"):
        return [f"mergelib.{n}" for n in EXAMPLES if (n == "Study") == (page == "study")]
    module = import_module(f"mergelib.{page}")
    entries = [getattr(import_module("mergelib"), n) for n in EXAMPLES]
    own = {n: x for n, x in vars(module).items() if inspect.isclass(x)}
    own = [n for n, x in own.items() if x.__module__ == module.__name__]
    listed = {n: getattr(module, n) for n in getattr(module, "__all__", own)}
    return [f"mergelib.{page}.{n}" for n, x in listed.items() if callable(x) and x not in entries]


def pages(parser: argparse.ArgumentParser) -> dict[str, str]:
    """Every page of the reference, by its place in the book."""
    members = [f"mergelib.Study.{n}" for n in vars(Study) if not n.startswith("_")]
    overview = [
        *heading("API reference", "="),
        "Every public name, and one sentence on each. Examples begin with ``import mergelib, "
        "torch``; one goes on where the one above it ends. By name: :ref:`genindex`.\n",
    ]
    written = {}
    for page, title in TITLES.items():
        names = names_of(page)
        overview += [*heading(title, "-"), *summary(names + members * (page == "study"))]
        written[f"api/{page}"] = [
            *heading(title, "="),
            *opening(page),
            *(line for name in names for line in described(name)),
        ]
    written["api/methods"] = [*heading("Merging methods", "="), *methods()]
    written["api/command_line"] = [*heading("Command line", "="), *commands(parser)]
    overview += [
        *heading("Merging methods", "-"),
        ", ".join(f":py:func:`{name}`" for name in sorted(METHODS)) + "\n",
        *heading("Command line", "-"),
        ":doc:`Commands and their flags <command_line>` of ``python -m mergelib``.\n",
    ]
    return {"api/index": "\n".join(overview)} | {p: "\n".join(t) for p, t in written.items()}


def heading(title: str, line: str) -> list[str]:
    return [title, line * len(title), ""]


def summary(names: list[str]) -> list[str]:
    """A table of names and first sentences."""
    return [".. autosummary::", "   :nosignatures:", "", *(f"   ~{n}" for n in names), ""]


def described(name: str) -> list[str]:
    """Autodoc's directive for a name."""
    module, _, last = name.rpartition(".")
    found: Any = getattr(import_module(module), last)
    if not inspect.isclass(found):
        return [f".. autofunction:: {name}", ""]
    kind = "exception" if issubclass(found, Exception) else "class"
    options = ("members:", "special-members: __call__", "member-order: bysource")
    return [f".. auto{kind}:: {name}", *(f"   :{option}" for option in options), ""]


def opening(page: str) -> list[str]:
    """What a module says of itself; of the protocols the names, too."""
    said = [f".. automodule:: mergelib.{page}", ""] if page in ("merging", "protocols") else []
    if page == "protocols":
        said += ["Names that settings and calls know:\n"]
        said += [f"``{p.name}``\n   {p.label}" for p in PROTOCOLS.values()]
    return [*said, ""]


def methods() -> list[str]:
    """Every merging method, with its options and what it says of itself."""
    lines = []
    for name, m in sorted(METHODS.items()):
        signature = inspect.signature(m.function)
        options = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
        plainly = signature.replace(parameters=options, return_annotation=signature.empty)
        about = f"{m.label}. Needs {', '.join(('weights', *m.needs))}; gives {m.gives}."
        doc = inspect.getdoc(m.function).replace("Args:\n", "").replace("\n        ", "\n  ")
        doc = re.sub(r"^    (\w[\w, ]*):", r"* ``\1``:", doc, flags=re.MULTILINE)
        said = f"{about}\n\n{doc}".replace("\n", "\n   ")
        lines += [f".. py:function:: {name}{plainly}", "   :single-line-parameter-list:", ""]
        lines += [f"   {said}", ""]
    return lines


def commands(parser: argparse.ArgumentParser) -> list[str]:
    """Every command, its sentence and its flags."""
    lines = ["``python -m mergelib`` takes these commands:\n"]
    (choice,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    said = {a.dest: a.help for a in choice._choices_actions}
    for name, command in choice.choices.items():
        lines += heading(name, "-")
        sentence = command.description or said[name]
        lines += [plain(sentence[0].upper() + sentence[1:]), ""]
        for action in command._actions:
            if action.dest != "help":
                lines += [f"``{flag(action)}``", f"   {plain(action.help or '')}", ""]
    return lines


def flag(action: argparse.Action) -> str:
    """A flag with what it takes, as one types it."""
    choices = action.choices and "{" + ",".join(action.choices) + "}"
    takes = "" if action.nargs == 0 else choices or action.metavar or action.dest.upper()
    more = " ..." if action.nargs in ("+", "*") else ""
    return " ".join([*", ".join(action.option_strings).split(), takes]).strip() + more


def plain(text: str) -> str:
    """Help as one line of reStructuredText: nothing in it is markup but `code`."""
    line = re.sub(r"([\\*|])", r"\\\1", " ".join(text.split()))
    return re.sub(r"`([^`]+)`", r"``\1``", line)


def readable(*said: Any) -> tuple[str, str] | None:
    """Autodoc's hook: a signature that Sphinx can read where a default is a class, a function or
    made anew for each object."""
    *_, signature, returned = said
    named = re.sub(r"<(?:class|function) '?(?:\w+\.)*(\w+)[^>]*>", r"\1", signature or "")
    return named and (named.replace("<factory>", "..."), returned)
