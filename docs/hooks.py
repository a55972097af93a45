"""mkdocs hook: writes the tables of commands, options and config keys from their declarations in the code."""

import argparse
import os
import re
import sys
import textwrap
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
COMMANDS = "<!-- generated: commands -->"
KEYS = "<!-- generated: keys -->"
NAMES = re.compile(r"<!-- generated: elsewhere (.+?) -->")
OPTIONS = re.compile(r"<!-- generated: options (.+?) -->")


def on_page_markdown(markdown: str, **_) -> str:
    if COMMANDS in markdown:
        markdown = markdown.replace(COMMANDS, commands())
    if KEYS in markdown:
        markdown = markdown.replace(KEYS, keys())
    markdown = NAMES.sub(lambda match: elsewhere(match[1]), markdown)
    return OPTIONS.sub(lambda match: options(match[1]), markdown)


def elsewhere(library: str) -> str:
    """Return the table of a library's names and ours."""
    from convnext import ELSEWHERE

    rows = [(f"`{cell(r.theirs)}`", f"`{cell(r.ours)}`" if r.ours else "–", cell(r.note)) for r in ELSEWHERE[library]]
    return "\n".join([f"| {library} | here | |", "|---|---|---|", *(f"| {' | '.join(columns)} |" for columns in rows)])


def commands() -> str:
    """Return one section per command: its summary, its usage line, a table of its arguments."""
    from zoo.cli import build_parser

    os.environ["COLUMNS"] = "100"  # argparse wraps usage lines by it
    return "\n\n".join(section(parser) for parser in leaves(build_parser()))


def leaves(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return [leaf for group in groups for child in group.choices.values() for leaf in leaves(child)] or [parser]


def options(command: str) -> str:
    """Return the table of arguments of one command."""
    from zoo.cli import build_parser

    (parser,) = [parser for parser in leaves(build_parser()) if parser.prog == f"zoo {command}"]
    return table(parser)


def keys() -> str:
    """Return the table of keys of a classifier's JSON config."""
    from zoo.training.config import ARCHITECTURE, ClassifierConfig, describe_option, options_of

    entries = {field.name: describe_option(field) for field in options_of(ClassifierConfig)}
    entries |= {key: f"{text} (architecture)" for key, (_, text) in ARCHITECTURE.items()}
    return "\n".join(
        ["| key | meaning |", "|---|---|", *(f"| `{key}` | {cell(text)} |" for key, text in entries.items())]
    )


def section(parser: argparse.ArgumentParser) -> str:
    usage = parser.format_usage().removeprefix("usage: ").strip()
    head = f"## {parser.prog}\n\n{sentence(parser.description or '')}\n\n```text\n{usage}\n```"
    examples = re.sub(r"^ *examples?:\n", "", parser.epilog or "", flags=re.IGNORECASE)
    block = f"\n\n```sh\n{textwrap.dedent(examples).strip()}\n```" if examples else ""
    return f"{head}\n\n{table(parser)}{block}"


def table(parser: argparse.ArgumentParser) -> str:
    rows = [
        f"| {names(action)} | {cell(action.help % vars(action) if action.help else '')} |"
        for action in parser._actions
        if not isinstance(action, argparse._HelpAction)
    ]
    return "\n".join(["| argument | meaning |", "|---|---|", *rows])


def names(action: argparse.Action) -> str:
    value = "" if action.nargs == 0 else f" {action.metavar or ''}".rstrip()
    if not value and action.nargs != 0 and action.choices:
        value = " " + ",".join(map(str, action.choices))
    shown = " or ".join(action.option_strings) + value if action.option_strings else (action.metavar or action.dest)
    return f"`{cell(str(shown))}`"


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")
