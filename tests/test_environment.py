"""pyproject.toml, requirements.lock and environment.yml say the same."""

import os
import re
import sys

import pytest
import yaml
from conftest import ROOT
from packaging.markers import Marker
from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

PYTHON = "3.11"
REFERENCE = {"python_version": PYTHON, "python_full_version": "3.11.9", "platform_system": "Linux",
             "sys_platform": "linux", "platform_machine": "x86_64", "implementation_name": "cpython",
             "platform_python_implementation": "CPython"}


def wanted():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    return [Requirement(text) for group in groups for text in group]


def here():
    return [r for r in wanted() if not r.marker or r.marker.evaluate(REFERENCE)]


def locked():
    found = {}
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        if match := re.match(r"([a-z0-9._-]+)==([^ ;]+)(?: ; (.*?))? \\$", line):
            name, version, marker = match.groups()
            if marker is None or Marker(marker).evaluate(REFERENCE):
                found[name] = version
    return found


def test_the_lock_satisfies_pyproject():
    lock = locked()
    for requirement in here():
        assert requirement.specifier.contains(lock[requirement.name.lower()]), requirement


def test_environment_yml_has_the_locks_versions():
    *_, pip = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    listed = dict(text.split("==") for text in pip["pip"] if "==" in text)
    lock = locked()
    assert listed == {r.name.lower(): lock[r.name.lower()] for r in here()}


def test_the_lock_has_hashes_and_no_registry_host():
    lock = (ROOT / "requirements.lock").read_text()
    assert "://" not in lock
    for block in re.split(r"\n(?=[a-z])", lock):
        if "==" in block.splitlines()[0]:
            assert "--hash=sha256:" in block, block.splitlines()[0]


def test_deepsparse_is_left_out_where_it_has_no_wheel():
    with_wheel = {r.name for r in wanted() if not r.marker or r.marker.evaluate(REFERENCE)}
    without = {r.name for r in wanted() if not r.marker or r.marker.evaluate({**REFERENCE, "python_version": "3.12"})}
    assert with_wheel - without == {"deepsparse"}
    assert [str(r.specifier) for r in wanted() if r.name == "numpy" and r.marker] == ["<2"]


def test_the_workflow_runs_what_is_there_and_only_the_publishing_job_may_write():
    text = (ROOT / ".github/workflows/ci.yml").read_text()
    assert ".ci/run" in re.findall(r"- run: (.*)", text)
    assert os.access(ROOT / ".ci/run", os.X_OK)
    workflow = yaml.safe_load(text)
    test, publish = workflow["jobs"]["test"], workflow["jobs"]["publish"]
    assert workflow["permissions"] == {"contents": "read"}
    assert "permissions" not in test
    assert publish["permissions"] == {"pages": "write", "id-token": "write"}
    assert publish["if"] == "github.ref == 'refs/heads/main'"
    (book,) = (step["with"]["path"] for step in test["steps"] if "pages" in step.get("uses", ""))
    assert f"book/check.py {book}" in (ROOT / "Makefile").read_text()  # where the build has its pages
    assert all("timeout-minutes" in job for job in workflow["jobs"].values())
    assert all(re.fullmatch(r"actions/[a-z-]+@v\d+", name) for name in re.findall(r"uses: (\S+)", text))
    assert f"python:{PYTHON}-" in test["container"]["image"]


def test_the_citation_is_of_this_version_and_of_the_papers_authors():
    about = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (about["version"], about["license"]) == (project["version"], project["license"])
    (paper,) = about["references"]
    names = [a["family-names"] for a in paper["authors"]]
    bibliography = (ROOT / "book/references.bib").read_text()
    assert " and ".join(f"{a['family-names']}, {a['given-names']}" for a in paper["authors"]) in bibliography
    assert all(name in (ROOT / "README.md").read_text() for name in names)
    assert f"version = {{{project['version']}}}" in (ROOT / "book/references.md").read_text()
