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
EMPTY = f"{readme.RESULTS[0]}\n{readme.RESULTS[1]}\n"
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


DEEP = "deep 0123456789"  # replaced in the text by nested lists, which are too deep for Python to write


@pytest.fixture(scope="module")
def bases() -> list[dict[str, Any]]:
    """Real records of every kind: jobs, outcomes, schemas, LoadGen, a model whole and cut."""
    kinds: dict[tuple[Any, ...], dict[str, Any]] = {}
    for path in record.paths([ROOT / "results", Path(__file__).parents[1] / "old_records"]):
        fields = json.loads(path.read_text())
        scenario = fields["config"].get("scenario", "")
        kind = fields["task"], fields["job"], fields["outcome"], scenario, fields["config"].get("layers")
        kinds.setdefault((*kind, fields["engine"]), fields)
    return list(kinds.values())


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a JSON value; of a list only the first two items."""
    items = (
        value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    )
    for key, part in items:
        yield (*at, key)
        if len(at) < 6:
            yield from places(part, (*at, key))


def mutated(fields: dict[str, Any], rng: random.Random) -> tuple[str, dict[str, Any]]:
    """A record with one to three wrong values, and the kinds of the changes."""
    mutant, kinds = copy.deepcopy(fields), []
    for _ in range(rng.choice([1, 1, 2, 3])):
        at = rng.choice(list(places(mutant)))
        parent = mutant
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
    return "+".join(sorted(set(kinds))), mutant


def rehashed(fields: dict[str, Any], rng: random.Random) -> str:
    """The text of a record with matching hashes, as a forger would write it."""
    if isinstance(fields.get("config"), dict) and rng.random() < 0.8:
        fields["config_hash"] = registry.params_hash(fields["config"])
    fields["content_hash"] = record.content_hash(fields)
    depth = rng.choice([3, 20, 200, 900, 100_000])
    return json.dumps(fields).replace(json.dumps(DEEP), "[" * depth + "]" * depth)


# ---- what is checked in the shown texts -----------------------------------------------------------------------------


class Skeleton(HTMLParser):
    """The tags of an HTML text in order, its links, and attributes that would run code."""

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
    """The text on a colour terminal, without rich's own colours."""
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
    """The records in every form in which they are shown, by the name of the form."""
    texts = {
        "markdown": leaderboard.markdown(records),
        "readme": readme.fill(EMPTY, records),
        "html": page.html(records, {}),
        "svg": console.picture(records),
        "terminal": terminal(lambda terminal_: console.show_boards(records, terminal_)),
        "outcome": "\n".join(display.outcome_text(r) for r in records),
        "bench": benches(records),
    }
    any_task = next(iter(registry.tasks().values()))
    for name in sorted({r.task for r in records}):
        task = registry.tasks().get(name, any_task)
        for group in comparison.groups(records, name):
            result = comparison.compare(group, task, None, {}, records)
            changes = regress.changes(group, records, [regress.Threshold("wall", 0.05)], records)
            texts["markdown"] += "\n" + compare_text.markdown(result, changes)
            compare_json.data(result, changes).to_json()
            for table in compare_text.tables(result, changes):
                texts["terminal"] += terminal(lambda c, t=table: console.show(t, c))
    return texts


def assert_harmless(texts: dict[str, str]) -> None:
    for name, text in texts.items():
        allowed = "\n\t" if name in ("outcome", "svg") else "\n"
        assert not controls(text, allowed), name
    skeleton_of_page = Skeleton(texts["html"])
    assert skeleton_of_page.tags.count("script") == 2  # the rows as JSON, and the page's script
    assert not {"img", "iframe", "object", "b2"} & set(skeleton_of_page.tags)
    assert skeleton_of_page.running == []
    assert [x for x in skeleton_of_page.links if not x.startswith(("#", "data:image/svg"))] == []
    allowed_tags = set(Skeleton(rendered("# a\n\n## b\n\nc\n\n| d |\n| --- |\n| `e` |\n")).tags)
    for name in ("markdown", "readme"):
        skeleton = Skeleton(rendered(texts[name]))
        assert set(skeleton.tags) - allowed_tags - {"ul", "li"} == set(), name
        assert skeleton.links == []


