import re
import subprocess
from urllib.parse import parse_qs, unquote, urlsplit

import invitation
import nbformat
import pytest
from conftest import ROOT

NOTEBOOKS = [p.relative_to(ROOT).as_posix() for folder in ("book/walkthroughs", "book/pages", "notebooks")
             for p in sorted((ROOT / folder).glob("*.ipynb"))]


@pytest.mark.parametrize(("url", "name"), [
    ("https://github.com/somebody/seamlib.git", "somebody/seamlib"),
    ("https://github.com/somebody/seam.lib/", "somebody/seam.lib"),
    ("git@github.com:somebody/seamlib.git", "somebody/seamlib"),
    ("ssh://git@github.com/somebody/seamlib", "somebody/seamlib"),
    ("https://example.org/somebody/seamlib.git", None),
    ("/home/somebody/github.com/seamlib", None),
])
def test_a_clone_from_github_knows_where_it_is_published(tmp_path, url, name):
    for words in (["init", "-q", "-b", "main"], ["remote", "add", "origin", url]):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    assert invitation.published(tmp_path) == (name and (name, "main"))


def test_without_a_clone_there_is_no_address(tmp_path):
    assert invitation.published(tmp_path) is None


@pytest.mark.parametrize("path", NOTEBOOKS)
def test_the_buttons_of_a_page_point_at_files_that_are_there(path):
    note = invitation.text(path, ("somebody/seamlib", "main"))
    binder, colab = re.findall(r"\((https://[^)]+)\)", note)
    assert binder.startswith("https://mybinder.org/v2/gh/somebody/seamlib/main?")
    (place,) = parse_qs(urlsplit(binder).query)["urlpath"]
    assert (ROOT / place.removeprefix("lab/tree/")).is_file()
    assert colab.startswith("https://colab.research.google.com/github/somebody/seamlib/blob/main/")
    assert (ROOT / unquote(colab.partition("/blob/main/")[2])).is_file()
    assert (ROOT / re.search(r"jupyter lab (\S+)", note)[1]).is_file()


def test_a_page_without_an_address_says_how_it_is_run_here():
    note = invitation.text("notebooks/ship.ipynb", None)
    assert "jupyter lab notebooks/ship.ipynb" in note
    assert "http" not in note


def test_the_note_stands_below_the_title_and_injected_parameters_are_folded(tmp_path):
    page = tmp_path / "page.ipynb"
    injected = nbformat.v4.new_code_cell("epochs = 1", execution_count=1, metadata={"tags": ["injected-parameters"]})
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# A title"), injected]), page)
    invitation.invite(page, "book/pages/page.ipynb", tmp_path)
    found = nbformat.read(page, 4)
    nbformat.validate(found)
    assert [c.source.splitlines()[0] for c in found.cells] == [
        "# A title", "::::{admonition} Run this page yourself", "epochs = 1"]
    assert "hide-input" in found.cells[2].metadata["tags"]


def test_a_page_shows_a_solution_without_its_marks(tmp_path):
    page = tmp_path / "page.ipynb"
    marked = nbformat.v4.new_code_cell("def f():\n    ### BEGIN SOLUTION\n    return 1\n    ### END SOLUTION")
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# A title"), marked]), page)
    invitation.invite(page, "book/walkthroughs/page.ipynb", tmp_path)
    assert nbformat.read(page, 4).cells[2].source == "def f():\n    return 1"
