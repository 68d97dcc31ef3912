"""Runs the recipes of a page of the documentation: files of a plug-in package, commands, and what these print.

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
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from buzzer.suite.records import record
from buzzer.suite.records.schema import Record

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
TITLE = re.compile(r"^(?:#|<!--) (?P<path>[\w./]+)(?P<more>, more)?(?: -->)?\n")
BUILDS = (70, 1)  # the first setuptools that builds a wheel by itself


@dataclass(frozen=True)
class Recipe:
    """A section of the page: its files, commands, and what these print."""

    title: str
    blocks: list[tuple[str, str]]  # language, text

    def of(self, language: str) -> str:
        """The texts of all blocks in a language."""
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


def recipes(page: Path) -> dict[str, Recipe]:
    """The sections of a page by title."""
    sections = re.split(r"^## ", page.read_text(), flags=re.MULTILINE)[1:]
    parts = [(section.partition("\n")[0], BLOCK.findall(section)) for section in sections]
    return {title: Recipe(title, blocks) for title, blocks in parts}


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

    def expand(self, word: str) -> list[str]:
        """The files that a word with wildcards names, as a shell does; else the word."""
        if "*" not in word:
            return [word]
        return [str(path.relative_to(self.folder)) for path in sorted(self.folder.glob(word))]

    def records(self) -> list[Record]:
        """The records in the folder `records`."""
        return [record.read(path) for path in record.paths([self.folder / "records"])]


def environment_with(recipes: Iterable[Recipe], folder: Path) -> Environment:
    """A new environment in `folder`, with the package of these recipes installed. Its commands run in `folder`."""
    source, venv = folder / "source", folder / "venv"
    for recipe in recipes:
        recipe.write(source)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    python = venv / "bin" / "python"
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(venv)}))
    (packages / "running.pth").write_text(f"{sysconfig.get_path('purelib')}\n")  # the libraries of buzzer
    install(source, python, packages)
    return Environment(python, folder)


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
    for part in source.iterdir():
        if part.is_dir():
            shutil.copytree(part, packages / part.name)
        elif part.suffix == ".py":
            shutil.copy(part, packages)
    facts = packages / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    facts.mkdir()
    named = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (facts / "METADATA").write_text(named)
    groups = [
        "\n".join([f"[{group}]", *(f"{name} = {value}" for name, value in entries.items())])
        for group, entries in project["entry-points"].items()
    ]
    (facts / "entry_points.txt").write_text("\n".join(groups) + "\n")


def missing_from(printed: str, expected: str) -> str:
    """The first piece of a block of output that was not printed after the pieces before it; "" if all were.

    A piece is a line, or a part of a line between `...`. Any text may come between two pieces.
    """
    place = 0
    for line in expected.splitlines():
        for piece in filter(None, (part.strip() for part in " ".join(line.split()).split("..."))):
            found = printed.find(piece, place)
            if found < 0:
                return piece
            place = found + len(piece)
    return ""


def check_commands(recipe: Recipe, environment: Environment) -> None:
    """Run the `buzzer` commands of a recipe. What they print must match the recipe's output."""
    output = ""
    for line in recipe.of("sh").splitlines():
        program, *arguments = shlex.split(line, comments=True)
        if program == "buzzer":
            output += environment.run(*(path for word in arguments for path in environment.expand(word)))
    plain = "\n".join(" ".join(line.split()) for line in output.splitlines())
    missing = missing_from(plain, recipe.of("text"))
    assert not missing, f"{recipe.title}: {missing!r} is not in this place of\n{output}"
