"""Records as untrusted input: mutated ones end in no traceback, and no text of theirs takes effect where it is shown.

200 mutated records; BUZZER_MUTATIONS=2000 makes more, and `-s` shows what became of them.
"""

import copy
import io
import json
import os
import random
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from rich.console import Console
from typer.testing import CliRunner

from buzzer.errors import BuzzerError, DataError
from buzzer.suite import registry
from buzzer.suite.analysis import comparison, regress
from buzzer.suite.cli import app
from buzzer.suite.cli import bench as bench_verb
from buzzer.suite.records import integrity, record
from buzzer.suite.records.schema import Record
from buzzer.suite.report import compare_json, compare_text, console, display, leaderboard, page, readme

MUTATIONS = int(os.environ.get("BUZZER_MUTATIONS", "200"))
BATCH = 40  # mutated records in a folder
ROOT = Path(__file__).parents[3]
EMPTY = f"{readme.BEGIN}\n{readme.END}\n"
SECRET = "/tmp/buzzer-secret-that-no-record-may-open"

MARKUP = [
    "[red]x[/red]",
    "[link=https://evil.example]x[/link]",
    "[/]",
    "[bold",
    ":warning:",
    "\x1b[2J\x1b[31mx",
    "\x1b]8;;https://evil.example\x1b\\x",
    "\x9b31mx\x07",
    "\u202etxt.exe\u2066",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)',
    "' autofocus onfocus='alert(1)",
    "--><script>alert(1)</script>",
    "{{ 7 * 7 }}{% raw %}",
    "a | b | c",
    "x\n\n| a | b |\n| --- | --- |\n| 1 | 2 |",
    "# heading",
    "- item\n- item",
    "1. one",
    "---",
    "> quote",
    "      indented",
    "`code` ``` *em* __strong__ ~~del~~ _em_",
    "[text](javascript:alert(1))",
    "![image](https://evil.example/x.png)",
    "<javascript:alert(1)>",
    "&lt;script&gt; &#60;b&#62;",
    "\\| \\",
    "x" * 5000,
    SECRET,
    f"file://{SECRET}",
    "../../../../etc/passwd",
]
NUMBERS: list[Any] = [
    0, -1, 1, 2**31, 2**53, 2**63, 10**30, 10**400, -(10**400), 0.0, -0.0, 1e-9, 5e-324, 1e-300, 1e-30, 0.5,
    1e30, 1e300, 1.7e308, float("nan"), float("inf"), -float("inf"),
]  # fmt: skip
OTHERS: list[Any] = [
    None, True, False, "", [], {}, [{}], [[]], [0.0], [0.0] * 10, [1e-320], {"": {}}, "2026-01-01T00:00:00",
    "0001-01-01T00:00:00Z", "9999-12-31T23:59:59-12:00", "nan", "\ud800", "\x00",
]  # fmt: skip


DEEP = "deep 0123456789"  # its place is taken by nested lists in the text: Python cannot write them


@pytest.fixture(scope="module")
def bases() -> list[dict[str, Any]]:
    """Real records of every kind: jobs, outcomes, schemas, LoadGen, a model whole and cut."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for path in record.paths([ROOT / "results", Path(__file__).parents[1] / "old_records"]):
        fields = json.loads(path.read_text())
        scenario = fields["config"].get("scenario", "")
        kind = fields["task"], fields["job"], fields["outcome"], scenario, fields["config"].get("layers")
        found.setdefault((*kind, fields["engine"]), fields)
    return list(found.values())


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value; of long lists the first."""
    items = (
        value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    )
    for key, part in items:
        yield (*at, key)
        if len(at) < 6:
            yield from places(part, (*at, key))


def mutated(fields: dict[str, Any], rng: random.Random) -> tuple[str, dict[str, Any]]:
    """A record with one to three wrong places, and its hashes made again."""
    made, kinds = copy.deepcopy(fields), []
    for _ in range(rng.choice([1, 1, 2, 3])):
        at = rng.choice(list(places(made)))
        parent = made
        for key in at[:-1]:
            parent = parent[key]
        kind = rng.choice(["text", "text", "number", "number", "other", "missing", "more", "deep", "long"])
        kinds.append(kind)
        match kind:
            case "text":
                parent[at[-1]] = rng.choice(MARKUP)
            case "number":
                parent[at[-1]] = rng.choice(NUMBERS)
            case "other":
                parent[at[-1]] = rng.choice(OTHERS)
            case "deep":
                parent[at[-1]] = DEEP
            case "long":
                parent[at[-1]] = [rng.choice([0.001, "x", 1])] * 10_000
            case "more" if isinstance(parent, dict):
                parent[rng.choice(MARKUP)] = rng.choice([*MARKUP, *NUMBERS])
            case _:
                del parent[at[-1]]
    return "+".join(sorted(set(kinds))), made


