"""`Engine.text_features` on Polars: a NumPy function on the CPU, and a plan on the GPU, where cudf-polars has neither Python functions nor
lists."""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from buzzer.engine.frames import token_lists
from buzzer.engine.frames.base import LAST_START, LONGEST, PIECE_BITS, PIECES_OF_KEY, Pieces, TextFeatures

PARTS = "_parts"  # temporary column of a split string
TOKEN, AT, CONTINUES = "_token", "_at", "_continues"  # temporary columns of single tokens
WIDTH = 32  # tokens that are split off at a time


def split(t: pl.LazyFrame, text: pl.Expr, separator: str, length: int) -> pl.LazyFrame:
    """The frame with the first `length` parts of a string as the struct column PARTS. The split is its own node, because cudf-polars
    would repeat it in each expression."""
    return t.with_columns(text.str.splitn(separator, length + 1).alias(PARTS))


def field(at: int) -> pl.Expr:
    """The part of `split` at this position; missing if there is none or it is empty."""
    part = pl.col(PARTS).struct.field(f"field_{at}")
    return pl.when(part != "").then(part).otherwise(None)


def on_cpu(t: pl.LazyFrame, column: str, separator: str, features: TextFeatures) -> pl.LazyFrame:
    """`Engine.text_features` by the code of the eager engines."""
    compute = token_lists.text_features(features)
    types: dict[str, Any] = dict.fromkeys([*features.sums.values(), *features.before.values()], pl.Int32)
    types |= dict.fromkeys([*features.words.values(), *features.after.values()], pl.Int64)

    def of_rows(text: pl.Series) -> pl.Series:
        arrow = text.to_arrow(compat_level=pl.CompatLevel.oldest())
        new = token_lists.computed_on_host(column, arrow, separator, compute)
        return pl.DataFrame(new, schema=types).to_struct(PARTS)

    made = pl.col(column).map_batches(of_rows, return_dtype=pl.Struct(types), is_elementwise=True)
    return t.with_columns(made.alias(PARTS)).unnest(PARTS)


def on_gpu(t: pl.LazyFrame, column: str, separator: str, features: TextFeatures) -> pl.LazyFrame:
    """`Engine.text_features` as a plan that cudf-polars runs whole."""
    if features.sums or features.before:
        t = with_sums(t, column, separator, features)
    starts = {out: after_token(column, separator, *which) for which, out in features.after.items()}
    if features.words:
        t = split(t, pl.col(column).fill_null(""), separator, LAST_START + PIECES_OF_KEY)
        t = t.with_columns(
            number(field(i)).alias(f"{TOKEN}{i}") for i in range(1, LAST_START + PIECES_OF_KEY)
        )
        t = t.drop(PARTS)
    t = t.with_columns(
        part.alias(f"{out}{TOKEN}{i}") for out, parts in starts.items() for i, part in enumerate(parts)
    )
    return with_keys(t, features.pieces, features.words, list(starts))


def number(text: pl.Expr) -> pl.Expr:
    """A decimal number as int64, -1 if it is missing."""
    return text.cast(pl.Int64).fill_null(-1)


# ---- sums ----------------------------------------------------------------------------------------------------------


def with_sums(t: pl.LazyFrame, column: str, separator: str, features: TextFeatures) -> pl.LazyFrame:
    """The frame with the columns `sums` and `before`."""
    pieces, sums, before, names = features.pieces, features.sums, features.before, features.amounts()
    heads = {token: f"{token}{AT}" for _, token in before}
    table = by_token(pieces, {f"{name}{TOKEN}": pieces.amounts[name] for name in names})
    totals = [*sums.values(), *before.values()]
    parts = chunks(t, column, separator, heads).with_columns(pl.lit(0, pl.Int64).alias(out) for out in totals)
    for i in range(WIDTH):
        amount = {name: pl.col(f"{name}{TOKEN}").fill_null(0) for name in names}
        added = {out: pl.col(out) + amount[name] for name, out in sums.items()}
        for (name, token), out in before.items():
            earlier = pl.col(AT) + i < pl.col(heads[token])
            added[out] = pl.col(out) + pl.when(earlier).then(amount[name]).otherwise(0)
        joined = parts.join(table.rename({TOKEN: f"{TOKEN}{i}"}), on=f"{TOKEN}{i}", how="left")
        parts = joined.with_columns(**added).drop(f"{TOKEN}{i}", *(f"{name}{TOKEN}" for name in names))
    whole = parts.group_by("row").agg(pl.col(out).sum() for out in totals)
    t = t.join(whole, on="row", how="left")
    return t.with_columns(pl.col(out).fill_null(0).cast(pl.Int32) for out in totals)


