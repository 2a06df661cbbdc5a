"""Builds the site: ``sphinx-build -W docs build/site``, with fastres installed."""

import argparse
import os
from pathlib import Path

from sphinx.application import Sphinx

import fastres
from fastres.cli.main import build_parser

ROOT = Path(__file__).resolve().parent.parent

project = "fastres"
author = "fastres contributors"
release = fastres.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["conf.py"]
html_theme = "furo"
html_title = f"fastres {release}"
html_copy_source = False

myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Shapes", "notes_style"), ("Source", "notes_style")]

#: Pages whose text is kept where people look for it in the repository.
SHARED = {
    "index": "README.md",
    "contributing": "CONTRIBUTING.md",
    "changelog": "CHANGELOG.md",
    "benchmarks": "benchmarks/README.md",
}


def command_line_help() -> str:
    """What ``fastres COMMAND --help`` prints, for every command."""
    os.environ["COLUMNS"] = "88"
    (commands,) = (a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return "".join(
        f"\n## fastres {name}\n\n```text\n{parser.format_help()}```\n"
        for name, parser in commands.choices.items()
    )


def insert_shared(app: Sphinx, page: str, content: list[str]) -> None:
    """Puts a shared text before the page's own, its links turned to the site's pages."""
    if page == "reference/command-line":
        content[0] += command_line_help()
    if page not in SHARED:
        return
    text = (ROOT / SHARED[page]).read_text()
    for name, source in SHARED.items():
        text = text.replace(f"]({source})", f"]({name}.md)")
    content[0] = text.replace("](docs/", "](") + "\n" + content[0]


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", insert_shared)