def rehashed(fields: dict[str, Any], rng: random.Random) -> str:
    """The record's text with hashes that fit, as a forger writes it."""
    if isinstance(fields.get("config"), dict) and rng.random() < 0.8:
        fields["config_hash"] = registry.params_hash(fields["config"])
    fields["content_hash"] = record.content_hash(fields)
    depth = rng.choice([3, 20, 200, 900, 100_000])
    return json.dumps(fields).replace(json.dumps(DEEP), "[" * depth + "]" * depth)


# ---- what is looked for in what is shown ---------------------------------------------------------------------------


class Skeleton(HTMLParser):
    """Tags in order, the links, and what would run."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.links: list[str] = []
        self.running: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("href", "src"):
                self.links.append(value or "")
            if name.startswith("on") or name in ("autofocus", "srcdoc", "formaction"):
                self.running.append(f"{tag} {name}")


def rendered(markdown: str) -> str:
    return MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(markdown)


def controls(text: str, allowed: str = "\n") -> set[str]:
    return {c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") and c not in allowed}


def terminal(show: Callable[[Console], object]) -> str:
    """What a colour terminal gets, less rich's own colours."""
    console = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", width=400)
    show(console)
    assert isinstance(console.file, io.StringIO)
    return re.sub(r"\x1b\[[0-9;]*m", "", console.file.getvalue())


def benches(records: Sequence[Record]) -> str:
    """The tables of `buzzer bench`."""
    with redirect_stdout(io.StringIO()) as out:
        bench_verb.show(records, as_json=False)
    return out.getvalue()


def outputs(records: Sequence[Record]) -> dict[str, str]:
    """Everything that shows records, by name of the form."""
    made = {
        "markdown": leaderboard.markdown(records),
        "readme": readme.fill(EMPTY, records),
        "html": page.html(records, {}),
        "svg": console.picture(records),
        "terminal": terminal(lambda terminal_: console.show_boards(records, terminal_)),
        "outcome": "\n".join(display.outcome_text(r) for r in records),
        "bench": benches(records),
    }
    some = next(iter(registry.tasks().values()))
    for name in sorted({r.task for r in records}):
        task = registry.tasks().get(name, some)
        for group in comparison.groups(records, name):
            result = comparison.compare(group, task, None, {}, records)
            changes = regress.changes(group, records, [regress.Threshold("wall", 0.05)], records)
            made["markdown"] += "\n" + compare_text.markdown(result, changes)
            compare_json.data(result, changes).to_json()
            for table in compare_text.tables(result, changes):
                made["terminal"] += terminal(lambda c, t=table: console.show(t, c))
    return made


def assert_harmless(made: dict[str, str]) -> None:
    for name, text in made.items():
        allowed = "\n\t" if name in ("outcome", "svg") else "\n"
        assert not controls(text, allowed), name
    found = Skeleton(made["html"])
    assert found.tags.count("script") == 1
    assert not {"img", "iframe", "object", "b2"} & set(found.tags)
    assert found.running == []
    assert [x for x in found.links if not x.startswith(("#", "data:image/svg"))] == []
    own = set(Skeleton(rendered(leaderboard.markdown([]))).tags) | {"code"}
    for name in ("markdown", "readme"):
        skeleton = Skeleton(rendered(made[name]))
        assert set(skeleton.tags) - own - {"ul", "li"} == set(), name
        assert skeleton.links == []


opened: list[str] | None = None


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and opened is not None:
        opened.append(str(arguments[0]))


sys.addaudithook(_watch)  # stays: there is no way to take one away


@pytest.fixture
def no_secret_opened() -> Iterator[None]:
    global opened
    opened = []
    yield
    paths, opened = opened, None
    assert [p for p in paths if "buzzer-secret" in p or "passwd" in p] == []


# ---- the tests -----------------------------------------------------------------------------------------------------


def command(*arguments: str) -> int:
    """Exit code of a verb, called in this process; 2 for an expected problem. Anything else fails the test."""
    done = CliRunner().invoke(app, arguments)
    if isinstance(done.exception, BuzzerError):
        assert not controls(done.exception.message)
        return 2
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert not controls(done.output), arguments
    return done.exit_code