def chunks(t: pl.LazyFrame, column: str, separator: str, heads: Mapping[str, str]) -> pl.LazyFrame:
    """The first LONGEST tokens in rows of WIDTH: row, AT (the position of the first of them), and each token, int64; missing after the
    last. heads: token -> new column, the number of tokens before its first occurrence among them; 0 if there is none."""
    rest = t.select("row", pl.col(column).fill_null(""))
    for token, out in heads.items():
        rest = with_ahead(rest, column, separator, token, out)
    parts = []
    for start in range(0, LONGEST, WIDTH):
        wide = split(rest, pl.col(column), separator, WIDTH)
        numbers = (field(i).cast(pl.Int64).alias(f"{TOKEN}{i}") for i in range(WIDTH))
        parts.append(wide.select("row", *heads.values(), pl.lit(start, pl.Int64).alias(AT), *numbers))
        rest = wide.select("row", *heads.values(), field(WIDTH).alias(column)).drop_nulls(column)
    return pl.concat(parts)


def with_ahead(t: pl.LazyFrame, column: str, separator: str, token: str, out: str) -> pl.LazyFrame:
    """The frame with the number of tokens before the first occurrence of a token, int64; 0 if the first LONGEST tokens have none."""
    ends, parts = pl.lit(separator), pl.col(PARTS).struct
    text = pl.concat_str(ends, pl.col(column), ends)
    t = t.with_columns(text.str.splitn(f"{separator}{token}{separator}", 2).alias(PARTS))
    many = parts.field("field_0").str.count_matches(separator).cast(pl.Int64)
    absent = parts.field("field_1").is_null() | (many >= LONGEST)
    return t.with_columns(pl.when(absent).then(0).otherwise(many).alias(out)).drop(PARTS)


def by_token(pieces: Pieces, values: Mapping[str, Any]) -> pl.LazyFrame:
    """A table of values by token id, int64: TOKEN and the names."""
    ids = pl.int_range(len(pieces.continues), dtype=pl.Int64, eager=True)
    columns = {name: pl.Series(name, array).cast(pl.Int64) for name, array in values.items()}
    return pl.DataFrame({TOKEN: ids} | columns).lazy()


# ---- keys of words -------------------------------------------------------------------------------------------------


def after_token(column: str, separator: str, token: str, nth: int) -> list[pl.Expr]:
    """The PIECES_OF_KEY tokens that follow the nth occurrence of another, int64 each; -1 if there is none."""
    again = f"(?:[0-9]+{separator})*?{token}{separator}"
    begin = f"(?:^|{separator}){token}{separator}{again * (nth - 1)}"
    text = pl.col(column).fill_null("")
    skipped = f"[0-9]+{separator}"
    return [number(text.str.extract(f"{begin}{skipped * i}([0-9]+)", 1)) for i in range(PIECES_OF_KEY)]


def with_keys(
    t: pl.LazyFrame, pieces: Pieces, words: Mapping[int, str], starts: Sequence[str]
) -> pl.LazyFrame:
    """The frame with the columns `words` and `after`. starts: the names of those of `after`. The single tokens become their keys."""
    spans = {out: [f"{out}{TOKEN}{i}" for i in range(PIECES_OF_KEY)] for out in starts}
    text = [f"{TOKEN}{i}" for i in range(1, LAST_START + PIECES_OF_KEY)] if words else []
    flagged = [*text[1:], *(name for span in spans.values() for name in span[1:])]
    table = by_token(pieces, {CONTINUES: pieces.continues})
    for name in flagged:
        flag = table.rename({TOKEN: name, CONTINUES: f"{name}{CONTINUES}"})
        t = t.join(flag, on=name, how="left")
    t = t.with_columns(pl.col(f"{name}{CONTINUES}").fill_null(0) for name in flagged)
    new = {out: key(span) for out, span in spans.items()}
    for nth, out in words.items():
        new[out] = second_word(text) if nth else key(text[:PIECES_OF_KEY])
    return t.with_columns(**new).drop(
        *text,
        *(name for span in spans.values() for name in span),
        *(f"{name}{CONTINUES}" for name in flagged),
    )


def key(span: Sequence[str]) -> pl.Expr:
    """The key of the word that starts with the first of adjacent tokens."""
    inside, total = pl.lit(1, pl.Int64), pl.col(span[0])
    for step, name in enumerate(span[1:], 1):
        inside = inside * pl.col(f"{name}{CONTINUES}")
        total = total + inside * pl.col(name) * 2 ** (PIECE_BITS * step)
    return total


def second_word(text: Sequence[str]) -> pl.Expr:
    """The key of the second word. text: the tokens from position 1."""
    result = pl.lit(-1, pl.Int64)
    for position in range(LAST_START, 1, -1):
        span = text[position - 1 : position - 1 + PIECES_OF_KEY]
        is_start = (pl.col(f"{span[0]}{CONTINUES}") == 0) & (pl.col(span[0]) >= 0)
        result = pl.when(is_start).then(key(span)).otherwise(result)
    return result
