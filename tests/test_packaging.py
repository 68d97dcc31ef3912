"""Files around the package agree with it: conda environment, Dockerfile, citation, docs site, workflow."""

import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tarfile
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

import buzzer
from buzzer.suite import registry
from buzzer.suite.cli import app

ROOT = Path(__file__).resolve().parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
CONDA = {"xgboost": "py-xgboost", "torch": None, "benchexec": None}  # None: by pip, with the extra `run`


def split(requirement: str) -> tuple[str, str]:
    """Name and version range of a requirement."""
    name = re.match(r"[\w.-]+", requirement)
    assert name
    return name[0], requirement[name.end() :]


def test_the_conda_environment_has_the_versions_of_pyproject() -> None:
    entries = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    listed = dict(split(entry) for entry in entries if isinstance(entry, str))
    (by_pip,) = [entry["pip"] for entry in entries if isinstance(entry, dict)]
    assert "-e .[run]" in by_pip
    for name, wanted in map(split, EXTRAS["run"]):
        if (conda := CONDA.get(name, name)) is not None:
            assert listed[conda] == wanted, name
    rapids = {re.sub(r"-cu(13|da13x)$", "", name): range_ for name, range_ in map(split, EXTRAS["gpu"])}
    for name in ("cudf", "cudf-polars", "dask-cudf", "dask-cuda", "nvforest"):
        assert listed[name] == "=26.10" and rapids[name] == "==26.10.*"
    wanted = dict(map(split, PROJECT["dependencies"]))
    wanted = {name: wanted[name] for name in ("numpy", "psutil", "scipy")} | {"cupy": rapids["cupy"]}
    assert {name: listed[name] for name in wanted} == wanted


BUILDS = 77  # the first setuptools that pyproject.toml allows
BUILD = "from setuptools import build_meta; build_meta.build_sdist('dist')"
OTHERS = ("results", ".*", "*.egg-info", "build", "__pycache__")


@pytest.mark.skipif(int(metadata.version("setuptools").split(".")[0]) < BUILDS, reason="an old setuptools")
def test_the_source_archive_has_the_package_and_its_documentation(tmp_path: Path) -> None:
    """Tests need the repository: an archive with some of them, and without the files that they use, would mislead."""
    shutil.copytree(ROOT, tmp_path / "tree", symlinks=True, ignore=shutil.ignore_patterns(*OTHERS))
    command = [sys.executable, "-c", BUILD]
    done = subprocess.run(command, cwd=tmp_path / "tree", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (archive,) = (tmp_path / "tree" / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        packed = {name.partition("/")[2] for name in tar.getnames()}
    sources = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("docs/*.png")]
    for folder in ("configs", "datasets", "engine", "models", "suite"):
        sources += [path for path in (ROOT / folder).rglob("*.*") if "__pycache__" not in path.parts]
    assert {str(path.relative_to(ROOT)) for path in sources} <= packed
    assert not [name for name in packed if name.startswith("tests")]


def test_the_image_installs_extras_that_exist() -> None:
    text = (ROOT / "Dockerfile").read_text()
    (extras,) = re.findall(r"-e '\.\[([\w,-]+)\]'", text)
    assert set(extras.split(",")) <= set(EXTRAS)
    assert re.search(r"RAPIDS=26\.10-cuda\d+-py3\.\d+\n", text)  # the form of the tags from 25.12 on
    for source in re.findall(r"^COPY (\S+) ", text, flags=re.MULTILINE):
        assert (ROOT / source).exists()
    left_out = (ROOT / ".dockerignore").read_text().split()
    assert ("git" in text.split()) == (".git" not in left_out), "records name the commit of the image"


def test_the_citation_has_the_version() -> None:
    facts = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert facts["version"] == PROJECT["version"] == buzzer.__version__
    assert facts["license"] == PROJECT["license"]
    assert facts["authors"] == PROJECT["authors"]


def test_the_site_has_every_page() -> None:
    def pages(entry: Any) -> list[str]:
        parts = entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list) else ()
        return [entry] if isinstance(entry, str) else [page for part in parts for page in pages(part)]

    named = pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert sorted(named) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))


def test_the_site_links_only_to_what_it_has() -> None:
    """Records and sources outside docs/ are not part of it."""
    (hook,) = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["hooks"]
    on_page = runpy.run_path(str(ROOT / hook))["on_page_markdown"]
    assert (
        on_page("a [b](../results/c.json), ![d](../e.svg), [f](g.md#h)", page=None) == "a b, d, [f](g.md#h)"
    )
    for page in (ROOT / "docs").glob("*.md"):
        links = re.findall(r"\]\(([^)#]+)", on_page(page.read_text()))
        local = [link for link in links if "://" not in link]
        assert [link for link in local if not (page.parent / link).exists() or ".." in link] == []


def workflow_commands() -> list[list[str]]:
    """The `buzzer` commands of the workflow, with its variables filled in."""
    job = yaml.safe_load((ROOT / ".github" / "workflows" / "speed.yml").read_text())["jobs"]["speed"]
    lines = [line.strip() for step in job["steps"] for line in step.get("run", "").splitlines()]
    filled = [
        line.replace("$TASK", job["env"]["TASK"]).replace("$OPTIONS", job["env"]["OPTIONS"]) for line in lines
    ]
    return [shlex.split(line)[1:] for line in filled if line.startswith("buzzer ")]


def test_the_workflow_has_the_keys_that_github_requires() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "speed.yml").read_text())
    assert workflow[True] == "pull_request"  # YAML 1.1 reads the key `on` as true
    for job in workflow["jobs"].values():
        assert job["runs-on"] and all(("uses" in step) != ("run" in step) for step in job["steps"])
        assert all(
            re.fullmatch(r"[\w/-]+@v\d+", step.get("uses", "actions/none@v0")) for step in job["steps"]
        )
        installed = " ".join(step["run"] for step in job["steps"] if step.get("name") == "install")
        assert {*re.findall(r"\.\[([\w,-]+)\]", installed)} <= set(EXTRAS)


@pytest.mark.parametrize("words", workflow_commands(), ids=" ".join)
def test_the_commands_of_the_workflow_are_valid(words: list[str]) -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    context = commands[words[0]].make_context(words[0], words[1:])
    if words[0] == "compare":
        task = registry.task(context.params["task"])
        assert set(context.params["engine"].split(",")) <= set(task.engines)
        assert context.params["rounds"] >= 5