@pytest.mark.usefixtures("no_secret_opened")
def test_mutated_records_end_in_no_traceback(
    bases: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, counts = random.Random(16), Counter[str]()
    monkeypatch.chdir(tmp_path)
    for batch in range(0, MUTATIONS, BATCH):
        folder = tmp_path / f"r{batch}"
        folder.mkdir()
        readable = []
        for i in range(min(BATCH, MUTATIONS - batch)):
            kind, fields = mutated(rng.choice(bases), rng)
            path = folder / f"m{i}.json"
            path.write_text(rehashed(fields, rng), encoding="utf-8")
            try:
                readable.append(record.read(path))
            except DataError as error:
                assert not controls(error.message)
                counts[f"{kind.split('+')[0]}: no record"] += 1
            else:
                wrong = bool(integrity.check([path])[path])
                counts[f"{kind.split('+')[0]}: {'found by check' if wrong else 'valid'}"] += 1
        assert_harmless(outputs([*readable, *map(Record.model_validate, bases[::8])]))
        name = folder.name
        assert command("check", name) in (0, 1)
        assert command("check", name, "--json") in (0, 1)
        assert command("report", name, "--out", "l.md", "--html", "p.html", "--svg", "s.svg") == 0
        assert command("report", name, "--json") == 0
        assert command("compare", "booking", "--from", name, "--markdown", "c.md") in (0, 2)
    print("\n".join(f"{count:5} {name}" for name, count in sorted(counts.items())))


WORDS = {  # text fields of a record that are shown
    "task", "engine", "backend", "precision", "cluster", "message", "hint", "phase_reached", "metric", "notes",
    "stderr_tail", "command", "git_commit",
}  # fmt: skip


def painted(fields: dict[str, Any], text: str) -> Record:
    """A record with `text` in all its texts, keys of its figures included."""
    made = Record.model_validate(fields).model_dump(mode="json")
    for name in WORDS:
        made[name] = [text] if isinstance(made[name], list) else f"{made[name] or ''}{text}"
    made["budget"] |= {"name": text, "unmet": [text]}
    made["machine"] |= {"cpu": text, "simd": text, "system": text, "gpus": [{"name": text}]}
    made["versions"] = {text: text, "python": text}
    made["data_rows"] = {text: 5}
    for phase in made["phases"]:
        phase["name"] += text if phase["name"] != "score" else ""
    made["samples"] = {
        (name if "run" in name or name == "latency" else f"{name}{text}"): laps
        for name, laps in made["samples"].items()
    }
    made["scores"] = {name if name == "cosine" else f"{name}{text}": v for name, v in made["scores"].items()}
    if made["bench"] and made["bench"]["loadgen"]:
        made["bench"]["loadgen"] = {"result": text, "line": text, "summary": {text: text}}
    return Record.model_validate(made)


@pytest.fixture(scope="module")
def few(bases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A fit, a timed run, and the bench records that have tables and charts."""
    return [b for b in bases if b["job"] == "bench"][:4] + [b for b in bases if b["job"] != "bench"][::16]


@pytest.fixture(scope="module")
def tags(few: list[dict[str, Any]]) -> dict[str, list[str]]:
    return tags_of(outputs([painted(b, "word") for b in few]))


def tags_of(made: dict[str, str]) -> dict[str, list[str]]:
    """The tags that a reader's program sees, in no order: names sort boards."""
    shown = {"html": made["html"]} | {name: rendered(made[name]) for name in ("markdown", "readme")}
    return {name: sorted(Skeleton(text).tags) for name, text in shown.items()}


@pytest.mark.parametrize("text", [text for text in MARKUP if len(text) < 200])
@pytest.mark.usefixtures("no_secret_opened")
def test_text_of_a_record_takes_no_effect(
    few: list[dict[str, Any]], tags: dict[str, list[str]], text: str
) -> None:
    """The same records with a plain word in the text's place have the same tags, in Markdown as in HTML."""
    made = outputs([painted(b, text) for b in few])
    assert_harmless(made)
    assert tags_of(made) == tags
    if text.isprintable():
        shown = text.strip()
        assert shown in made["terminal"]
        assert shown in Skeleton(made["html"]).text
        assert shown in Skeleton(rendered(made["markdown"])).text


def test_a_folder_is_no_scheme(make_record: Callable[..., Record], tmp_path: Path) -> None:
    folder = tmp_path / "javascript:alert(1)"
    path = record.write(make_record(), folder)
    (link,) = page.links_of({"a": path}, tmp_path / "index.html").values()
    assert link.startswith("javascript%3Aalert%281%29/")
    text = page.html([make_record()], {"a" * 32: link})
    assert link in Skeleton(text).links
    assert not [x for x in Skeleton(text).links if x.startswith("javascript:")]
