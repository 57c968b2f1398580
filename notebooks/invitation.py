"""An executed notebook as a page: it says where it can be run; parameters are folded, marks of solutions left out."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import nbformat

MARKS = re.compile(r"\n *### (BEGIN|END) SOLUTION$", re.MULTILINE)  # for worksheets, see book/worksheets.py
GITHUB = re.compile(r"(?:https://|ssh://git@|git@)github\.com[/:]([\w.-]+/[\w.-]+?)(?:\.git)?/?$")


def published(root: Path) -> tuple[str, str] | None:
    """(owner/name, branch) of the clone at `root`; None unless it came from GitHub."""
    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True)
        return done.stdout.strip()

    try:
        found = GITHUB.match(git("remote", "get-url", "origin"))
        return (found[1], git("branch", "--show-current") or git("rev-parse", "HEAD")) if found else None
    except OSError:  # no git here
        return None


def text(path: str, place: tuple[str, str] | None) -> str:
    """The note for the notebook at `path` in the repository at `place`, as `published` says it, in MyST."""
    lines = ["::::{admonition} Run this page yourself", ":class: dropdown",
             f"It is the notebook `{path}`. In a clone, inside the environment ({{doc}}`/run`):", "",
             "```sh", f"jupyter lab {path}", "```"]
    if place:
        (name, branch), address = place, path.replace("/", "%2F")
        lines += ["", f"Without installing: [Binder](https://mybinder.org/v2/gh/{name}/{branch}?urlpath=lab%2Ftree%2F"
                  f"{address}), or [Colab](https://colab.research.google.com/github/{name}/blob/{branch}/{path}), "
                  "where this comes first in a cell of its own:", "", "```",
                  f"!git clone --depth 1 https://github.com/{name} project", "%cd project",
                  '%pip install --quiet ".[notebooks,onnx,robustness]"', "```"]
    return "\n".join([*lines, "::::"])


def invite(page: Path, path: str, root: Path) -> None:
    """Put the note below the title of the executed notebook `page`, which is `path` in the clone at `root`.

    The parameters that were injected into it are folded, and the marks around solutions are left out.
    """
    notebook = nbformat.read(page, 4)
    for cell in notebook.cells:
        cell.source = MARKS.sub("", cell.source)
        if "injected-parameters" in cell.metadata.get("tags", []):  # they repeat the cell above, for the most part
            cell.metadata["tags"].append("hide-input")
            cell.metadata["mystnb"] = {"code_prompt_show": "Show the parameters of this run"}
    cell = nbformat.v4.new_markdown_cell(text(path, published(root)))
    cell["id"] = "invitation"
    notebook.cells.insert(1, cell)
    nbformat.write(notebook, page)
