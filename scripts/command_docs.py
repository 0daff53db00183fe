"""Writes what the documents say of the commands from the commands themselves: the README's block and the man page.

python3 scripts/command_docs.py [--check]

Needs an environment with vqcodec. With --check, nothing is written: what differs is named, and the exit code is 1.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from vqcodec.cli import main  # noqa: E402 - the one of this checkout, installed or not

WIDTH = 100  # columns of the help in the README
BEGIN, END = "<!-- begin: python3 scripts/command_docs.py -->", "<!-- end: python3 scripts/command_docs.py -->"
EXIT_CODES = (
    ("0", "All is done."),
    ("1", "Something failed: a line on standard error says what, and what to do."),
    ("2", "Wrong usage."),
    ("3", "decompress --salvage has shown a damaged file, and says on standard error what is lost."),
    ("129, 130, 143", "Ended by SIGHUP, SIGINT or SIGTERM."),
    ("141", "Whoever read standard output has closed it."),
)


def commands() -> dict[str, tuple[click.Command, click.Context]]:
    """The program and each of its commands, with a context to show its help in."""
    top = click.Context(main, info_name="vqcodec", max_content_width=WIDTH, terminal_width=WIDTH, help_option_names=["-h", "--help"])
    found = {"vqcodec": (main, top)}
    for name in main.list_commands(top):
        command = main.commands[name]
        found[f"vqcodec {name}"] = command, click.Context(command, parent=top, info_name=name)
    return found


def readme(text: str) -> str:
    """The README with its block made anew."""
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    parts = []
    for name, (command, context) in commands().items():
        parts.append(f"<details><summary><code>{name}</code></summary>\n\n```\n{command.get_help(context)}\n```\n</details>\n")
    return f"{before}{BEGIN}\n{''.join(parts)}{END}{after}"


def man_page() -> str:
    """The man page, in roff's macros of that name."""
    found = commands()
    _, (program, context) = next(iter(found.items()))
    lines = ['.\\" written by scripts/command_docs.py', '.TH VQCODEC 1 "" vqcodec "User Commands"', ".nh", ".ad l", ".SH NAME"]
    lines += [f"vqcodec \\- {roff(short(program))}", ".SH SYNOPSIS"]
    for name, (command, inner) in list(found.items())[1:]:
        lines += [f".B {roff(name)}", roff(" ".join(command.collect_usage_pieces(inner))), ".br"]
    lines.pop()
    lines += [".SH DESCRIPTION", *paragraphs(program), ".SH OPTIONS", *options(program, context), ".SH COMMANDS"]
    for name, (command, inner) in list(found.items())[1:]:
        usage = " ".join([name, *command.collect_usage_pieces(inner)])
        lines += [f".SS {roff(usage)}", *paragraphs(command), *options(command, inner)]
    lines.append(".SH EXIT STATUS")
    for code, meaning in EXIT_CODES:
        lines += [".TP", f".B {code}", roff(meaning)]
    return "\n".join(lines) + "\n"


def short(command: click.Command) -> str:
    """The first sentence of a command's help, as a name's explanation."""
    first = (command.help or "").split("\n")[0].rstrip(".")
    return first[:1].lower() + first[1:]


def paragraphs(command: click.Command) -> list[str]:
    """A command's help, paragraph by paragraph."""
    texts = [" ".join(part.split()) for part in (command.help or "").split("\n\n")]
    return [line for text in texts for line in (".PP", roff(text))][1:]


def options(command: click.Command, context: click.Context) -> list[str]:
    """A command's options, each with its help."""
    records = [parameter.get_help_record(context) for parameter in command.get_params(context) if isinstance(parameter, click.Option)]
    return [line for record in records if record for line in (".TP", f".B {roff(record[0])}", roff(record[1]))]


def roff(text: str) -> str:
    """Text as roff reads it: hyphens stay hyphens, and no line is a command."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped


def documents() -> dict[Path, str]:
    """Each generated document as it should be."""
    path = ROOT / "README.md"
    return {path: readme(path.read_text(encoding="utf-8")), ROOT / "docs/vqcodec.1": man_page()}


if __name__ == "__main__":
    stale = {path: text for path, text in documents().items() if not path.exists() or path.read_text(encoding="utf-8") != text}
    if "--check" in sys.argv[1:]:
        if stale:
            sys.exit(f"{' and '.join(str(path.relative_to(ROOT)) for path in stale)}: run python3 scripts/command_docs.py")
    else:
        for path, text in stale.items():
            path.write_text(text, encoding="utf-8")