opened: list[str] | None = None


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and opened is not None:
        opened.append(str(arguments[0]))


sys.addaudithook(_watch)  # an audit hook cannot be removed


@pytest.fixture
def no_secret_opened() -> Iterator[None]:
    global opened
    opened = []
    yield
    paths, opened = opened, None
    assert [p for p in paths if "buzzer-secret" in p or "passwd" in p] == []


# ---- the tests -----------------------------------------------------------------------------------------------------


def command(*arguments: str) -> int:
    """Run a verb in this process. Returns its exit code, 2 for an expected problem. Any other exception fails the test."""
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
    """A record with `text` in all its text fields and in the keys of its figures."""
    painted_fields = Record.model_validate(fields).model_dump(mode="json")
    for name in WORDS:
        painted_fields[name] = (
            [text] if isinstance(painted_fields[name], list) else f"{painted_fields[name] or ''}{text}"
        )
    painted_fields["budget"] |= {"name": text, "unmet": [text]}
    painted_fields["machine"] |= {"cpu": text, "simd": text, "system": text, "gpus": [{"name": text}]}
    painted_fields["versions"] = {text: text, "python": text}
    painted_fields["data_rows"] = {text: 5}
    for phase in painted_fields["phases"]:
        phase["name"] += text if phase["name"] != "score" else ""
    painted_fields["samples"] = {
        (name if "run" in name or name == "latency" else f"{name}{text}"): laps
        for name, laps in painted_fields["samples"].items()
    }
    painted_fields["scores"] = {
        name if name == "cosine" else f"{name}{text}": v for name, v in painted_fields["scores"].items()
    }
    if painted_fields["bench"] and painted_fields["bench"]["loadgen"]:
        painted_fields["bench"]["loadgen"] = {"result": text, "line": text, "summary": {text: text}}
    return Record.model_validate(painted_fields)


@pytest.fixture(scope="module")
def few(bases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A fit, a timed run, and the bench records that have tables and charts."""
    return [b for b in bases if b["job"] == "bench"][:4] + [b for b in bases if b["job"] != "bench"][::16]


@pytest.fixture(scope="module")
def tags(few: list[dict[str, Any]]) -> dict[str, list[str]]:
    return tags_of(outputs([painted(b, "word") for b in few]))


def tags_of(texts: dict[str, str]) -> dict[str, list[str]]:
    """The tags of each rendered form, sorted, because the order of boards depends on names."""
    shown = {"html": texts["html"]} | {name: rendered(texts[name]) for name in ("markdown", "readme")}
    return {name: sorted(Skeleton(text).tags) for name, text in shown.items()}


@pytest.mark.parametrize("text", [text for text in MARKUP if len(text) < 200])
@pytest.mark.usefixtures("no_secret_opened")
def test_text_of_a_record_takes_no_effect(
    few: list[dict[str, Any]], tags: dict[str, list[str]], text: str
) -> None:
    """The same records with a plain word instead of the text have the same tags, in Markdown and in HTML."""
    texts = outputs([painted(b, text) for b in few])
    assert_harmless(texts)
    assert tags_of(texts) == tags
    if text.isprintable():
        shown = text.strip()
        assert shown in texts["terminal"]
        assert shown in Skeleton(texts["html"]).text
        assert shown in Skeleton(rendered(texts["markdown"])).text


def test_a_folder_name_is_not_taken_for_a_url_scheme(
    make_record: Callable[..., Record], tmp_path: Path
) -> None:
    folder = tmp_path / "javascript:alert(1)"
    path = record.write(make_record(), folder)
    (link,) = page.links_of({"a": path}, tmp_path / "index.html").values()
    assert link.startswith("javascript%3Aalert%281%29/")
    text = page.html([make_record()], {"a" * 32: link})
    assert link in Skeleton(text).links
    assert not [x for x in Skeleton(text).links if x.startswith("javascript:")]
