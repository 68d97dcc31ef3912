"""Writes docs/generated-data.md: published statistics of the competitions' files beside those of generated ones.

`make generated-data` runs it. tests/test_generated_data.py computes the statistics at a smaller scale.
"""

import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from buzzer.datasets import booking, recsys2021, sigir_ecom
from buzzer.datasets.contract import silent
from buzzer.datasets.recsys2021.reader import part_files, rows_of
from buzzer.datasets.recsys2021.schema import GROUPS, LABELLED, LABELS
from buzzer.datasets.sigir_ecom.schema import TESTS
from buzzer.datasets.strict_json import objects

PAGE = Path(__file__).with_name("generated-data.md")
Values = Mapping[str, float]


@dataclass(frozen=True)
class Row:
    """A statistic with its published value."""

    name: str  # also the key of the generated value
    published: float
    source: str  # a key of `Set.sources`
    digits: int = 3
    scaled: bool = False  # the published value is multiplied by the scale

    def shown(self, value: float) -> str:
        """A value as text."""
        return f"{value:,.{self.digits}f}"


@dataclass(frozen=True)
class Set:
    """A data set, its published statistics, and what its generated data cannot say."""

    name: str
    scale: float  # at which the page shows generated values
    generate: Callable[[Path, float], None]
    statistics: Callable[[Path], Values]
    rows: tuple[Row, ...]
    sources: Mapping[str, str]
    limits: tuple[str, ...]


def top_share(counts: np.ndarray, share: float) -> float:
    """The share of all events that the most frequent `share` of the values have."""
    ordered = np.sort(counts)[::-1]
    return float(ordered[: max(round(len(ordered) * share), 1)].sum() / ordered.sum())


# ---- booking ------------------------------------------------------------------------------------------------------


def booking_statistics(folder: Path) -> Values:
    """Statistics of Booking's files."""
    train, test = (
        pl.read_csv(folder / f"{name}_set.csv", try_parse_dates=True) for name in ("train", "test")
    )
    truth = pl.read_csv(folder / "ground_truth.csv")
    lengths = train.group_by("utrip_id").len()["len"]
    nights = (train["checkout"] - train["checkin"]).dt.total_days()
    last = truth["city_id"].value_counts()["count"].to_numpy()
    steps = train.sort("user_id", "checkin").with_columns(next=pl.col("city_id").shift(-1).over("utrip_id"))
    pairs = steps.drop_nulls("next").group_by("city_id", "next").len().sort("len", descending=True)
    best = pairs.group_by("city_id", maintain_order=True).head(4).select("city_id", "next")
    seen = (
        test.filter(pl.col("city_id") != 0)
        .sort("user_id", "checkin")
        .group_by("utrip_id", maintain_order=True)
    )
    final = seen.agg(pl.col("city_id").last()).join(truth.select("utrip_id", true="city_id"), on="utrip_id")
    hits = final.join(best, left_on=["city_id", "true"], right_on=["city_id", "next"], how="inner")
    popular = train["city_id"].value_counts(sort=True)["city_id"][:4]
    devices = train["device_class"].value_counts(normalize=True)
    return {
        "trips of 4 stays": float((lengths == 4).mean()),
        "trips of 5 stays": float((lengths == 5).mean()),
        "trips of 6 stays": float((lengths == 6).mean()),
        "nights of a stay, mean": float(nights.mean()),  # type: ignore[arg-type]
        "desktop": float(devices.filter(pl.col("device_class") == "desktop")["proportion"].item()),
        "stays outside the booker's country": float(
            (train["booker_country"] != train["hotel_country"]).mean()
        ),
        "bookings of a user, mean": train.height / train["user_id"].n_unique(),
        "last cities: the 10 most frequent": float(np.sort(last)[::-1][:10].sum() / last.sum()),
        "last cities: the 100 most frequent": float(np.sort(last)[::-1][:100].sum() / last.sum()),
        "accuracy@4 of the 4 most frequent cities": float(truth["city_id"].is_in(popular.implode()).mean()),
        "accuracy@4 of counts from city to city": hits.height / truth.height,
    }


