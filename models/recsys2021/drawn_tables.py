"""Lookup tables of all training rows of generated data, without their text (the parameter `tables: drawn`).

At scale 1 there are 720 million rows, and tables of hundreds of millions of keys. So ranges of rows are drawn
(`datasets.recsys2021.drawn`) and written to disk in partitions by user: one has all rows of some authors, and all rows of the same users
as readers. Then the sums of each partition are computed in memory. Tables without users have few keys; they are the sums of the ranges'
sums. Several processes work at once. A file that is complete stays, so an interrupted call goes on. The finished tables stay in the cache.
"""

import os
import shutil
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from hashlib import sha256
from json import dumps, loads
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from buzzer import caches, manifest
from buzzer.datasets.contract import silent
from buzzer.datasets.recsys2021 import drawn, generator
from buzzer.datasets.recsys2021.drawn import TrainingRows
from buzzer.datasets.recsys2021.generator import CHUNK, MAXRSS_BYTES, Chunk
from buzzer.datasets.recsys2021.schema import GROUPS, SEPARATOR
from buzzer.datasets.recsys2021.world import EXCLAMATION, MEDIA_PATTERNS, QUESTION
from buzzer.datasets.unfinished import PLAN, unfinished_folder
from buzzer.datasets.workers import in_order, usable_cores
from buzzer.engine import frames
from buzzer.engine.frames import Engine, Frame, token_lists
from buzzer.engine.frames.base import FIRST_CODE
from buzzer.errors import UsageError
from buzzer.models.api import progress
from buzzer.models.recsys2021 import features, vocabulary
from buzzer.models.recsys2021.ensemble import ModelSelection
from buzzer.models.recsys2021.feature_sets import STEPS, TARGETS, FeatureSet, Keys, feature_set
from buzzer.models.recsys2021.fitting import THIRD_WEEK, Fitted
from buzzer.models.recsys2021.lookup_tables import Occurring, load_wanted
from buzzer.models.recsys2021.params import Context

VERSION = 2  # of the files in the cache
RANGE_ROWS = 1 << 20
PARTITION_ROWS = 8_000_000
SPILL_BYTES = 16_000_000_000  # of rows on disk at a time; more rows are drawn in several turns, each for some of the partitions
IN_SAMPLE, FOR_SPLIT = (
    1 << 4,
    1 << 5,
)  # bits after those of the labels: the row is in the training part; `split` trees train on it
USERS = ("a", "b")
COSTS = "costs.json"
USER_CODE = "user-code"  # a table of all users, those in the most rows first

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]


@dataclass(frozen=True)
class Plan:
    """Everything that determines the tables."""

    rows: TrainingRows
    languages: tuple[int, ...]  # the code of each language of the generator
    media: tuple[int, ...]  # the code of each of MEDIA_PATTERNS
    keys: Keys
    raw: Keys  # sums over all rows except those that the `split` trees train on
    users: bool  # whether there are codes of users
    pair_rows: int  # pairs of author and reader in fewer rows have no sums, unless one of the rows is in the training part
    spoken: bool  # whether there is a table of the language that each reader sees most
    vocabulary: str  # file of the vocabulary that keys of words are computed with; "" = a generated one
    continuing: str  # hash of what such keys depend on in the vocabulary; "" = there are none
    partitions: int = 1
    turns: int = 1

    def tables(self, user: str) -> list[tuple[str, str, list[str]]]:
        """Kind, name and keys of the tables that are partitioned by `user`: by the reader, else by the author, else not ("")."""
        kinds: tuple[tuple[str, Keys], ...] = (("train", self.keys), ("raw", self.raw))
        every = [(kind, name, list(keys)) for kind, by in kinds for name, keys in by.items()]
        return [(kind, name, keys) for kind, name, keys in every if partitioned_by(keys) == user]

    def columns(self, user: str) -> list[str]:
        """The key columns of these tables, the user among them."""
        needed = {key for _, _, keys in self.tables(user) for key in keys} | ({user} - {""})
        return sorted(needed | ({"language_code"} if user == "b" and self.spoken else set()))


def partitioned_by(keys: Sequence[str]) -> str:
    """The user by whom the rows for a table are partitioned."""
    return next((user for user in ("b", "a") if user in keys), "")


