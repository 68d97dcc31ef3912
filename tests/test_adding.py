"""Tests docs/adding.md: writes and installs the plug-in package of its recipes, and runs the commands of each recipe.

The package is installed into a new environment, without network, as a user of buzzer would do.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pytest

from buzzer.suite.records import record
from buzzer.suite.records.record import Record

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "adding.md"
BLOCK = re.compile(r"^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
TITLE = re.compile(r"^(?:#|<!--) (?P<path>[\w./]+)(?P<more>, more)?(?: -->)?\n")
BUILDS = (70, 1)  # the first setuptools that builds a wheel by itself


@dataclass(frozen=True)
class Recipe:
    """A section of the page: its files, commands, and what these print."""

    title: str
    blocks: list[tuple[str, str]]  # language, text

    def of(self, language: str) -> str:
        return "".join(text for name, text in self.blocks if name == language)

    def write(self, folder: Path) -> None:
        """Write the files of the recipe, or add its lines to existing files."""
        for language, text in self.blocks:
            if language in ("sh", "text"):
                continue
            head = TITLE.match(text)
            assert head, f"a block of {self.title!r} does not begin with its path:\n{text}"
            path = folder / head["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            before = path.read_text() + "\n" if head["more"] else ""
            path.write_text(before + text[head.end() :])


def recipes() -> list[Recipe]:
    sections = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)[1:]
    parts = [(section.partition("\n")[0], BLOCK.findall(section)) for section in sections]
    return [Recipe(title, blocks) for title, blocks in parts]


RECIPES = {recipe.title: recipe for recipe in recipes()}
WITH_COMMANDS = [title for title, recipe in RECIPES.items() if recipe.of("sh")]


@dataclass(frozen=True)
class Environment:
    """A new environment in which the plug-in package is installed."""

    python: Path
    folder: Path  # where commands run

    def run(self, *arguments: str, code: int = 0) -> str:
        """Run `buzzer`. Returns what it prints on stdout and stderr."""
        variables = {"PYTHONPATH": str(ROOT), "BUZZER_CACHE": str(self.folder / "cache"), "COLUMNS": "200"}
        done = subprocess.run(
            [str(self.python), "-m", "buzzer", *arguments],
            cwd=self.folder,
            env=os.environ | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stdout
        return done.stdout

    def records(self) -> list[Record]:
        return list(record.read_good(self.folder / "records"))


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environment]:
    folder = tmp_path_factory.mktemp("adding")
    source, venv = folder / "source", folder / "venv"
    for recipe in RECIPES.values():
        recipe.write(source)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    python = venv / "bin" / "python"
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(venv)}))
    (packages / "running.pth").write_text(f"{sysconfig.get_path('purelib')}\n")  # the libraries of buzzer
    install(source, python, packages)
    yield Environment(python, folder)
    shutil.rmtree(folder, ignore_errors=True)


def install(source: Path, python: Path, packages: Path) -> None:
    """Install the package with pip, or by hand if there is no pip or if setuptools cannot build a wheel."""
    try:
        versions = [metadata.version(name) for name in ("pip", "setuptools")]
    except metadata.PackageNotFoundError:
        versions = ["0", "0"]
    if tuple(map(int, versions[1].split(".")[:2])) >= BUILDS:
        options = (
            "--quiet",
            "--disable-pip-version-check",
            "--no-index",
            "--no-build-isolation",
            "--no-deps",
        )
        subprocess.run([python, "-m", "pip", "install", *options, source], check=True)
        return
    project = tomllib.loads((source / "pyproject.toml").read_text())["project"]
    shutil.copytree(source / "acme", packages / "acme")
    facts = packages / f"acme_buzzer-{project['version']}.dist-info"
    facts.mkdir()
    named = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (facts / "METADATA").write_text(named)
    groups = [
        "\n".join([f"[{group}]", *(f"{name} = {value}" for name, value in entries.items())])
        for group, entries in project["entry-points"].items()
    ]
    (facts / "entry_points.txt").write_text("\n".join(groups) + "\n")


def pattern(text: str) -> re.Pattern[str]:
    """The pattern of a block of output: its lines in this order, with any text for `...`."""
    lines = (".*?".join(map(re.escape, " ".join(line.split()).split("..."))) for line in text.splitlines())
    return re.compile(".*?".join(lines), re.DOTALL)


def test_the_page_has_a_recipe_of_each_kind() -> None:
    wanted = ["a data set", "a task", "an engine", "a backend", "a model of `buzzer bench`"]
    assert [title.lower() for title in WITH_COMMANDS] == wanted
    groups = set(re.findall(r'entry-points\."(buzzer\.\w+)"', PAGE.read_text()))
    from buzzer import plugins

    assert groups == set(plugins.GROUPS)


def test_the_task_is_short() -> None:
    """Without its imports, the task has at most 45 lines."""
    code = next(text for language, text in RECIPES["A task"].blocks if "class Coins" in text)
    assert len(code[code.index("class Coins") :].strip().splitlines()) <= 45


def test_recipes_do_what_the_page_says(environment: Environment) -> None:
    """The commands of each recipe print the output below them. The plug-ins are listed, and their records are valid."""
    for title in WITH_COMMANDS:
        check_commands(RECIPES[title], environment)
    check_listed(environment)
    check_records(environment)


def check_commands(recipe: Recipe, environment: Environment) -> None:
    output = ""
    for line in recipe.of("sh").splitlines():
        program, *arguments = shlex.split(line)
        assert program == "buzzer"
        output += environment.run(*arguments)
    plain = "\n".join(" ".join(line.split()) for line in output.splitlines())
    assert pattern(recipe.of("text")).search(plain), f"{recipe.title}\n{output}"


def check_listed(environment: Environment) -> None:
    """`buzzer list` shows each plug-in with its distribution."""
    listed = environment.run("list")
    for name in ("bent-coins", "pandas-mapped", "traced", "dense", "coins"):
        assert re.search(rf"\b{name} .* acme-buzzer 0\.1\.0 ", listed), name
    assert len(re.findall("acme-buzzer", listed)) == 5
    assert re.search(r"\bpandas-mapped +yes", environment.run("env"))


def check_records(environment: Environment) -> None:
    """The records name the plug-in's version, share a fit, pass the gate and every check, can be scored again, and are in the report."""
    records = environment.records()
    assert {r.versions["acme-buzzer"] for r in records} == {"0.1.0"}
    runs = [r for r in records if r.job == "predict"]
    variants = {("pandas", "torch_eager"), ("polars", "torch_eager")}
    variants |= {("pandas-mapped", "torch_eager"), ("pandas", "traced")}
    assert {(r.engine, r.backend) for r in runs} == variants
    assert len({r.fit_id for r in runs}) == 1
    assert {r.gate.status for r in runs} == {"reference", "passed"}
    benches = {(r.task, r.backend, r.outcome) for r in records if r.job == "bench"}
    assert benches == {("dense", "torch_eager", "ok"), ("dense", "traced", "ok")}
    assert f"{len(records)} of {len(records)} records are valid" in environment.run("check", "records")
    assert "records have their submission's score" in environment.run(
        "data", "rescore", "bent-coins", "records"
    )
    for name in ("leaderboard.md", "page.html"):
        words = set(re.findall(r"[\w-]+", (environment.folder / name).read_text()))
        assert {"pandas-mapped", "traced", "bent-coins", "dense"} <= words