BOOKING = Set(
    "booking",
    1.0,
    lambda out, scale: booking.generate(out, scale, 0, silent),
    booking_statistics,
    (
        Row("trips of 4 stays", 0.452, "notebook"),
        Row("trips of 5 stays", 0.229, "notebook"),
        Row("trips of 6 stays", 0.126, "notebook"),
        Row("nights of a stay, mean", 1.739, "notebook"),
        Row("desktop", 0.646, "notebook"),
        Row("stays outside the booker's country", 0.904, "notebook"),
        Row("bookings of a user, mean", 5.83, "notebook", 2),
        Row("last cities: the 10 most frequent", 0.114, "truth"),
        Row("last cities: the 100 most frequent", 0.392, "truth"),
        Row("accuracy@4 of the 4 most frequent cities", 0.052, "paper"),
        Row("accuracy@4 of counts from city to city", 0.4363, "paper"),
    ),
    {
        "paper": "Goldenberg and Levin, *Booking.com Multi-Destination Trips Dataset*, SIGIR 2021",
        "truth": "computed from the published ground_truth.csv",
        "notebook": "published notebooks on the official training file (ddofer, Althealam)",
    },
    (
        "The winners' 0.5939 and the best possible score of the generated trips belong to different worlds.",
        "City names, countries and affiliates carry no meaning: nothing outside the file helps, as nothing did in the contest.",
    ),
)

# ---- sigir_ecom ---------------------------------------------------------------------------------------------------


def shop_statistics(folder: Path) -> Values:
    """Statistics of the shop's files."""
    pages = pl.read_csv(folder / "browsing_train.csv").select(
        "session_id_hash", "product_action", "product_sku_hash"
    )
    searches = pl.read_csv(folder / "search_train.csv", columns=["session_id_hash"])
    lengths = pl.concat([pages.select("session_id_hash"), searches]).group_by("session_id_hash").len()["len"]
    products = pages["product_sku_hash"].drop_nulls().value_counts()["count"].to_numpy()
    actions = {
        f"{name}, of the rows": float((pages["product_action"] == name).sum() / pages.height)
        for name in ("detail", "add", "remove", "purchase")
    }
    shares = {
        f"the {q:.0%} most frequent products": top_share(products, q) for q in (0.01, 0.05, 0.1, 0.25, 0.5)
    }
    carts = list(objects(folder / TESTS["cart"][0]))
    labels = np.array([cart["label"] for cart in carts])
    queries = list(objects(folder / TESTS["rec"][0]))
    return {
        "pageviews, of the rows": float(pages["product_action"].is_null().mean()),
        **actions,
        "searches a row": searches.height / pages.height,
        "events of a session, mean": float(lengths.mean()),  # type: ignore[arg-type]
        **{
            f"events of a session, {q:.0%}": float(lengths.quantile(q, "nearest") or 0)
            for q in (0.5, 0.8, 0.9, 0.99)
        },
        **shares,
        "labels of a query of task 1, mean": float(np.mean([len(query["label"]) for query in queries])),
        "carts that are bought": float(labels.mean()),
        "0 everywhere, task 2": zeros(labels, np.array([cart["nb_after_add"] for cart in carts])),
    }


def zeros(labels: np.ndarray, after: np.ndarray) -> float:
    """The score of answering 0 to all carts."""
    answers = [0] * len(labels)
    return sigir_ecom.metric.weighted_micro_f1(answers, labels.tolist(), after.tolist())


