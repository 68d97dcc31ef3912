"""Synthetic sessions in the schema of the official files. card.md describes the model and its calibration.

Sessions are drawn in chunks, each with a random generator of (seed, chunk), so memory does not grow with their number.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from buzzer.datasets.contract import Progress
from buzzer.datasets.files import append_csv, new_folder
from buzzer.datasets.sigir_ecom.ceiling import Ceiling, Shop
from buzzer.datasets.sigir_ecom.json_file import written
from buzzer.datasets.sigir_ecom.schema import BROWSING, CONTENT, DIMS, NAMES, SEARCH, TESTS, QueryRecord
from buzzer.datasets.sigir_ecom.sessions import intention, merged, recommendation
from buzzer.datasets.sigir_ecom.walk import (
    ACTIONS,
    CHUNK,
    DETAIL,
    NONE,
    PAGE,
    SEARCHED,
    Sessions,
    draw,
)
from buzzer.datasets.sigir_ecom.world import CATALOGUE, DESCRIBED, LAST_DAY, World, hashes, pick

VERSION = 2  # version of the random process: the same version, scale and seed give the same files
TRAIN_SESSIONS, TEST_SESSIONS = 4_934_699, 1_100_000
TRAIN_DAYS = 91
REC_SHARE = 0.62  # share of the test sessions with a later product that become a query of the first task

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


def hexed(kind: str, numbers: Ints, missing: Bools | None = None) -> pl.Series:
    """The id of each number as a string of 64 hexadecimal digits; missing where `missing` is true."""
    unique, back = np.unique(numbers, return_inverse=True)
    texts = pl.Series(hashes(kind, unique).astype("U64").tolist(), dtype=pl.String).gather(back)
    if missing is None:
        return texts
    return texts.to_frame("id").select(pl.when(pl.Series(~missing)).then("id"))["id"]


def browsing(sessions: Sessions, rng: np.random.Generator) -> pl.DataFrame:
    """Rows of the browsing file, shuffled. A product page gives a detail and a pageview at the same time."""
    session, step = np.nonzero((sessions.kind != NONE) & (sessions.kind != SEARCHED))
    kind = sessions.kind[session, step]
    twin = np.flatnonzero(kind == DETAIL)
    at = np.concatenate([np.arange(len(kind)), twin])
    shown = np.concatenate([kind, np.full(len(twin), PAGE)])
    order = rng.permutation(len(at))
    at, shown = at[order], shown[order]
    session, step = session[at], step[at]
    action = pl.Series([ACTIONS.get(k) for k in range(SEARCHED)]).gather(shown)
    table = {
        "session_id_hash": hexed("session", sessions.number[session]),
        "event_type": pl.Series(["pageview", "event_product"]).gather((shown != PAGE).astype(np.int64)),
        "product_action": action,
        "product_sku_hash": hexed("sku", sessions.product[session, step], shown == PAGE),
        "server_timestamp_epoch_ms": sessions.time[session, step],
        "hashed_url": hexed("url", sessions.page[session, step]),
    }
    return pl.DataFrame(table).select(list(BROWSING))


def listed(values: npt.NDArray[Any], digits: int = 9) -> list[str]:
    """Vectors in the format of the official files: Python lists of numbers."""
    return ["[" + ", ".join(f"{x:.{digits}g}" for x in row) + "]" for row in values.tolist()]


def search(world: World, sessions: Sessions, rng: np.random.Generator) -> pl.DataFrame:
    """Rows of the search file: the vector of the query, the products shown, and those clicked."""
    session, step = np.nonzero(sessions.kind == SEARCHED)
    leaf, style = sessions.leaf[session, step], sessions.style[session, step]
    listing = sessions.listing[session, step]
    shown = world.shown[listing]
    clicked = pick(rng, world.shown_weight[listing] * world.liking[style[:, None], world.style[shown]])
    names = hashes("sku", shown.ravel()).astype("U64").reshape(shown.shape)
    none = rng.random(len(shown)) < 0.8
    clicks = [None if no else f"['{row[at]}']" for no, row, at in zip(none, names, clicked, strict=True)]
    table = {
        "session_id_hash": hexed("session", sessions.number[session]),
        "query_vector": pl.Series(listed(world.query(rng, leaf, style)), dtype=pl.String),
        "clicked_skus_hash": pl.Series(clicks, dtype=pl.String),
        "product_skus_hash": pl.Series(
            ["[" + ", ".join(f"'{name}'" for name in row) + "]" for row in names.tolist()], dtype=pl.String
        ),
        "server_timestamp_epoch_ms": sessions.time[session, step],
    }
    return pl.DataFrame(table).select(list(SEARCH))


def content(world: World) -> pl.DataFrame:
    """The catalogue, with products that are never viewed. Two in five products have only an id."""
    more = max(round((CATALOGUE / 57_483 - 1) * world.products), 1)
    n, rng = world.products + more, np.random.default_rng(1)
    described = np.append(rng.random(world.products) < DESCRIBED, np.zeros(more, dtype=bool))
    leaf = np.append(world.leaf, np.zeros(more, dtype=np.int64))
    paths = [
        hexed(level, ids)
        for level, ids in (("main", world.main[leaf]), ("middle", leaf // 2), ("leaf", leaf))
    ]
    padded = np.zeros((more, DIMS))
    texts = pl.DataFrame(
        {
            "product_sku_hash": hexed("sku", np.arange(n)),
            "description_vector": listed(np.vstack([world.description, padded])),
            "category_hash": pl.DataFrame({"a": paths[0], "b": paths[1], "c": paths[2]}).select(
                pl.concat_str("a", "b", "c", separator="/")
            )["a"],
            "image_vector": listed(np.vstack([world.image, padded])),
            "price_bucket": np.append(world.price, np.zeros(more)).astype(np.float64),
        }
    )
    has_content = pl.Series(described)
    columns = [pl.when(has_content).then(name).alias(name) for name in CONTENT if name != "product_sku_hash"]
    shuffled = texts.with_columns(columns).select(list(CONTENT))
    return shuffled[rng.permutation(n).tolist()]


def generate(out: Path, scale: float, seed: int, progress: Progress) -> None:
    """Write browsing_train.csv, search_train.csv, sku_to_content.csv, both test files with labels, and generator.json into the
    new folder `out`.

    Training sessions begin on 91 days, test sessions in the four weeks after. Raises DataError if the files cannot be written.
    """
    world = World(scale)
    total, test = max(round(TRAIN_SESSIONS * scale), 400), max(round(TEST_SESSIONS * scale), 120)
    with new_folder(out) as partial:
        content(world).write_csv(partial / NAMES["content"][0])
        chunk = 0
        with (
            (partial / NAMES["browsing"][0]).open("wb") as pages,
            (partial / NAMES["search"][0]).open("wb") as queries,
        ):
            for start in range(0, total, CHUNK):
                progress(start / (total + test), "generating sessions")
                sessions = draw(world, seed, chunk, min(CHUNK, total - start), (0, TRAIN_DAYS))
                rng = np.random.default_rng([seed, chunk, 1])
                append_csv(pages, browsing(sessions, rng))
                append_csv(queries, search(world, sessions, rng))
                chunk += 1
        counts, best = write_tests(
            partial,
            world,
            seed,
            chunk,
            test,
            lambda x: progress((total + x) / (total + test), "generating tests"),
        )
        facts = {
            "generator": "sigir_ecom",
            "version": VERSION,
            "scale": scale,
            "seed": seed,
            "products": world.products,
            "categories": world.leaves,
            "sessions": total,
            "queries": counts,
            "ceiling": best,
        }
        (partial / "generator.json").write_text(json.dumps(facts, indent=1) + "\n")


def write_tests(
    folder: Path, world: World, seed: int, chunk: int, test: int, progress: Callable[[int], None]
) -> tuple[dict[str, int], dict[str, dict[str, float]]]:
    """Write both test files. Returns the numbers of their queries, and the scores of `ceiling`."""
    rec_path, cart_path = (folder / TESTS[task][0] for task in ("rec", "cart"))
    best = Ceiling(Shop(world))
    with written(rec_path) as rec, written(cart_path) as cart:
        for number, start in enumerate(range(0, test, CHUNK), chunk):
            progress(start)
            sessions = draw(world, seed, number, min(CHUNK, test - start), (TRAIN_DAYS, LAST_DAY))
            rng = np.random.default_rng([seed, number, 1])
            recs, carts = list[QueryRecord](), list[QueryRecord]()
            for session in merged(browsing(sessions, rng), search(world, sessions, rng)):
                wanted = rng.random() < REC_SHARE
                for file, query, kept in (
                    (rec, recommendation(session, rng), recs),
                    (cart, intention(session, rng), carts),
                ):
                    if query is not None and (wanted or file is cart):
                        file.add(query)
                        kept.append(query)
            best.add_next(sessions, *cuts_of(sessions, recs))
            answers = [(query["nb_after_add"], int(str(query["label"]))) for query in carts]
            best.add_carts(sessions, *cuts_of(sessions, carts), answers)
        return {"rec": rec.items, "cart": cart.items}, best.facts()


def cuts_of(sessions: Sessions, queries: list[QueryRecord]) -> tuple[Ints, Ints]:
    """The row of the session of each query, and the number of its actions in the query. Each action has a time of its own."""
    rows = {name: row for row, name in enumerate(hexed("session", sessions.number))}
    row = [rows[query["query"][0]["session_id_hash"]] for query in queries]
    seen = [len({event["server_timestamp_epoch_ms"] for event in query["query"]}) for query in queries]
    return np.array(row, dtype=np.int64), np.array(seen, dtype=np.int64)