def plan_of(e: Engine, context: Context, models: ModelSelection, codes: Mapping[str, Frame]) -> Plan:
    """The plan of the tables that the parameters need. Raises DataError for files that were not generated, and UsageError for keys that
    cannot be drawn."""
    rows, chosen = TrainingRows.of(context.data), feature_set(context.params)
    raw = chosen.raw if "split" in models.trees else {}
    for name, keys in {**raw, **chosen.keys}.items():
        if missing := [key for key in keys if set(sources([key])) - {*drawn.COLUMNS}]:
            raise UsageError(f"tables=drawn cannot draw {missing[0]}, a key of {name}", "--set tables=text")
    languages, media = codes_of(e, context.work, codes)
    plan = Plan(
        rows, languages, media, chosen.keys, raw, bool(models.all_networks), context.params.pair_rows,
        chosen.pairs, chosen.vocabulary, continuing(chosen) if chosen.decoded else "",
    )  # fmt: skip
    many = sum(chunk.rows for chunk in rows.chunks())
    size = many * sum(row_type(plan.columns(user)).itemsize for user in USERS)
    partitions = -(-many // PARTITION_ROWS)
    return replace(plan, partitions=partitions, turns=min(-(-size // SPILL_BYTES), partitions))


def continuing(chosen: FeatureSet) -> str:
    """A hash of which pieces of the vocabulary continue a word."""
    return sha256(vocabulary.pieces(chosen.vocabulary).continues.tobytes()).hexdigest()


def codes_of(e: Engine, folder: Path, codes: Mapping[str, Frame]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The codes of all languages and media of the generator, in their order. They are read from text as `fit` reads them."""
    path = drawn.language_texts(folder)
    text = dict.fromkeys(features.CODED.values(), "str")
    t = features.code(e, e.read_csv(path, text, names=list(text), separator=SEPARATOR), codes)
    found = e.to_numpy(t, [f"{name}_code" for name in features.CODED])
    path.unlink()
    many = len(MEDIA_PATTERNS)
    languages, media = found["language_code"][::many], found["media_code"][:many]
    return tuple(map(int, languages)), tuple(map(int, media))


# ---- rows --------------------------------------------------------------------------------------------------------


def group_of(followers: Array) -> Array:
    """The author group of the metric, as in `features.arithmetic`."""
    return np.searchsorted(GROUPS, followers, side="right")


def computed(expression: Callable[[Any], Any], column: str, values: Array) -> Array:
    """An expression of one column by the engine that fits. NumPy divides by a constant with another rounding."""
    t = frames.load("polars").with_columns(pl.LazyFrame({column: values}), out=expression)
    return t.collect()["out"].to_numpy()


def minutes_late(time: Array) -> Array:
    """The column `decline` of `features.arithmetic`."""
    e = frames.load("polars")
    return computed(
        lambda c: sum(features.decline(e, c("time"), noon) for noon in features.LAST_NOONS), "time", time
    )


def in_retweets(kind: Array, values: Array, others: Any) -> Array:
    """The tokens `values` of retweets, and those of other tweets, int64 [rows, SPAN]."""
    return np.asarray(np.where((kind == 1)[:, None], values, others))


def last_mark(end: Array) -> Array:
    """The column of `features.decoded_text`, from the last three tokens, of which the last is [SEP]."""
    question, exclamation = ((end[:, :2] == mark).astype(np.int64).T for mark in (QUESTION, EXCLAMATION))
    both = exclamation[0] * question[1] + question[0] * exclamation[1]
    return np.asarray(question[1] + 2 * exclamation[1] + 2 * both)


def step_of(column: str, width: float) -> tuple[tuple[str, ...], Callable[..., Array]]:
    """The coarse column of `features.steps`."""
    return (column,), lambda values: computed(
        features.whole_part(frames.load("polars"), column, width), column, values
    )


# Key column -> the drawn columns that it is computed from, and how.
DERIVED: dict[str, tuple[tuple[str, ...], Callable[..., Array]]] = {
    **{out: step_of(column, width) for out, (column, width) in STEPS.items()},
    "word": (("begin",), lambda begin: begin[:, 0]),
    "whom": (("type", "begin"), lambda kind, begin: in_retweets(kind, begin, -1)[:, 2]),
    "mention": (
        ("type", "after_1", "after_2"),
        lambda kind, first, second: in_retweets(kind, second, first)[:, 0],
    ),
    "last_mark": (("end",), last_mark),
    "a_group": (("a_followers",), group_of),
    "late": (("time",), lambda time: step_of("decline", STEPS["late"][1])[1](minutes_late(time))),
}
# Key column that is a word -> the drawn columns that its first tokens are computed from, and how.
WORDS: dict[str, tuple[tuple[str, ...], Callable[..., Array]]] = {
    "first_word": (("begin",), lambda begin: begin),
    "retweeted": (("type", "after_1"), lambda kind, first: in_retweets(kind, first, -1)),
    "mention_word": (
        ("type", "after_1", "after_2"),
        lambda kind, first, second: in_retweets(kind, second, first),
    ),
    "second_mention_word": (
        ("type", "after_2", "after_3"),
        lambda kind, second, third: in_retweets(kind, third, second),
    ),
}
MADE = DERIVED | WORDS
CODES = {"language_code": "language", "media_code": "media"}


def sources(needed: Sequence[str]) -> list[str]:
    """The drawn columns that key columns are computed from."""
    lists = [MADE[name][0] if name in MADE else (CODES.get(name, name),) for name in needed]
    return [*dict.fromkeys(name for names in lists for name in names)]


def keyed(plan: Plan, chunk: Chunk, needed: Sequence[str]) -> dict[str, Array]:
    """The key columns `needed` of a chunk's rows, and `bits`: the labels, IN_SAMPLE and FOR_SPLIT."""
    columns: Arrays = drawn.draw(chunk, [*dict.fromkeys([*sources(needed), "time"])])
    code = {"language_code": np.array(plan.languages), "media_code": np.array(plan.media)}
    out: dict[str, Array] = {}
    for name in needed:
        if name in CODES:
            out[name] = code[name][columns[CODES[name]]]
        elif name in MADE:
            names, function = MADE[name]
            out[name] = function(*(columns[source] for source in names))
        else:
            out[name] = columns[name]
        if name in WORDS:
            out[name] = token_lists.word_keys(vocabulary.pieces(plan.vocabulary), out[name])
    at = np.arange(chunk.rows)
    sample = at < chunk.kept
    split = sample & (columns["time"] >= THIRD_WEEK) & ((chunk.at + at) % 5 == 0)
    bits = sum(columns[target].astype(np.uint8) << i for i, target in enumerate(TARGETS))
    out["bits"] = (bits + IN_SAMPLE * sample + FOR_SPLIT * split).astype(np.uint8)
    return out


def row_type(columns: Sequence[str]) -> np.dtype[Any]:
    """The type of a row on disk: users as four bytes, flags, types and codes as one, words and domains as eight."""
    small = {"type", "a_group", *CODES, *(f"{who}_verified" for who in USERS), "follows", "last_mark"}
    sizes = dict.fromkeys(small, "u1") | dict.fromkeys(USERS, "u4") | dict.fromkeys([*WORDS, "domain"], "i8")
    types = {name: sizes.get(name, "i4") for name in columns}
    return np.dtype([*types.items(), ("bits", "u1")])


def ranges(plan: Plan) -> list[list[Chunk]]:
    """The chunks of each range."""
    chunks, many = plan.rows.chunks(), max(RANGE_ROWS // CHUNK, 1)
    return [chunks[at : at + many] for at in range(0, len(chunks), many)]


@dataclass(frozen=True)
class Cost:
    """The CPU seconds of a step, and the highest memory of its process so far."""

    cpu_s: float
    peak_memory_bytes: int

    @classmethod
    def since(cls, began_s: float) -> "Cost":
        """The cost since a value of `time.process_time`."""
        return cls(time.process_time() - began_s, getrusage(RUSAGE_SELF).ru_maxrss * MAXRSS_BYTES)


def write_range(folder: Path, plan: Plan, task: tuple[int, int, list[Chunk]]) -> Cost:
    """Draw a range's rows. Write those of this turn's partitions, sorted by partition, and in the first turn the sums without users.

    task: the turn, the number of the range, its chunks.
    """
    began_s = time.process_time()
    turn, number, chunks = task
    users = {user: plan.columns(user) for user in USERS}
    needed = sorted({*users["a"], *users["b"], *(plan.columns("") if turn == 0 else [])})
    drawn_chunks = [keyed(plan, chunk, needed) for chunk in chunks]
    rows = {name: np.concatenate([part[name] for part in drawn_chunks]) for name in drawn_chunks[0]}
    del drawn_chunks
    for kind, name, keys in plan.tables("") if turn == 0 else []:
        t = sums(pl.DataFrame({key: rows[key] for key in [*keys, "bits"]}).lazy(), kind, keys)
        t.drop("in_sample").collect().write_parquet(folder / f"{kind}-{name}.{number}.range")
    for user, columns in users.items():
        partition = rows[user] % plan.partitions
        chosen = np.flatnonzero(partition % plan.turns == turn)
        order = chosen[np.argsort(partition[chosen], kind="stable")]
        spilled = np.empty(len(order), row_type(columns))
        for name in spilled.dtype.names or ():
            spilled[name] = rows[name][order]
        starts = np.searchsorted(partition[order], np.arange(plan.partitions + 1))
        save(folder / f"{user}{turn}.{number}.starts.npy", starts)
        save(folder / f"{user}{turn}.{number}.rows.npy", spilled)
    return Cost.since(began_s)


def save(path: Path, values: Array) -> None:
    """Write an array. The path exists only when it is complete."""
    partial_path = path.with_suffix(".partial")
    with partial_path.open("wb") as file:
        np.save(file, values)
    partial_path.replace(path)


# ---- sums --------------------------------------------------------------------------------------------------------


def sums(t: pl.LazyFrame, kind: str, keys: Sequence[str]) -> pl.LazyFrame:
    """`Engine.group_sums` of rows with `bits`, and `in_sample`, whether one of a key's rows is in the training part."""
    if kind == "raw":
        t = t.filter(pl.col("bits") & FOR_SPLIT == 0)
    totals = [
        ((pl.col("bits") // (1 << i)) % 2).sum().cast(pl.Int64).alias(f"sum_{x}")
        for i, x in enumerate(TARGETS)
    ]
    in_sample = (pl.col("bits") & IN_SAMPLE > 0).any().alias("in_sample")
    t = t.group_by(list(keys)).agg(*totals, pl.len().cast(pl.Int64).alias("n"), in_sample)
    return t.with_columns(pl.col(key).cast(pl.Int64) for key in keys)


def write_partition(folder: Path, plan: Plan, task: tuple[int, int, int]) -> Cost:
    """Compute the sums of a partition from the rows of all ranges. task: the turn, the number of ranges, the number of the partition."""
    began_s = time.process_time()
    turn, many, number = task
    counts = []
    for user in USERS:
        t = pl.DataFrame(partition_rows(folder, f"{user}{turn}", many, number)).lazy()
        for kind, name, keys in plan.tables(user):
            table = sums(t, kind, keys)
            if {*keys} == {*USERS}:
                table = table.filter((pl.col("n") >= plan.pair_rows) | pl.col("in_sample"))
            write_part(plan, table.drop("in_sample"), folder / f"{kind}-{name}.{number}.part")
        if user == "b" and plan.spoken:
            seen = t.select("b", pl.col("language_code").cast(pl.Int64))
            spoken = features.spoken(frames.load("polars"), seen.select)
            write_part(plan, spoken, folder / f"train-spoken.{number}.part")
        counts.append(t.group_by(pl.col(user).alias("value")).agg(pl.len().cast(pl.Int64).alias("n")))
    if plan.users:
        users = pl.concat(counts).group_by("value").agg(pl.col("n").sum())
        write_part(plan, users, folder / f"{USER_CODE}.{number}.part")
    (folder / f"{number}.done").touch()
    return Cost.since(began_s)


def partition_rows(folder: Path, spill: str, many: int, number: int) -> dict[str, Array]:
    """The columns of a partition's rows in the files of all ranges. spill: the user and the turn, with which the files' names begin."""
    slices = []
    for at in range(many):
        starts = np.load(folder / f"{spill}.{at}.starts.npy")
        rows = np.load(folder / f"{spill}.{at}.rows.npy", mmap_mode="r")
        slices.append(rows[starts[number] : starts[number + 1]])
    whole = np.concatenate(slices)
    return {name: np.ascontiguousarray(whole[name]) for name in whole.dtype.names or ()}


def write_part(plan: Plan, table: pl.LazyFrame, path: Path) -> None:
    """Write a partition of a table, with the ids of users in place of their numbers."""
    t = table.collect()
    users = [name for name in (*USERS, "value") if name in t.columns]
    ids = {name: drawn.user_ids(plan.rows, t[name].to_numpy().astype(np.int64)) for name in users}
    t.with_columns(pl.Series(name, values) for name, values in ids.items()).write_parquet(path)


def join_parts(folder: Path, plan: Plan) -> None:
    """Write each table from the files of its partitions or ranges, which are deleted."""
    for path in sorted({path.name.split(".")[0] for path in folder.glob("*.part")}):
        parts = sorted(folder.glob(f"{path}.*.part"))
        if path == USER_CODE:
            ordered = pl.concat([pl.read_parquet(part) for part in parts]).sort(
                ["n", "value"], descending=[True, False]
            )
            codes = pl.int_range(FIRST_CODE, FIRST_CODE + pl.len(), dtype=pl.Int64).alias("code")
            finish(folder, path, parts, partial(ordered.with_columns(codes).write_parquet))
        else:
            finish(folder, path, parts, pl.scan_parquet(parts).sink_parquet)
    for kind, name, keys in plan.tables(""):
        parts = sorted(folder.glob(f"{kind}-{name}.*.range"))
        if parts:
            finish(folder, f"{kind}-{name}", parts, partial(add_up, parts, keys))


def add_up(parts: list[Path], keys: Sequence[str], out: Path) -> None:
    """Write the sums of several tables of sums, at most about PARTITION_ROWS of their rows at a time."""
    whole = pl.scan_parquet(parts)
    names = [*(f"sum_{target}" for target in TARGETS), "n"]
    turns = -(-height(whole) // PARTITION_ROWS)
    pieces = [out.with_suffix(f".{turn}.piece") for turn in range(turns)]
    for turn, piece in enumerate(pieces):
        chosen = whole.filter(pl.struct(keys).hash() % turns == turn) if turns > 1 else whole
        chosen.group_by(keys).agg(pl.col(column).sum() for column in names).collect().write_parquet(piece)
    pl.scan_parquet(pieces).sink_parquet(out)
    for piece in pieces:
        piece.unlink()


def height(t: pl.LazyFrame) -> int:
    """The number of rows."""
    return int(t.select(pl.len()).collect().item())


def finish(folder: Path, name: str, parts: Sequence[Path], write: Callable[[Path], Any]) -> None:
    """Write a table unless an earlier call has, and delete its parts."""
    path, unfinished = folder / f"{name}.parquet", folder / f"{name}.partial"
    if not path.exists():
        write(unfinished)
        unfinished.replace(path)
    for part in parts:
        part.unlink()


# ---- all tables --------------------------------------------------------------------------------------------------


def make(plan: Plan) -> Generator[None, None, Path]:
    """Draw the tables, unless the cache has them undamaged. Returns their folder: <kind>-<name>.parquet, costs.json and its manifest.
    Yields after each step.

    Raises DataError if they cannot be written.
    """
    text = dumps([VERSION, generator.VERSION, asdict(plan)])
    out = caches.folder() / "drawn" / sha256(text.encode()).hexdigest()[:16]
    if manifest.is_whole(out):
        return out
    with unfinished_folder(out, text, silent) as folder:
        costs, began_s = list[Cost](), time.perf_counter()
        for cost in steps(folder, plan):
            costs.append(cost)
            yield
        join_parts(folder, plan)
        for path in folder.glob("*.done"):
            path.unlink()
        facts = {
            "wall_s": round(time.perf_counter() - began_s, 1),
            "cpu_s": round(sum(cost.cpu_s for cost in costs), 1),
            "peak_memory_bytes": max((cost.peak_memory_bytes for cost in costs), default=0),
        }
        (folder / COSTS).write_text(dumps(facts), encoding="utf-8")
        manifest.seal(folder, without=[PLAN])
    return out


def steps(folder: Path, plan: Plan) -> Generator[Cost, None, None]:
    """Write the partitions of all tables, as far as an earlier call has not. Yields the cost of each step."""
    jobs, by_range = usable_cores(), ranges(plan)
    for turn in progress.over(range(plan.turns)):
        numbers = [n for n in range(turn, plan.partitions, plan.turns) if not (folder / f"{n}.done").exists()]
        if numbers:
            todo = [
                (turn, number, chunks)
                for number, chunks in enumerate(by_range)
                if not (folder / f"b{turn}.{number}.rows.npy").exists()
            ]
            tasks = [(turn, len(by_range), number) for number in numbers]
            stages: list[tuple[Callable[..., Cost], list[Any]]] = [
                (write_range, todo),
                (write_partition, tasks),
            ]
            for work, of_work in progress.over(stages):
                yield from done_by(partial(work, folder, plan), of_work, jobs)
        for path in folder.glob(f"[ab]{turn}.*.npy"):
            path.unlink()


def done_by(work: Callable[[Any], Cost], tasks: Sequence[Any], jobs: int) -> Generator[Cost, None, None]:
    """The costs of the tasks, which are done in at most `jobs` processes."""
    with closing(in_order(work, tasks, min(jobs, len(tasks)))) as costs:
        for done, cost in enumerate(costs, 1):
            yield cost
            progress.report(done / len(tasks))


def fit_tables(
    e: Engine, context: Context, models: ModelSelection, codes: Mapping[str, Frame], occurring: Occurring
) -> Generator[str, None, tuple[Fitted, dict[str, Any]]]:
    """The tables of all training rows, also of those that are not in the training part, saved in the work folder.

    Large ones have only the rows whose keys occur. Also returns the facts of `facts_of`. Yields phases.
    Raises DataError for files that were not generated.
    """
    yield "tables"
    plan = plan_of(e, context, models, codes)
    making = make(plan)
    while True:
        try:
            next(making)
        except StopIteration as done:
            folder: Path = done.value
            break
        yield "tables"
    for path in folder.glob("*.parquet"):
        if path.stem == USER_CODE:
            frequent = pl.scan_parquet(path).filter(pl.col("n") >= context.params.user_rows)
            frequent.sink_parquet(context.work / path.name)
        else:
            link(path, context.work / path.name)
    chosen = feature_set(context.params)
    tables = load_wanted(e, context.work, "train", features.looked_up_by(chosen), occurring)
    raw = (
        load_wanted(e, context.work, "raw", features.raw_looked_up_by(chosen), occurring) if plan.raw else {}
    )
    users = {"code": e.collect(e.read_parquet(context.work / f"{USER_CODE}.parquet"))} if plan.users else {}
    everything = e.read_parquet(context.work / "train-context.parquet")
    means = features.priors(e, {"context": everything})
    fitted = Fitted(codes, users, tables, raw, means, saved=True)
    return fitted, facts_of(folder, plan)


def link(source: Path, target: Path) -> None:
    """A second name of a file, which takes no space; on another file system a copy. Replaces what an interrupted fit left there."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def facts_of(folder: Path, plan: Plan) -> dict[str, Any]:
    """For the record: the rows that were drawn, their scale, the number of keys of each table, and what the tables took."""
    keys = {path.stem: height(pl.scan_parquet(path)) for path in sorted(folder.glob("*.parquet"))}
    rows = sum(chunk.rows for chunk in plan.rows.chunks())
    took = loads((folder / COSTS).read_text(encoding="utf-8"))
    return {"rows": rows, "scale": plan.rows.scale, "keys": keys} | took


def notes(context: Context) -> tuple[str, ...]:
    """For the record: that the tables were drawn, and which pairs they lack."""
    rows, least = TrainingRows.of(context.data), context.params.pair_rows
    dropped = f", without pairs of author and reader in fewer than {least} rows" if least > 1 else ""
    return (f"tables: drawn at scale {rows.scale:g}{dropped}",)