SHOP = Set(
    "sigir_ecom",
    0.02,
    lambda out, scale: sigir_ecom.generate(out, scale, 0, silent),
    shop_statistics,
    (
        Row("pageviews, of the rows", 0.711, "eda"),
        Row("detail, of the rows", 0.269, "eda"),
        Row("add, of the rows", 0.0091, "eda", 4),
        Row("remove, of the rows", 0.0088, "eda", 4),
        Row("purchase, of the rows", 0.0022, "eda", 4),
        Row("searches a row", 0.0227, "sizes", 4),
        Row("events of a session, mean", 7.31, "eda", 2),
        Row("events of a session, 50%", 3, "eda", 0),
        Row("events of a session, 80%", 10, "eda", 0),
        Row("events of a session, 90%", 17, "eda", 0),
        Row("events of a session, 99%", 60, "eda", 0),
        Row("the 1% most frequent products", 0.347, "eda"),
        Row("the 5% most frequent products", 0.672, "eda"),
        Row("the 10% most frequent products", 0.817, "eda"),
        Row("the 25% most frequent products", 0.956, "eda"),
        Row("the 50% most frequent products", 0.995, "eda"),
        Row("labels of a query of task 1, mean", 1.70, "eda", 2),
        Row("carts that are bought", 0.21, "eda"),
        Row("0 everywhere, task 2", 3.620, "hakubishin3"),
    ),
    {
        "sizes": "the organisers' README (rows of the files)",
        "eda": "NVIDIA's notebooks in NVIDIA-Merlin/competitions, and their papers of the challenge",
        "hakubishin3": "the paper of team hakubishin3, SIGIR eCom 2021",
    },
    (
        "The catalogue is smaller below scale 1, so the next product is easier to guess: counts have an MRR of .37 at scale 0.01, officially of .27.",
        "Ids, categories and vectors are of an invented shop: vectors have the category and the style of a product, and nothing else that text and images of real products tell.",
        "Purchases are rarer than in the official file, and a cart's chance does not fall as fast with the cut right after the add.",
    ),
)

# ---- recsys2021 ---------------------------------------------------------------------------------------------------


def tweets_statistics(folder: Path) -> Values:
    """Statistics of the training rows of RecSys 2021."""
    reader, author = "enaging_user_", "engaged_with_user_"
    counted = [reader + "id", reader + "follower_count", author + "follower_count"]
    kept = (
        "tweet_type",
        "language",
        "engagee_follows_engager",
        author + "is_verified",
        reader + "is_verified",
    )
    lists = ("present_media", "present_links", "hashtags")
    labels = [pl.col(column).is_not_null().alias(name) for name, column in LABELS.items()]
    empty = [pl.col(name).is_null().alias(f"no {name}") for name in lists]
    tokens = (pl.col("text_tokens").str.count_matches("\t", literal=True) + 1).alias("tokens")
    parts = [
        block.select(*counted, *kept, *labels, *empty, tokens)
        for path in part_files(folder / "train")
        for _, block in rows_of(path, LABELLED)
    ]
    t = pl.concat(parts)
    rates = {name: float(t[name].mean()) for name in LABELS}  # type: ignore[arg-type]
    rows = t.group_by(reader + "id").len()["len"]
    followers = t[author + "follower_count"].to_numpy()
    group = np.searchsorted(np.asarray(GROUPS), followers, side="right")
    means = {
        "TopLevel tweets": float((t["tweet_type"] == "TopLevel").mean()),
        "rows without media": float(t["no present_media"].mean()),  # type: ignore[arg-type]
        "rows without links": float(t["no present_links"].mean()),  # type: ignore[arg-type]
        "rows without hashtags": float(t["no hashtags"].mean()),  # type: ignore[arg-type]
        "reader follows author": float(t["engagee_follows_engager"].mean()),  # type: ignore[arg-type]
        "verified authors": float(t[author + "is_verified"].mean()),  # type: ignore[arg-type]
        "tokens of a tweet, mean": float(t["tokens"].mean()),  # type: ignore[arg-type]
        "rows of the most frequent language": float(t["language"].value_counts()["count"].max() / t.height),  # type: ignore[operator]
        "log of an author's followers, mean": float(np.log1p(followers).mean()),
        "log of a reader's followers, mean": float(np.log1p(t[reader + "follower_count"].to_numpy()).mean()),
        "rows of authors with most followers (group 5)": float((group == len(GROUPS)).mean()),
    }
    nothing = ~(t["reply"] | t["retweet"] | t["quote"] | t["like"])
    return rates | {"no engagement": float(nothing.mean()), "readers a row": len(rows) / t.height} | means


