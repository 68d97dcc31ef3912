"""The RecSys 2021 pipeline: features against plain Python on every engine, and the whole task."""

import gzip
import math
import shutil
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from buzzer.datasets import recsys2021
from buzzer.datasets.contract import silent
from buzzer.datasets.recsys2021.reader import pieces
from buzzer.datasets.recsys2021.schema import EMPTY, FEATURES, FIRST_SECOND, LABELLED, LABELS, LIST
from buzzer.engine import frames, infer
from buzzer.engine.frames import Engine
from buzzer.engine.frames.base import on_host
from buzzer.errors import DataError, UnsupportedError, UsageError
from buzzer.models.api.context import Data, RunContext
from buzzer.models.recsys2021 import (
    ensemble,
    feature_sets,
    features,
    fitting,
    lookup_tables,
    params,
    second_stage_features,
    trees,
    vocabulary,
)
from buzzer.models.recsys2021.feature_sets import BASIC, FEATURE_SETS, WINNERS, FeatureSet
from buzzer.models.recsys2021.params import Context, Params
from buzzer.models.recsys2021.predicting import pieces_of_test
from buzzer.models.recsys2021.task import TASK
from buzzer.suite import registry
from tests.models.pairs import each_once

Run = Callable[..., Any]
MakeContext = Callable[..., RunContext]
Imported = Callable[[RunContext], set[str]]
TOKENS = 6
MODELS = second_stage_features.MODELS
SMALL = {
    "rounds_1": 4,
    "rounds_2": 4,
    "depth_1": 4,
    "tokens": 8,
    "token_dim": 8,
    "hidden": 8,
    "user_dim": 4,
    "epochs": 1,
}
SMALL |= {"group_rows": 200, "predict_batch": 64, "baseline": True}
WINNERS_SMALL = SMALL | {"features": "winners", "baseline": False}


@pytest.fixture(scope="module")
def lines(data: Data) -> list[dict[str, str]]:
    """The training file by plain Python."""
    text = (data.folder / "train" / "part-00000").read_text().split("\n")[:-1]
    return [dict(zip(LABELLED, line.split("\x01"), strict=True)) for line in text]


def coded(e: Engine, data: Data, columns: FeatureSet = BASIC) -> tuple[Any, dict[str, Any]]:
    read = features.read_part(e, data.folder / "train" / "part-00000", True)
    t = e.collect(features.base(e, read, columns, True, [features.TEXTS]))
    codes = {name: e.collect(table) for name, table in features.fit_codes(e, of(e, t)).items()}
    return e.collect(features.code(e, t, codes)), codes


def tokens_of(e: Engine, t: Any) -> Any:
    return on_host(e.token_matrix(t, features.TEXTS, LIST, TOKENS))


def encoded(e: Engine, t: Any, fitted: dict[str, Any], means: dict[str, float]) -> Any:
    """Columns of rows that the tables were not fitted on."""
    return features.pair_features(e, e.lookups(t, features.lookups(e, fitted, means, BASIC)), BASIC)


def of(e: Engine, t: Any) -> features.Source:
    """A frame's columns, as `fit` reads those of its files."""
    return lambda names: e.select(t, list(dict.fromkeys(names)))


def labels_of(line: dict[str, str]) -> dict[str, int]:
    return {label: int(line[column] != "") for label, column in LABELS.items()}


def plain_mention(tokens: list[str], kind: int) -> int:
    """The token after the first @; for a retweet, which begins with one, after the second."""
    after = [int(tokens[i + 1]) for i, token in enumerate(tokens[:-1]) if token == "137"]
    return after[kind == 1] if len(after) > (kind == 1) else -1


