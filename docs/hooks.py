"""Pages of the documentation that are made when it is built, and links to files outside of this folder."""

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
# Pages that are files of the repository: path from its root, by path in the site.
PAGES = {"contributing.md": "CONTRIBUTING.md", "recipes.md": "recipes/README.md", "changelog.md": "CHANGELOG.md"}
LINK = re.compile(r"\[([^\]]+)\]\(((?!https?:|mailto:|#)[^)]+)\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages and drawings that are generated."""
    sys.path.insert(0, str(ROOT / "docs"))  # which mkdocs takes out again after it has imported this file
    import drawings

    pages = {name: (ROOT / path).read_text() for name, path in PAGES.items()}
    pages |= {"reference/commands.md": commands_page(), "reference/methods.md": methods_page()}
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    for name, content in drawings.all_drawings().items():
        files.append(File.generated(config, f"drawings/{name}", content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point links to the pages of the site; a file of the repository is named instead of linked."""
    here = (ROOT / PAGES[page.file.src_uri]).parent if page.file.src_uri in PAGES else None
    folder = here or (ROOT / "docs" / page.file.src_uri).parent
    up = "../" * page.file.src_uri.count("/")

    def replaced(match: re.Match[str]) -> str:
        text, target = match[1], match[2]
        path, hash_sign, anchor = target.partition("#")
        found = (folder / path).resolve()
        known = {(ROOT / source).resolve(): name for name, source in PAGES.items()}
        known[ROOT / "README.md"] = "index.md"
        if found in known:
            return f"[{text}]({up}{known[found]}{hash_sign}{anchor})"
        if found.is_relative_to(ROOT / "docs"):
            return match[0] if here is None else f"[{text}]({up}{found.relative_to(ROOT / 'docs')}{hash_sign}{anchor})"
        if not found.exists():
            return match[0]  # reported by the strict check
        name = found.relative_to(ROOT).as_posix()
        return f"`{name}`" if text.strip("`") in (name, found.name) else f"{text} (`{name}`)"

    return LINK.sub(replaced, markdown)


def on_page_content(html: str, page: Any, **_: Any) -> None:
    """Refuse a page whose mark for a part of another file was not recognised."""
    if "--8" in re.sub("<[^>]+>", "", html):  # highlighted code has elements between its characters
        raise PluginError(f'{page.file.src_uri}: a part of another file is not included; write --8<-- "FILE:PART".')


def commands_page() -> str:
    """The options of every command, in the order and the sections of `--help`."""
    from defeat.cli import COMMANDS

    parts = [
        "# Commands\n\n`defeat COMMAND --help` prints the same. `--config FILE` reads options from a recipe or a run.\n"
    ]
    for name, function in COMMANDS.items():
        parts.append(f"## `defeat {name}`\n\n{function.__doc__}\n")
        sections: dict[str, list[Any]] = {}
        for option in options_of_command(name):
            sections.setdefault(option.section, []).append(option)
        for section, options in sections.items():
            parts.append(f"**{section[0].upper()}{section[1:]}**\n")
            parts.append("| option | default | |\n|---|---|---|\n" + "\n".join(map(option_row, options)) + "\n")
    return "\n".join(parts)


def options_of_command(name: str) -> list[Any]:
    """The options that a command would parse."""
    from defeat.command_options import all_options

    return [option for option in all_options(name, []) if not option.hidden]


def methods_page() -> str:
    """Description and options of every method."""
    from inspect import getdoc

    from docstring_parser import parse

    from defeat.distillation import METHODS
    from defeat.options import options_of

    parts = ["# Methods and options\n\nSee [methods](../methods.md) for a comparison.\n"]
    for name, method in METHODS.items():
        described = parse(getdoc(method) or "")
        parts.append(f"## `{name}`\n\n{described.short_description}\n\n{described.long_description or ''}\n")
        parts.append(f"Source: {method.paper}.\n")
        options = [option for option in options_of(method, "method") if option.name not in ("student", "teacher")]
        parts.append("| option | default | |\n|---|---|---|\n" + "\n".join(map(option_row, options)) + "\n")
    return "\n".join(parts)


def option_row(option: Any) -> str:
    """A row of a table of options."""
    from dataclasses import MISSING

    default = "required" if option.default is MISSING else f"`{option.default}`".replace("|", "\\|")
    if option.default in (None, "", [], {}):
        default = ""
    text = option.help.replace("|", "\\|").replace("<", "&lt;")
    return f"| `{option.shown}` | {default} | {text} |"