TWEETS = Set(
    "recsys2021",
    0.0005,
    lambda out, scale: recsys2021.generate(out, scale, 0, silent, jobs=1),
    tweets_statistics,
    (
        Row("reply", 0.02903, "winners"),
        Row("retweet", 0.08752, "winners"),
        Row("quote", 0.007013, "winners", 4),
        Row("like", 0.39723, "winners"),
        Row("no engagement", 0.50255, "winners"),
        Row("rows without hashtags", 0.800, "winners"),
        Row("rows without media", 0.64, "sample", 2),
        Row("rows without links", 0.88, "sample", 2),
        Row("TopLevel tweets", 0.60, "sample", 2),
        Row("reader follows author", 0.38, "sample", 2),
        Row("verified authors", 0.21, "sample", 2),
        Row("log of an author's followers, mean", 9.24, "sample", 2),
        Row("log of a reader's followers, mean", 5.27, "sample", 2),
        Row("tokens of a tweet, mean", 46.7, "sample", 1),
        Row("rows of the most frequent language", 0.36, "sample", 2),
        Row("rows of authors with most followers (group 5)", 0.63, "sample", 2),
        Row("readers a row", 0.050, "sample"),
    ),
    {
        "winners": "statistics of all 719,714,693 training rows in the winners' published code and paper (Schifferer et al., RecSys Challenge 2021)",
        "sample": "published notebooks and papers on parts of the official files; ranges are shown by their middle",
    },
    (
        "Token ids have the official vocabulary's frequencies but no grammar, so a language model gains nothing from the order of words.",
        "Users and tweets are hashes of numbers. There is no network of friends beyond whether a reader follows an author.",
        "Below scale 1 there are fewer rows, not fewer rows a user, so encodings of users are as reliable as in the official files.",
    ),
)

SETS = {each.name: each for each in (BOOKING, SHOP, TWEETS)}
GENERAL = (
    "Scores of generated data do not transfer: a model that wins here need not win on the official files, and no score here may be set beside a leaderboard's.",
    "Run times transfer as far as the shapes do: rows, columns, lengths, cardinalities and skew are near the published ones; caches and joins see values of an invented distribution.",
    "Where a generator has a ceiling (`generator.json`; shown beside the scores), the distance to it says how much a model has learned of what can be learned, in this world only.",
    "What nobody has published, such as drift between weeks, bots or the joint distribution of most columns, was not calibrated, and is simpler than in reality.",
)


def statistics(each: Set, scale: float) -> Values:
    """The statistics of a data set that is generated at a scale."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "data"
        each.generate(out, scale)
        found = dict(each.statistics(out))
        facts = out / "generator.json"
        return found | {"version": float(json.loads(facts.read_text())["version"])}


def lines(found: Mapping[str, Values]) -> Iterator[str]:
    """The lines of the page. found: the statistics by data set."""
    yield "# Generated data beside the published statistics"
    yield ""
    yield "The competitions' files belong to their owners, so most runs use generated files. This page shows in what they are alike. `make generated-data` computes the generated values"
    yield "again (seed 0) and writes this page; `tests/test_generated_data.py` computes them at smaller scales. The cards of the data sets (`buzzer data info NAME`) describe the generators."
    for name, values in found.items():
        each = SETS[name]
        yield ""
        yield f"## `{name}`"
        yield ""
        yield f"Generated at scale {each.scale:g}, version {values['version']:.0f} of the generator."
        yield ""
        yield "| | published | generated | source |"
        yield "| --- | ---: | ---: | --- |"
        for row in each.rows:
            yield f"| {row.name} | {row.shown(row.published)} | {row.shown(values[row.name])} | {row.source} |"
        yield ""
        yield "Sources: " + "; ".join(f"*{key}*, {text}" for key, text in each.sources.items()) + "."
        yield ""
        yield from (f"- {text}" for text in each.limits)
    yield ""
    yield "## What generated data cannot say"
    yield ""
    yield from (f"- {text}" for text in GENERAL)


def main() -> None:
    """Write the page."""
    found = {}
    for name, each in SETS.items():
        print(name, file=sys.stderr)
        found[name] = statistics(each, each.scale)
    PAGE.write_text("\n".join(lines(found)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