def plain_row(line: dict[str, str]) -> dict[str, float]:
    """The features of `base`, computed from the text of a row."""
    ints = {name: int(line[column]) for name, column in features.COUNTS.items()}
    tokens = line["text_tokens"].split("\t")
    media = line["present_media"].split("\t")
    second = ints["time"] % 86400
    noon = FIRST_SECOND + 20.5 * 86400
    late = noon <= ints["time"] < noon + 43200
    kind = ("TopLevel", "Retweet", "Quote").index(line["tweet_type"])
    return {
        **{name: ints[name] for name in ints if name != "time"},
        **{name: float(line[column] == "true") for name, column in features.FLAGS.items()},
        **{name: len([x for x in line[column].split("\t") if x]) for name, column in features.LISTS.items()},
        **{name: tokens.count(symbol) for name, symbol in features.SYMBOLS.items()},
        **{name: media.count(kind) for name, kind in features.MEDIA.items()},
        "type": kind,
        "word": int(tokens[1]) if len(tokens) > 1 else -1,
        "whom": int(tokens[3]) if kind == 1 and len(tokens) > 3 else -1,
        "mention": plain_mention(tokens, kind),
        "late": int((ints["time"] - noon) / 60 / 7.19) if late else 0,
        "a_followers_step": ints["a_followers"] // 819,
        "a_group": sum(ints["a_followers"] >= limit for limit in (240, 588, 1331, 3996)),
        "weekday": (ints["time"] // 86400 + 3) % 7,
        "hour": second // 3600,
        "minute": second // 60,
        "decline": (ints["time"] - noon) / 60 if late else 0.0,
        "a_ratio": ints["a_followers"] / (ints["a_following"] + 1),
        "b_ratio": ints["b_followers"] / (ints["b_following"] + 1),
        "ab_followers": ints["a_followers"] / (ints["b_followers"] + 1),
        "ab_following": ints["a_following"] / (ints["b_following"] + 1),
        "age_difference": (ints["a_created"] - ints["b_created"]) / 86400,
        "a_age": (ints["time"] - ints["a_created"]) / 86400,
        "b_age": (ints["time"] - ints["b_created"]) / 86400,
    }


def test_features_of_rows_are_those_of_plain_python(
    e: Engine, data: Data, lines: list[dict[str, str]]
) -> None:
    t, _ = coded(e, data)
    want = [plain_row(line) for line in lines]
    texts = [[int(token) for token in line["text_tokens"].split("\t")[:TOKENS] if token] for line in lines]
    assert [[x for x in row if x] for row in tokens_of(e, t).tolist()] == texts
    got = e.to_numpy(t, list(want[0]))
    for name in want[0]:
        np.testing.assert_allclose(got[name], [row[name] for row in want], rtol=1e-6, err_msg=name)
    assert got["decline"].max() > 0  # the file reaches into the last noon
    ids = e.to_numpy(t, ["a", "b", "tweet"])
    assert ids["b"][0] == np.array([int(lines[0]["enaging_user_id"][16:], 16)], np.uint64).view(np.int64)[0]
    assert {labels: e.to_numpy(t, [labels])[labels].tolist() for labels in LABELS} == {
        label: [labels_of(line)[label] for line in lines] for label in LABELS
    }


def test_rows_may_have_the_empty_fields_of_official_files(
    e: Engine, lines: list[dict[str, str]], tmp_path: Path
) -> None:
    empty = lines[0] | dict.fromkeys(EMPTY, "")
    (tmp_path / "part").write_text("\n".join("\x01".join(line.values()) for line in (lines[1], empty)) + "\n")
    t = e.collect(features.base(e, features.read_part(e, tmp_path / "part", True), BASIC, True))
    want = plain_row(empty | {"tweet_type": "TopLevel"})
    got = e.to_numpy(t, [*want, *LABELS])
    for name, value in (want | dict.fromkeys(LABELS, 0)).items():
        np.testing.assert_allclose(got[name][1], value, rtol=1e-6, err_msg=name)


def plain_text(line: dict[str, str]) -> dict[str, float]:
    """The columns of the decoded text, from the text itself."""
    tokens = [int(token) for token in line["text_tokens"].split("\t")]
    kind, found = line["tweet_type"], vocabulary.read("")
    cut = tokens.index(131) if kind == "Retweet" and 131 in tokens else 0
    mentions = [plain_word(tokens, at + 1) for at, token in enumerate(tokens) if token == 137] + [-1] * 3
    text = decoded(tokens).replace("[CLS]", "").replace("[SEP]", "").rstrip()
    starts = [at for at, token in enumerate(tokens) if at and not found[token].startswith("##")]
    second = next((at for at in starts if 2 <= at <= 5), -1)
    whole, head = counted(decoded(tokens)), counted(decoded(tokens[:cut]))
    return {
        **{name: count - (head[name] if name in feature_sets.HEAD else 0) for name, count in whole.items()},
        **{out: head[name] for name, out in feature_sets.HEAD.items()},
        "retweet_marks": sum(found[tokens[at]].lower() == "rt" for at in starts),
        "last_mark": 3 * text.endswith("! ?") or 4 * text.endswith("? !")
        or text.endswith("?") + 2 * text.endswith("!"),
        "first_word": plain_word(tokens, 1),
        "second_word": plain_word(tokens, second) if second >= 0 else -1,
        "retweeted": mentions[0] if kind == "Retweet" else -1,
        "mention_word": mentions[1 if kind == "Retweet" else 0],
        "second_mention_word": mentions[2 if kind == "Retweet" else 1],
        "hashtag": first_hash(line["hashtags"]),
        "domain": first_hash(line["present_domains"]),
        "domain_code": first_hash(line["present_domains"]) % 1000,
    }  # fmt: skip


def decoded(tokens: list[int]) -> str:
    found = vocabulary.read("")
    return " ".join(found[token] for token in tokens).replace(" ##", "").replace("[UNK]", "\ufffd")


def counted(text: str) -> dict[str, int]:
    """Counts in a text; a word that is attached to a marker is not counted as one."""
    words = [word for word in text.split(" ") if word and not word.startswith(("[CLS]", "[SEP]", "##"))]
    visible = text.replace("[CLS]", "").replace("[SEP]", "").replace(" ", "").removeprefix("##")
    return {
        "words": len(words),
        "characters": len(visible),
        "capital_words": sum(word[0].isupper() for word in words),
        "capital_letters": sum(letter.isupper() for letter in visible),
        "line_breaks": visible.count("¶"),
    }


def plain_word(tokens: list[int], start: int) -> int:
    """The ids of the pieces of the word at a position, as far as three."""
    found, own = vocabulary.read(""), tokens[start : start + 1]
    for token in tokens[start + 1 : start + 3]:
        if not found[token].startswith("##"):
            break
        own.append(token)
    return sum(token << 17 * at for at, token in enumerate(own))


def first_hash(joined: str) -> int:
    return int.from_bytes(bytes.fromhex(joined[16:32]), "big", signed=True) if joined else 0


def test_columns_of_the_text_are_those_of_decoding(
    e: Engine, data: Data, lines: list[dict[str, str]]
) -> None:
    """Sums over pieces equal counts in the text that plain Python decodes."""
    want = [plain_text(line) for line in lines]
    t, _ = coded(e, data, WINNERS)
    got = e.to_numpy(t, [name for name in want[0] if name in e.columns(t)])
    assert {"words", "head_words", "last_mark", "first_word", "retweeted", "second_mention_word"} <= set(got)
    for name, values in got.items():
        assert values.tolist() == [row[name] for row in want], name
        assert len(set(values.tolist())) > 1, name


def test_the_vocabulary_comes_from_a_file_or_is_generated(tmp_path: Path) -> None:
    generated = vocabulary.read("")
    assert len(generated) == vocabulary.SIZE == 119_547
    assert [generated[at] for at in (106, 108, 131, 136, 137, 56_898)] == ["!", "#", ":", "?", "@", "RT"]
    (tmp_path / "good.txt").write_text("\n".join([*generated[:-1], "##Été"]) + "\n")
    own = vocabulary.pieces(str(tmp_path / "good.txt"))
    assert own.continues[-1] and own.amounts["characters"][-1] == 3 and own.amounts["words"][-1] == 0
    assert own.amounts["capital_letters"][-1] == 1 and own.amounts["capital_words"][-1] == 0
    assert "generated" in vocabulary.describe("")
    vocabulary.save(tmp_path / "saved.npy", str(tmp_path / "good.txt"))
    kept = vocabulary.saved(tmp_path / "saved.npy")
    assert kept.continues.dtype == bool and kept.continues.tolist() == own.continues.tolist()
    assert {n: x.tolist() for n, x in kept.amounts.items()} == {n: x.tolist() for n, x in own.amounts.items()}
    (tmp_path / "short.txt").write_text("a\nb\n")
    (tmp_path / "other.txt").write_text("\n".join(["[PAD]", *generated[2:], "x"]) + "\n")
    (tmp_path / "bytes.txt").write_bytes(b"\xff" * 100)
    (tmp_path / "long.txt").write_text("\n".join([*generated[:-1], "é" * 256]) + "\n")
    for name in ("short.txt", "other.txt", "bytes.txt", "long.txt", "absent.txt"):
        with pytest.raises(DataError, match=name):
            vocabulary.read(str(tmp_path / name))


def test_winners_read_as_many_columns_as_the_winners() -> None:
    """The winners' counts; two of them were not published exactly (XGB3: 69 to 74, XGB5: 151 to 154)."""
    odds = len([*ensemble.TREES, *ensemble.NETWORKS]) * len(LABELS)
    sizes = {model: len(WINNERS.of(model)) for model in WINNERS.reads}
    sizes |= {f"second_{m}": sizes[f"second_{m}"] + odds + len(WINNERS.week_names(m)) for m in MODELS}
    assert sizes == {
        "trees_kfold": 70, "trees_loo": 77, "trees_split": 71, "pooled": 27, "gru64": 32, "gru128": 36,
        "second_loo": 114, "second_kfold": 150,
    }  # fmt: skip
    read = {name for model in WINNERS.reads for name in WINNERS.of(model)}
    read |= {name for codes in WINNERS.categories.values() for name in codes}
    assert read >= set(WINNERS.names())  # no column is computed in vain


def smoothed(rows: list[dict[str, int]], target: str, prior: float) -> float:
    return (sum(row[target] for row in rows) + 20 * prior) / (len(rows) + 20)


@pytest.mark.parametrize("strategy", ["none", "kfold", "loo"])
def test_target_encodings_by_hand(e: Engine, data: Data, lines: list[dict[str, str]], strategy: str) -> None:
    """Encodings of readers, and of readers looked up among authors: over all rows, over other folds, over other rows."""
    t, _ = coded(e, data)
    fitted = features.fit_tables(e, of(e, t), BASIC)
    means = features.priors(e, fitted)
    labels = [labels_of(line) for line in lines]
    for label in LABELS:
        assert means[label] == pytest.approx(np.mean([row[label] for row in labels]))
    found = encoded(e, t, fitted, means)
    if strategy != "none":
        found = features.encode_own(e, t, fitted, means, strategy, BASIC, source=of(e, t))
    got = e.to_numpy(found, BASIC.names())
    by_reader, by_author = defaultdict(list), defaultdict(list)
    for at, line in enumerate(lines):
        by_reader[line["enaging_user_id"]].append(at)
        by_author[line["engaged_with_user_id"]].append(at)
    left_out = {
        "none": lambda at, i: False,
        "kfold": lambda at, i: at % 5 == i % 5,
        "loo": lambda at, i: at == i,
    }
    for i in range(0, len(lines), 37):
        reader = lines[i]["enaging_user_id"]
        own = [labels[at] for at in by_reader[reader] if not left_out[strategy](at, i)]
        reversed_ = [labels[at] for at in by_author.get(reader, [])]
        for label in LABELS:
            assert got[f"te_b_{label}"][i] == pytest.approx(smoothed(own, label, means[label]), rel=1e-5)
            assert got[f"te_b_as_a_{label}"][i] == pytest.approx(
                smoothed(reversed_, label, means[label]), rel=1e-5
            )
        pairs = sum(
            lines[at]["engaged_with_user_id"] == lines[i]["engaged_with_user_id"] for at in by_reader[reader]
        )
        assert got["met_before"][i] == pairs - (0 if strategy == "none" else 1)


@pytest.mark.parametrize("chosen", FEATURE_SETS.values(), ids=list(FEATURE_SETS))
def test_every_engine_gives_the_same_columns(e: Engine, data: Data, chosen: FeatureSet) -> None:
    oracle = frames.load("pandas")
    wanted = [
        *chosen.names(),
        *chosen.raw_names(),
        *(n for model in MODELS for n in chosen.week_names(model)),
    ]
    columns = {}
    for engine in (oracle, e):
        t, _ = coded(engine, data, chosen)
        fitted = features.fit_tables(engine, of(engine, t), chosen)
        means = features.priors(engine, fitted)
        own = features.encode_own(engine, t, fitted, means, "kfold", chosen, source=of(engine, t))
        raw = features.fit_raw_tables(engine, of(engine, t), chosen)
        counted = lookup_tables.collected(
            engine, second_stage_features.count(engine, partial(engine.select, t), chosen, MODELS)
        )
        wanted_here = [
            *features.raw_lookups(raw, chosen),
            *second_stage_features.count_lookups(counted, chosen),
        ]
        own = engine.collect(engine.lookups(own, wanted_here))
        for model in MODELS:
            week_tables = second_stage_features.fit_tables(engine, partial(engine.select, t), chosen, [model])
            found = engine.to_numpy(
                second_stage_features.encode_own(engine, own, week_tables, means, chosen, model),
                chosen.week_names(model),
            )
            columns[engine.name, model] = found
        columns[engine.name, ""] = engine.to_numpy(
            own, wanted[: -sum(len(chosen.week_names(m)) for m in MODELS)]
        )
    for (engine_name, part), found in columns.items():
        for name, want in columns["pandas", part].items():
            message = f"{engine_name} {part} {name}"
            np.testing.assert_allclose(found[name], want, rtol=1e-6, atol=1e-6, err_msg=message)


def test_raw_sums_are_of_earlier_rows(e: Engine, data: Data, lines: list[dict[str, str]]) -> None:
    """The `split` trees learn from a fifth of the third week, whose labels are in no sum."""
    t, _ = coded(e, data)
    early, late = e.filter(t, lambda c: ~fitting.late(c)), e.filter(t, fitting.late)
    assert e.height(early) + e.height(late) == e.height(t)
    got = e.to_numpy(
        e.lookups(late, features.raw_lookups(features.fit_raw_tables(e, of(e, early), BASIC), BASIC)),
        ["row", "n_b_type", "sum_like_b_type"],
    )
    is_late = [
        int(x["tweet_timestamp"]) >= FIRST_SECOND + 14 * 86400 and i % 5 == 0 for i, x in enumerate(lines)
    ]
    assert got["row"].tolist() == np.flatnonzero(is_late).tolist()
    likes = defaultdict(list)
    for line, own in zip(lines, is_late, strict=True):
        if not own:
            likes[line["enaging_user_id"], line["tweet_type"]].append(labels_of(line)["like"])
    keys = [(lines[i]["enaging_user_id"], lines[i]["tweet_type"]) for i in got["row"]]
    assert got["n_b_type"].tolist() == [len(likes[key]) for key in keys]
    assert got["sum_like_b_type"].tolist() == [sum(likes[key]) for key in keys]
    assert got["sum_like_b_type"].max() > 0


@pytest.mark.parametrize("model", MODELS)
def test_validation_encodings_leave_out_own_labels(
    e: Engine, data: Data, lines: list[dict[str, str]], model: str
) -> None:
    t, _ = coded(e, data)
    means = second_stage_features.priors(e, partial(e.select, t))
    labels = [labels_of(line) for line in lines]
    assert means == pytest.approx({target: np.mean([row[target] for row in labels]) for target in LABELS})
    got = e.to_numpy(
        second_stage_features.encode_own(
            e,
            t,
            second_stage_features.fit_tables(e, partial(e.select, t), BASIC, [model]),
            means,
            BASIC,
            model,
        ),
        ["week_a_like"],
    )
    by_author = defaultdict(list)
    for at, line in enumerate(lines):
        by_author[line["engaged_with_user_id"]].append(at)
    for i in range(0, len(lines), 41):
        same = by_author[lines[i]["engaged_with_user_id"]]
        others = [labels[at] for at in same if (at != i if model == "loo" else at % 5 != i % 5)]
        assert got["week_a_like"][i] == pytest.approx(smoothed(others, "like", means["like"]), rel=1e-5)


def test_the_second_stage_samples_rows_of_tables_over_all_rows(e: Engine, data: Data) -> None:
    t, _ = coded(e, data)
    tables = second_stage_features.fit_tables(e, partial(e.select, t), BASIC, MODELS)
    means = second_stage_features.priors(e, partial(e.select, t))
    keep = fitting.sampled(e.height(t) // 4, e.height(t))
    assert keep is not None
    some = e.collect(e.filter(t, keep))
    whole = partial(e.select, t)
    for model in MODELS:
        names = ["row", *(n for n in BASIC.week_names(model) if n.startswith("week_"))]
        got = e.to_numpy(second_stage_features.encode_own(e, some, tables, means, BASIC, model, whole), names)
        of_all = e.to_numpy(second_stage_features.encode_own(e, t, tables, means, BASIC, model), names)
        chosen = np.isin(of_all["row"], got["row"])
        assert 0 < chosen.sum() < len(chosen) / 3
        for name in names:
            np.testing.assert_array_equal(got[name], of_all[name][chosen], err_msg=f"{model} {name}")


def test_samples_are_the_same_rows_on_every_engine(e: Engine, data: Data) -> None:
    def sample(engine: Engine, rows: int) -> Any:
        keep = fitting.sampled(rows, n)
        assert keep is not None
        return engine.to_numpy(engine.filter(coded(engine, data)[0], keep), ["row"])["row"]

    n = e.height(coded(e, data)[0])
    rows = sample(e, n // 4)
    assert rows.tolist() == sample(frames.load("pandas"), n // 4).tolist()
    assert abs(len(rows) - n // 4) <= 0.02 * n
    assert max(np.bincount(rows % 5)) - min(np.bincount(rows % 5)) <= 0.02 * n  # every fold has its share
    assert set(sample(e, n // 8)) < set(rows)  # what the networks see is encoded with the trees' rows
    assert fitting.sampled(2 * n, n) is None


def test_each_network_has_rows_of_its_own(e: Engine, data: Data) -> None:
    t, _ = coded(e, data)
    n = e.height(t)

    def sample(keep: fitting.Keep | None) -> set[int]:
        return set(e.to_numpy(e.filter(t, keep) if keep else t, ["row"])["row"].tolist())

    few = n // 4
    among = sample(fitting.sampled(3 * few, n))
    own = [sample(fitting.own_sample(number, few, 3 * few, n)) for number in range(4)]
    # After all rows of the sample come the first again.
    assert own[0] == sample(fitting.sampled(few, n)) == own[3]
    assert own[0] | own[1] | own[2] == among and sum(map(len, own[:3])) == len(among)
    wrapped = sample(fitting.own_sample(2, n // 3, 3 * few, n))  # the last rows of the sample, and the first
    assert wrapped < among and len(wrapped) == pytest.approx(n / 3, abs=0.02 * n)
    for rows in (own[1], wrapped):  # every fold has its share
        folds = np.bincount(np.array([*rows]) % 5)
        assert max(folds) - min(folds) <= 0.02 * n
    assert sample(fitting.own_sample(1, n, 3 * few, n)) == among
    assert fitting.own_sample(1, n, n, n) is None


def test_rows_in_files_equal_those_of_one_frame(
    e: Engine, data: Data, make_context: MakeContext, tmp_path: Path, lines: list[dict[str, str]]
) -> None:
    """Rows are cut into pieces, coded and read by column."""
    settings = {"piece_rows": len(lines) // 3 + 1}
    context = make_context("recsys2021", data, tmp_path, tmp_path, e.name, "torch_eager", **settings)
    rows = fitting.read_all(e, TASK.typed(context), "train", [features.TEXTS])
    assert len(rows.files) == 3 and rows.height == len(lines)
    fitting.code(rows, lookup_tables.collected(e, features.fit_codes(e, rows.columns)))
    names = ["a_followers", "language_code", "media_code", "like", "row"]
    whole = coded(e, data)[0]
    np.testing.assert_array_equal(tokens_of(e, rows.columns([features.TEXTS])), tokens_of(e, whole))
    got, want = (e.to_numpy(t, names) for t in (rows.columns(names), whole))
    for name in names:
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)
    some = e.to_numpy(rows.columns(["like"], lambda c: (c("row") % 2 == 0) & (c("like") == 1)), ["row"])
    assert some["row"].tolist() == np.flatnonzero((want["row"] % 2 == 0) & (want["like"] == 1)).tolist()
    rows.unlink()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("whole_bytes", [0, 20_000])
@pytest.mark.parametrize("counted", [True, False])
def test_only_rows_with_wanted_keys_are_read(
    e: Engine, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole_bytes: int, counted: bool
) -> None:
    """Of tables above a size; the keys of some columns are those of the counts, if there are any."""
    monkeypatch.setattr(lookup_tables, "BYTES_OF_ROW", whole_bytes // 10)
    t, _ = coded(e, data)
    few = e.collect(e.filter(t, lambda c: c("row") % 50 == 0))
    everything = features.fit_tables(e, of(e, t), BASIC)
    lookup_tables.save(e, tmp_path, "train", everything)
    pieces_of_few = []
    for half in (0, 1):
        pieces_of_few.append(tmp_path / f"piece{half}.parquet")
        e.write_parquet(e.filter(few, lambda c, half=half: c("row") % 100 // 50 == half), pieces_of_few[-1])
    columns = [partial(e.read_parquet, path) for path in pieces_of_few]
    counts = second_stage_features.count(e, partial(e.select, few), BASIC, MODELS) if counted else {}
    known = second_stage_features.counted_keys(lookup_tables.kept(e, counts), BASIC)
    occurring = lookup_tables.Occurring(e, columns, 10, known)
    found = lookup_tables.load_wanted(e, tmp_path, "train", features.looked_up_by(BASIC), occurring)
    means = features.priors(e, everything)
    got, want = (e.to_numpy(encoded(e, few, x, means), BASIC.names()) for x in (found, everything))
    for name in BASIC.names():
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)
    assert e.height(found["ab"]) < e.height(everything["ab"]) / 10
    small = {name for name in found if (tmp_path / f"train-{name}.parquet").stat().st_size <= whole_bytes}
    assert bool(small) == bool(whole_bytes) and "ab" not in small
    assert all(e.height(found[name]) == e.height(everything[name]) for name in small)
    assert set(found) == set(everything)


def test_counts_of_pieces_add_up(e: Engine, data: Data) -> None:
    t, _ = coded(e, data)
    halves = [e.filter(t, lambda c, half=half: c("row") % 2 == half) for half in (0, 1)]

    def looked_up(counted: dict[str, Any]) -> Any:
        return e.collect(e.lookups(t, second_stage_features.count_lookups(counted, BASIC)))

    whole = looked_up(
        lookup_tables.collected(e, second_stage_features.count(e, partial(e.select, t), BASIC, MODELS))
    )
    parts = [
        lookup_tables.collected(e, second_stage_features.count(e, partial(e.select, half), BASIC, MODELS))
        for half in halves
    ]
    summed = lookup_tables.collected(e, second_stage_features.add_up(e, parts, BASIC))
    names = [f"rows_{name}" for name in BASIC.counted]
    got, want = (e.to_numpy(x, names) for x in (looked_up(summed), whole))
    for name in names:
        assert got[name].tolist() == want[name].tolist()
    assert max(want["rows_b"]) > 1


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_pieces_have_every_line_once_and_leave_nothing(tmp_path: Path, suffix: str) -> None:
    text = b"".join(b"%d\n" % i for i in range(25))
    path = tmp_path / f"part-00000{suffix}"
    path.write_bytes(gzip.compress(text) if suffix else text)
    found = [piece.read_bytes() for piece in pieces(path, tmp_path, 10)]
    assert b"".join(found) == text
    assert [piece.count(b"\n") for piece in found] == [10, 10, 5]
    assert list(tmp_path.iterdir()) == [path]
    assert list(pieces(path, tmp_path, 25)) == (
        [path] if not suffix else [tmp_path / f".{path.name}.0.piece"]
    )


def test_leave_one_out_reads_rounded_encodings() -> None:
    for names in (BASIC.names(), BASIC.week_names("loo"), BASIC.week_names("kfold")):
        x = np.linspace(0, 1, 3 * len(names), dtype=np.float32).reshape(3, -1) + np.float32(1e-4)
        want = [
            col.round(3) if name.startswith(("te_", "week_")) else col
            for name, col in zip(names, x.T, strict=True)
        ]
        np.testing.assert_array_equal(ensemble.read_by("loo", x, names).T, want)
        assert ensemble.read_by("kfold", x, names) is x


def test_models_read_their_own_columns(network_rows: dict[str, Any]) -> None:
    """A set whose models read some columns, in another order."""
    import torch

    from buzzer.models.recsys2021.networks import Columns

    some = [BASIC.names()[at] for at in (40, 3, 17)]
    chosen = replace(BASIC, reads={"trees_loo": some, "pooled": some}, categories={"pooled": {"type": 3}})
    x = network_rows["batch"]["features"]
    want = x[:, [40, 3, 17]]
    np.testing.assert_array_equal(ensemble.Selection(chosen, "trees_loo").of(x), want)
    assert ensemble.Selection(chosen, "trees_kfold").of(x) is x
    assert set(chosen.keys_of(["trees_loo"])) == {
        name for name in chosen.keys if any(column.startswith(f"te_{name}_") for column in some)
    }
    columns = Columns(chosen.network("pooled"))
    np.testing.assert_allclose(columns.logs(torch.from_numpy(x)).numpy(), np.log1p(want), rtol=1e-5)
    assert columns(torch.from_numpy(x)).shape == (len(x), 3 + 4)


def test_log_odds_are_the_inverse_of_the_sigmoid() -> None:
    p = np.array([[0.0, 0.25, 0.5, 1.0]])
    back = 1 / (1 + np.exp(-trees.log_odds(p).astype(float)))
    np.testing.assert_allclose(back, [[1e-6, 0.25, 0.5, 1 - 1e-6]], rtol=1e-4)
    assert math.isfinite(trees.log_odds(p).sum())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"trees": ["kfolds"]}, "kfolds"),
        ({"networks": ["gru"]}, "gru"),
        ({"second": ["split"]}, "split"),
        ({"features": "winner"}, "winner"),
        ({"vocabulary": "vocab.txt"}, "does not read a vocabulary"),
        ({"trees": [], "networks": []}, "no model of the first stage"),
    ],
)
def test_unknown_models_are_refused(wrong: dict[str, list[str]], message: str) -> None:
    defaults = registry.task("recsys2021").params
    plain = defaults | {"trees": ["kfold"], "networks": [], "second": [], "baseline": False}
    assert ensemble.select_models(Params.read("recsys2021", plain)).first == ["trees_kfold"]
    with pytest.raises(UsageError, match=message):
        ensemble.select_models(Params.read("recsys2021", plain | wrong))


# ---- networks ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network_rows() -> dict[str, Any]:
    """Rows whose likes depend on the reader and on a word."""
    rng = np.random.default_rng(0)
    n = 600
    tokens = rng.integers(1000, 1010, (n, 8)).astype(np.int32)
    tokens[np.arange(8) >= rng.integers(1, 9, n)[:, None]] = 0
    users = rng.integers(0, 6, (n, 2))
    likes = (users[:, 1] % 2 == 0) | (tokens == 1003).any(axis=1)
    x = rng.exponential(100, (n, len(BASIC.names()))).astype(np.float32)
    y = np.stack([np.zeros(n), np.zeros(n), np.zeros(n), likes], axis=1).astype(np.float32)
    return {"batch": {"features": x, "tokens": tokens, "users": users}, "y": y}


@pytest.fixture(scope="module")
def network_context(
    data: Data, tmp_path_factory: pytest.TempPathFactory, make_context: MakeContext
) -> Context:
    from buzzer.models.recsys2021 import network_training

    work = tmp_path_factory.mktemp("networks")
    settings = SMALL | {"epochs": 8, "batch": 64, "lr": 0.01, "networks": list(params.NETWORKS)}
    context = TASK.typed(make_context("recsys2021", data, work, work, "polars", "torch_eager", **settings))
    network_training.prepare(context, ensemble.select_models(context.params).all_networks, 4)
    return context


@pytest.mark.parametrize("name", [*params.NETWORKS, params.BASELINE])
def test_networks_learn_and_do_not_see_padding(
    name: str, network_rows: dict[str, Any], network_context: Context, run: Run
) -> None:
    import torch

    from buzzer.models.recsys2021 import network_training

    history, _ = run(network_training.fit(network_context, name, network_rows["batch"], network_rows["y"]))
    losses = [epoch["loss"] for epoch in history]
    assert losses[-1] < 0.9 * losses[0]
    batch = {key: torch.from_numpy(value) for key, value in network_rows["batch"].items()}
    network = network_training.trained(name, network_context.work)
    with torch.inference_mode():
        whole = network(**batch)
        longer = network(**batch | {"tokens": torch.nn.functional.pad(batch["tokens"], (0, 5))})
        alone = network(**{key: value[:1] for key, value in batch.items()})
    assert whole.shape == (600, 4)
    torch.testing.assert_close(longer, whole)
    torch.testing.assert_close(alone, whole[:1], rtol=1e-5, atol=1e-6)
    likes = network_rows["y"][:, 3]
    if name != params.BASELINE:  # which sees neither readers nor words
        assert whole[likes == 1, 3].mean() > whole[likes == 0, 3].mean() + 0.08


def test_columns_are_scaled_logarithms(network_rows: dict[str, Any]) -> None:
    import torch

    from buzzer.models.recsys2021.networks import Columns

    columns, x = Columns(BASIC.network("pooled")), network_rows["batch"]["features"].copy()
    x[:, 5], x[:, 6] = -x[:, 6], 7.0  # a negative and a constant column
    columns.fit(torch.from_numpy(x))
    logs = np.sign(x) * np.log1p(np.abs(x.astype(np.float64)))
    spread = logs.std(axis=0, ddof=1)
    want = np.clip((logs - logs.mean(axis=0)) / np.where(spread > 1e-6, spread, 1), -5, 5)
    np.testing.assert_allclose(columns.scaled(torch.from_numpy(x)).numpy(), want, atol=2e-4)


def test_token_vectors_come_from_a_file_or_a_seed(tmp_path: Path) -> None:
    from buzzer.models.recsys2021.network_training import token_vectors
    from buzzer.models.recsys2021.networks import VOCABULARY

    a, told = token_vectors("", 4, 1)
    assert a.shape == (VOCABULARY, 4) and "random, seed 1" in told
    assert (a == token_vectors("", 4, 1)[0]).all() and (a != token_vectors("", 4, 2)[0]).any()
    np.save(tmp_path / "good.npy", a[:, :3])
    found, told = token_vectors(str(tmp_path / "good.npy"), 4, 1)
    assert (found == a[:, :3]).all() and "good.npy" in told
    np.save(tmp_path / "short.npy", a[:5])
    (tmp_path / "text.npy").write_text("no array")
    for name in ("short.npy", "text.npy", "absent.npy"):
        with pytest.raises(DataError, match=name):
            token_vectors(str(tmp_path / name), 4, 1)


# ---- the whole task -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted(data: Data, tmp_path_factory: pytest.TempPathFactory, make_context: MakeContext, run: Run) -> Path:
    """The work folder of all models."""
    work = tmp_path_factory.mktemp("work")
    result, phases = run(
        TASK.fit(make_context("recsys2021-full", data, work, work, "polars", "torch_eager", **SMALL))
    )
    assert phases == ["load", "features", "transfer", "trees", "networks", "write", "score"]
    assert result.rows == data.rows["train"]
    assert set(result.details["validation"]) == {
        "trees_kfold",
        "trees_loo",
        "trees_split",
        "pooled",
        "gru64",
        "gru128",
        "logistic",
    }
    assert result.details["token_vectors"].startswith("token vectors: random")
    return work


def test_the_long_phases_of_a_fit_report_their_share(
    trees_context: MakeContext, tmp_path: Path, shares_of: Any
) -> None:
    first = dict[str, list[float]]()
    for name, shares in shares_of(TASK.fit(trees_context(tmp_path, tmp_path)))[1]:
        first.setdefault(name, shares)
    for name in ("load", "features", "trees"):
        assert len(first[name]) > 3 and first[name][-1] == pytest.approx(1.0)


@pytest.fixture(scope="module")
def reference(
    data: Data, fitted: Path, tmp_path_factory: pytest.TempPathFactory, make_context: MakeContext, run: Run
) -> Any:
    out = tmp_path_factory.mktemp("reference")
    result, _ = run(
        TASK.predict(make_context("recsys2021-full", data, fitted, out, "pandas", "torch_eager", **SMALL))
    )
    return result.scores, pd.read_csv(out / "results.csv", header=None)


@pytest.fixture(scope="module")
def fitted_winners(
    data: Data, tmp_path_factory: pytest.TempPathFactory, make_context: MakeContext, run: Run
) -> tuple[Path, Any]:
    """The work folder of all models on the winners' columns, and their scores."""
    work, out = (tmp_path_factory.mktemp(name) for name in ("winners", "out"))
    settings = (data, work, out, "polars", "torch_eager")
    result, _ = run(TASK.fit(make_context("recsys2021-full", *settings, **WINNERS_SMALL)))
    assert result.details["vocabulary"] == "vocabulary: generated"
    assert result.details["columns"] == len(WINNERS.names())
    scores = run(TASK.predict(make_context("recsys2021-full", *settings, **WINNERS_SMALL)))[0].scores
    return work, scores


@pytest.mark.parametrize(
    ("e", "backend", "piece_rows"),
    [(*pair, 300) for pair in each_once(registry.task("recsys2021").backends)]
    + [(*pair, 10**6) for pair in each_once([])],
    indirect=["e"],
)
def test_engines_backends_and_pieces_score_the_same(
    e: Engine,
    backend: str,
    piece_rows: int,
    data: Data,
    fitted: Path,
    reference: Any,
    tmp_path: Path,
    make_context: MakeContext,
    run: Run,
) -> None:
    if not infer.installed(backend):
        pytest.skip(f"{backend} is not installed")
    settings = SMALL | {"piece_rows": piece_rows}
    done = make_context("recsys2021-full", data, fitted, tmp_path, e.name, backend, **settings)
    result, phases = run(TASK.predict(done))
    assert phases == ["load", "preprocess", "features", "transfer", "trees", "networks", "write", "score"]
    assert result.details["pieces"] == -(-data.rows["test"] // piece_rows)
    # Trees of another library differ in the last digit, which crosses some thresholds of the second stage.
    share = 1.0 if infer.split_backend(backend)[1] == "xgboost" else 0.99
    assert result.scores == pytest.approx(reference[0], abs=1e-3 if share == 1 else 0.05)
    got = pd.read_csv(tmp_path / "results.csv", header=None)
    assert got[[0, 1]].equals(reference[1][[0, 1]])
    assert np.isclose(got[[2, 3, 4, 5]], reference[1][[2, 3, 4, 5]], rtol=1e-7, atol=1e-5).mean() >= share
    assert [path.name for path in tmp_path.iterdir()] == ["results.csv"]


def test_rows_that_share_a_text_score_as_rows_alone(
    data: Data, fitted: Path, reference: Any, tmp_path: Path, make_context: MakeContext, run: Run
) -> None:
    """With batches of one row no text is shared."""
    settings = SMALL | {"predict_batch": 1}
    run(
        TASK.predict(
            make_context("recsys2021-full", data, fitted, tmp_path, "polars", "torch_eager", **settings)
        )
    )
    got = pd.read_csv(tmp_path / "results.csv", header=None)
    assert got[[0, 1]].equals(reference[1][[0, 1]])
    np.testing.assert_allclose(got[[2, 3, 4, 5]], reference[1][[2, 3, 4, 5]], atol=1e-5)


class Served:
    """A session that records its backend and cannot predict."""

    def __init__(self, backend: str) -> None:
        self.backend = backend


@pytest.mark.parametrize(
    ("backend", "networks", "on_trees"),
    [
        ("torch_eager", "torch_eager", "xgboost"),
        ("onnxruntime", "onnxruntime", "xgboost"),
        ("openvino", "openvino", "xgboost"),
        ("nvforest", "torch_eager", "nvforest"),
        ("tl2cgen", "torch_eager", "tl2cgen"),
        ("onnxruntime+forest", "onnxruntime", "forest"),
        ("openvino+forest", "openvino", "forest"),
    ],
)
def test_a_backend_of_trees_runs_the_trees(
    backend: str,
    networks: str,
    on_trees: str,
    data: Data,
    fitted: Path,
    make_context: MakeContext,
    monkeypatch: Any,
) -> None:
    """Each kind of model runs on the backend that was asked for, or on the default of its kind."""
    monkeypatch.setattr("buzzer.engine.infer.prepare", lambda model, *, backend, **rest: Served(backend))
    asked = TASK.typed(make_context("recsys2021-full", data, fitted, fitted, "polars", backend, **SMALL))
    models = ensemble.select_models(asked.params)
    first, second = ensemble.FirstStage(asked, models), ensemble.SecondStage(asked, models)
    of_trees = [*first.trees.values(), *first.grouped.by_group, *second.models.values()]
    assert {t.session.backend for t in of_trees} == {on_trees}
    assert {network.session.backend for bags in first.networks.values() for network in bags} == {networks}


@pytest.mark.parametrize("of_trees", ["nvforest", "forest"])
def test_other_trees_predict_as_xgboost_does(
    of_trees: str, data: Data, fitted: Path, reference: Any, make_context: MakeContext
) -> None:
    """Both stages, from the same rows and log odds; values are at the trees' thresholds, and some are missing."""
    if not infer.installed(of_trees):
        pytest.skip(f"{of_trees} is not installed")
    rng = np.random.default_rng(0)

    def rows(width: int) -> Any:
        x = rng.integers(0, 9, (3000, width)).astype(np.float32)
        return np.where(rng.random(x.shape) < 0.05, np.nan, x)

    raw = rows(len(BASIC.raw_names()))
    raw[:, BASIC.raw_names().index("a_group")] = rng.integers(0, 5, 3000)
    read = ensemble.Inputs(rows(len(BASIC.names())), raw, None, None)
    beside = {name: rows(len(BASIC.week_names(name))) for name in MODELS}
    of_networks = [rng.normal(-2, 1, (3000, 4)).astype(np.float32) for _ in params.NETWORKS]
    found = dict[str, Any]()
    for backend in ("xgboost", of_trees):
        asked = TASK.typed(make_context("recsys2021-full", data, fitted, fitted, "polars", backend, **SMALL))
        models = ensemble.select_models(asked.params)
        first = ensemble.FirstStage(asked, replace(models, networks=(), baseline=False)).predict_trees(read)
        known = found.get("xgboost", first)  # the second stage reads the same
        odds = [*(trees.log_odds(known[name]) for name in first), *of_networks]
        found[backend] = first | ensemble.SecondStage(asked, models).predict(read.x, odds, beside)
    assert len(found["xgboost"]) == 5
    for name, want in found["xgboost"].items():
        assert want.std() > 1e-3
        np.testing.assert_allclose(found[of_trees][name], want, rtol=2e-6, err_msg=name)


def test_trees_that_cannot_add_to_log_odds_are_refused(
    data: Data, fitted: Path, make_context: MakeContext
) -> None:
    if not infer.installed("tl2cgen"):
        pytest.skip("tl2cgen is not installed")
    asked = TASK.typed(make_context("recsys2021", data, fitted, fitted, "polars", "tl2cgen", **SMALL))
    with pytest.raises(UnsupportedError, match="does not support base margins"):
        ensemble.SecondStage(asked, ensemble.select_models(asked.params))


def test_scores_name_every_model(reference: Any) -> None:
    scores = reference[0]
    models = [
        *(f"trees_{name}" for name in params.TREES),
        *params.NETWORKS,
        "logistic",
        "first",
        "weighted",
        "constant",
    ]
    for name in (*models, "second_loo", "second_kfold"):
        assert {f"AP_{name}", f"RCE_{name}"} <= set(scores)
    assert scores["RCE_constant"] <= 0  # the rates of the training weeks are not those of the fourth


@pytest.mark.parametrize(
    "shape",
    [
        {"trees": ["kfold"], "networks": [], "second": []},
        {"trees": [], "networks": ["pooled"], "second": ["loo"]},
    ],
)
def test_shapes_of_one_kind(
    shape: dict[str, list[str]], data: Data, tmp_path: Path, make_context: MakeContext, run: Run
) -> None:
    settings = SMALL | shape | {"baseline": False}
    done = make_context("recsys2021", data, tmp_path, tmp_path, "polars", "torch_eager", **settings)
    run(TASK.fit(done))
    scores = run(TASK.predict(done))[0].scores
    (only,) = [*(f"trees_{name}" for name in shape["trees"]), *shape["networks"]]
    assert scores["RCE_first"] == pytest.approx(scores[f"RCE_{only}"], abs=1e-3)
    if not shape["second"]:
        assert scores["RCE"] == pytest.approx(scores["RCE_first"], abs=1e-4)


def test_networks_predict_from_their_graphs(
    data: Data, tmp_path: Path, make_context: MakeContext, run: Run, imported: Imported
) -> None:
    """Two bags, a recurrent network and the regression: without torch, and with the probabilities of the torch modules."""
    settings = SMALL | {"networks": ["pooled", "gru64"], "trees": ["kfold"], "second": ["loo"]}
    settings |= {"bags": {"pooled": 2}}
    (work, *outs) = (tmp_path / name for name in ("work", "torch_eager", "onnxruntime"))
    for folder in (work, *outs):
        folder.mkdir()
    eager, graphs = (
        make_context("recsys2021", data, work, out, "polars", out.name, **settings) for out in outs
    )
    run(TASK.fit(eager))
    assert len(list(work.glob("*.onnx"))) == 4
    run(TASK.predict(eager))
    assert imported(graphs) == {"onnxruntime"}
    want, got = (pd.read_csv(out / "results.csv", header=None) for out in outs)
    np.testing.assert_allclose(got[[2, 3, 4, 5]], want[[2, 3, 4, 5]], atol=1e-5)


def test_winners_score_the_same_on_every_engine(
    e: Engine,
    data: Data,
    fitted_winners: tuple[Path, Any],
    tmp_path: Path,
    make_context: MakeContext,
    run: Run,
) -> None:
    work, want = fitted_winners
    done = make_context("recsys2021-full", data, work, tmp_path, e.name, "torch_eager", **WINNERS_SMALL)
    assert run(TASK.predict(done))[0].scores == pytest.approx(want, abs=1e-3)


def test_a_failed_prediction_leaves_no_files(
    data: Data, fitted: Path, tmp_path: Path, make_context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(recsys2021, "append_submission", fails)
    steps = TASK.predict(
        make_context("recsys2021-full", data, fitted, tmp_path, "polars", "torch_eager", **SMALL)
    )
    with pytest.raises(OSError, match="disk full"):
        for _ in steps:
            pass
    assert [path.name for path in tmp_path.iterdir() if path.name != ".pieces"] == []


def test_without_truth_there_is_a_submission_and_no_score(
    data: Data, fitted: Path, tmp_path: Path, make_context: MakeContext, run: Run
) -> None:
    shutil.copytree(data.folder, tmp_path / "data", ignore=shutil.ignore_patterns("test_truth"))
    blind = TASK.prepare(tmp_path / "data", tmp_path, 1.0, 0, silent)
    assert "no test_truth: no score" in blind.notes
    out = tmp_path / "out"
    out.mkdir()
    done = make_context("recsys2021-full", blind, fitted, out, "polars", "torch_eager", **SMALL)
    assert run(TASK.predict(done))[0].scores == {}
    assert len(list(pieces_of_test(TASK.typed(done)))) == 1
    assert [path.name for path in out.iterdir()] == ["results.csv"]


@pytest.mark.slow
def test_models_beat_the_constant_on_the_fourth_week(
    tmp_path: Path, make_context: MakeContext, run: Run
) -> None:
    """RCE of the constant is at most 0 by definition; likes and retweets are frequent enough for a verdict at this size."""
    data = TASK.prepare(None, tmp_path / "cache", 0.0001, 0, silent)
    done = make_context(
        "recsys2021", data, tmp_path, tmp_path, "polars", "torch_eager", rounds_1=30, rounds_2=10
    )
    validation = run(TASK.fit(done))[0].details["validation"]
    result = run(TASK.predict(done))[0]
    scores, ceilings = result.scores, result.details["ceilings"]
    assert scores["RCE_like"] > 5
    assert result.details["ceiling"] == ceilings["RCE"] > scores["RCE"]
    assert ceilings["AP_like"] > scores["AP_like"] and ceilings["RCE_like"] > scores["RCE_like"]
    assert scores["RCE_retweet"] > 2
    assert scores["RCE_trees_kfold"] > 2
    assert validation["pooled"]["RCE_like"] > 5


def test_official_columns_are_read_in_their_order() -> None:
    assert list(features.TEXT) == list(FEATURES)
    assert recsys2021.NAME == "recsys2021"
