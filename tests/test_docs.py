"""The documentation names only things that exist: files, modules, commands, make targets and links."""

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from typer.testing import CliRunner

from buzzer.suite.cli import app

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    path
    for pattern in ("README.md", "CONTRIBUTING.md", "docs/*.md", "datasets/*/card.md")
    for path in ROOT.glob(pattern)
)
FOLDERS = ("buzzer", "suite", "engine", "models", "datasets", "configs", "tests", "docs", "results")
LINK = re.compile(r"\]\(([^)\s]+)\)|\b(?:src|srcset|href)=\"([^\"\s]+)\"")
CODE = re.compile(r"```[a-z]*\n(.*?)```", re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
PATH = re.compile(rf"(?:{'|'.join(FOLDERS)})/[\w./-]*")
MODULE = re.compile(r"buzzer(?:\.[A-Za-z_]\w*)+")
WRITTEN_BY_RUNS = "results/local"  # not in the repository
ENTRY_POINT_GROUPS = {"buzzer.tasks", "buzzer.engines", "buzzer.backends", "buzzer.datasets"}
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
COMMAND: Any = typer.main.get_command(app)


def blocks_and_spans(page: Path) -> tuple[list[str], list[str]]:
    """The fenced blocks of code and the code spans of a page."""
    text = page.read_text(encoding="utf-8")
    return CODE.findall(text), SPAN.findall(CODE.sub("", text))


def commands(page: Path) -> Iterator[tuple[list[str], bool]]:
    """The `buzzer` and `make` commands of a page as words, and whether each is a full command from a block of code."""
    blocks, spans = blocks_and_spans(page)
    lines = [(line, True) for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    for line, whole in [*lines, *((span, False) for span in spans)]:
        for part in re.split(r"&&|\|\||[|;&]", line):
            try:
                words = shlex.split(part, comments=True)
            except ValueError:  # not a shell command
                continue
            words = words[: next((i for i, word in enumerate(words) if word.startswith(">")), None)]
            words = [*_without_assignments(words)]
            if words[:1] in (["buzzer"], ["make"]):
                yield words, whole


def _without_assignments(words: list[str]) -> list[str]:
    """The words after leading assignments to environment variables, and without a path before the program."""
    while words and re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    return [words[0].removeprefix(".venv/bin/"), *words[1:]] if words else []


def command_of(words: list[str]) -> tuple[Any, list[str]]:
    """The subcommand that the words after `buzzer` name, and its arguments."""
    command = COMMAND
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        assert words[0] in command.commands, f"no command {words[0]!r}"
        command, words = command.commands[words[0]], words[1:]
    return command, words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
class TestPage:
    def test_links_resolve(self, page: Path) -> None:
        links = [a or b for a, b in LINK.findall(page.read_text(encoding="utf-8"))]
        local = [link.split("#")[0] for link in links if "://" not in link and not link.startswith("#")]
        assert [link for link in local if not (page.parent / link).exists()] == []

    def test_paths_exist(self, page: Path) -> None:
        _, spans = blocks_and_spans(page)
        words = [word.split(":")[0] for span in spans for word in span.split()]
        paths = {
            word.rstrip("/.")
            for word in words
            if PATH.fullmatch(word) and not word.startswith(WRITTEN_BY_RUNS)
        }
        paths |= set(re.findall(r"\bdocs/[\w-]+\.md\b", page.read_text(encoding="utf-8")))
        assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []

    def test_names_of_modules_exist(self, page: Path) -> None:
        blocks, spans = blocks_and_spans(page)
        names = {name for text in [*blocks, *spans] for name in MODULE.findall(text)} - ENTRY_POINT_GROUPS
        assert [name for name in sorted(names) if not exists(name)] == []

    def test_commands_parse(self, page: Path) -> None:
        for words, whole in commands(page):
            if words[0] == "make":
                targets = [word for word in words[1:] if "=" not in word and not word.startswith("-")]
                assert set(targets) <= TARGETS, words
                continue
            command, arguments = command_of(words[1:])
            if whole and not hasattr(command, "commands"):
                command.make_context(command.name, list(arguments))
            options = {name for parameter in command.params for name in parameter.opts} | {"--help"}
            flags = {word.split("=")[0] for word in arguments if word.startswith("--")}
            assert flags <= options, f"{words}: unknown {sorted(flags - options)}"


# Of plug-ins in docs/adding.md and docs/tutorial.md, whose own tests run these commands.
NOT_HERE = ("bent-coins", "busy-hours", "dense", "pandas-mapped")


def plannable(page: Path) -> list[list[str]]:
    """The full commands of a page that make a plan, without those that read records or model files."""
    found = []
    for words, whole in commands(page):
        plans = words[1:2] and words[1] in ("run", "bench", "compare", "frontier")
        reads = {"--from", "--dry-run"} & {*words} or any(word.startswith("path/") for word in words)
        if whole and plans and not reads and not {*words} & {*NOT_HERE}:
            found.append(words[1:])
    return found


@pytest.mark.parametrize("page", [page for page in PAGES if plannable(page)], ids=lambda page: page.name)
def test_commands_make_a_plan(page: Path, tmp_path: Path) -> None:
    """`--dry-run` of every command: names, sizes, parameters and their combinations are those of today."""
    for words in plannable(page):
        arguments = [str(tmp_path) if before == "--data" else word for before, word in pairwise(["", *words])]
        policy = ["--on-unmet-budget", "warn"] if words[0] in ("run", "compare") else []
        done = CliRunner().invoke(app, [*arguments, *policy, "--out", str(tmp_path), "--dry-run"])
        assert done.exit_code == 0, (words, done.output, done.exception)
        assert "timed run" in done.output
        assert not list(tmp_path.iterdir())


PACKAGES = ("buzzer", "suite", "engine", "models", "datasets")
NAMES_A_PAGE = re.compile(r"docs/[\w-]+\.md")


def messages(module: Path) -> list[str]:
    """The texts in a module, without docstrings."""
    tree = ast.parse(module.read_text(encoding="utf-8"))
    statements = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    constants = [
        node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in statements
    ]
    return [node.value for node in constants if isinstance(node.value, str)]


def test_no_message_names_a_page() -> None:
    """An installed package has no docs/: a message says itself what to do."""
    modules = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    texts = {path: messages(path) for path in modules}
    texts |= {path: [str(yaml.safe_load(path.read_text()))] for path in (ROOT / "configs").rglob("*.yaml")}
    assert len(texts) > 300
    assert [path for path, parts in texts.items() if NAMES_A_PAGE.search("\n".join(parts))] == []


def exists(name: str) -> bool:
    """Whether a dotted name is a module, or a name in a module. Optional packages may be missing."""
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:n]))
        except ModuleNotFoundError as error:
            if error.name and not name.startswith(error.name):
                return True  # a package that is not installed here
            continue
        for part in parts[n:]:
            if not hasattr(value, part):
                return False
            value = getattr(value, part)
        return True
    return False
