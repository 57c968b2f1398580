"""The walkthroughs as worksheets, in two zips: for students, and for those who teach.

    python book/worksheets.py _build

In the students' edition the lines between BEGIN SOLUTION and END SOLUTION are left to write, and so are the solutions
of the exercises, which are the cells tagged hide-cell; cells tagged check say whether what was written is right. The
instructor's edition is whole. Both carry the metadata of cells that nbgrader reads.
"""

from __future__ import annotations

import copy
import re
import sys
import zipfile
from pathlib import Path

import nbformat
from nbformat import NotebookNode

WALKTHROUGHS = Path(__file__).resolve().parent / "walkthroughs"
REGION = re.compile(r"^( *)### BEGIN SOLUTION\n.*?\n *### END SOLUTION$", re.MULTILINE | re.DOTALL)
TODO = r"\1# TODO: write these lines\n\1raise NotImplementedError"
BLANK = {"code": "# Your code", "markdown": "*Your answer*"}  # where the solution of an exercise was
NOTE = ("**This is a worksheet.** Write down each prediction before you run the cell below it. Where it says TODO, "
        "write the lines that are missing; the check after them passes when they are right, and later cells need them.")


def instructor(notebook: NotebookNode) -> NotebookNode:
    """A copy whose cells say what nbgrader asks: which hold a solution, which are graded and which are locked."""
    notebook = copy.deepcopy(notebook)
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        check, exercise = "check" in tags, "hide-cell" in tags
        if check or exercise or REGION.search(cell.source):
            cell.metadata["nbgrader"] = {
                "schema_version": 3, "grade_id": f"cell-{cell.id}", "cell_type": cell.cell_type, "task": False,
                "grade": check or exercise, "points": int(check or exercise), "solution": not check, "locked": check}
    return notebook


def student(notebook: NotebookNode) -> NotebookNode:
    """A copy without solutions."""
    notebook = instructor(notebook)
    for cell in notebook.cells:
        exercise = "hide-cell" in cell.metadata.get("tags", [])
        cell.source = BLANK[cell.cell_type] if exercise else REGION.sub(TODO, cell.source)
    note = nbformat.v4.new_markdown_cell(NOTE)
    note["id"] = "worksheet"
    notebook.cells.insert(1, note)
    return notebook


def main(folder: str) -> int:
    """Write both zips to `folder`. 0."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, edition in (("worksheets", student), ("worksheets-instructor", instructor)):
        target = Path(folder) / f"{name}.zip"
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as whole:
            for path in sorted(WALKTHROUGHS.glob("*.ipynb")):
                whole.writestr(f"{name}/{path.name}", nbformat.writes(edition(nbformat.read(path, 4))))
        print(f"wrote {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
