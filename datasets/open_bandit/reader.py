"""Writes the tables of impressions as files, checks them, and converts them to Parquet."""

import json
from pathlib import Path

import polars as pl

from buzzer.datasets.contract import Progress
from buzzer.datasets.files import Files, csv_blocks, fingerprint, need, new_folder, origin, refuse_rows, scan
from buzzer.datasets.open_bandit.schema import (
    CAMPAIGNS,
    DAY_MS,
    FILES,
    FIRST_DAY_MS,
    POLICIES,
    POSITIONS,
    ROWS,
    TEST,
    TRAIN,
    TRAIN_DAYS,
    TRUTH,
    WHERE,
)
from buzzer.errors import DataError


def write(out: Path, impressions: pl.DataFrame, facts_name: str, facts: dict[str, object]) -> None:
    """Write train.csv, test.csv and truth.csv from impressions with the columns TRAIN, and the facts as JSON, into the new folder
    `out`. Rows are ordered by time, and the last days are the test."""
    ordered = impressions.select(list(TRAIN)).sort("time", maintain_order=True)
    late = ordered["time"] >= FIRST_DAY_MS + TRAIN_DAYS * DAY_MS
    test = ordered.filter(late)
    with new_folder(out) as partial:
        ordered.filter(~late).write_csv(partial / FILES["train"][0])
        test.select(list(TEST)).write_csv(partial / FILES["test"][0])
        truth = test.select("click").with_row_index("row").select(list(TRUTH))
        truth.write_csv(partial / FILES["truth"][0])
        (partial / facts_name).write_text(json.dumps(facts, indent=1) + "\n")


def has_logs(folder: Path) -> bool:
    """Whether a folder has logs as they are distributed: a folder for each policy."""
    return any((folder / policy).is_dir() for policy in POLICIES)


def check(folder: Path, progress: Progress) -> Files:
    """Check every line of the three files. Raises DataError that names file, line and column, and for a truth of other rows."""
    if has_logs(folder):
        raise DataError(f"{folder}: logs, not tables", "`buzzer run open-bandit --data` reads them")
    paths = {part: need(folder, (name,), WHERE) for part, (name, _) in FILES.items()}
    rows, clicks = dict.fromkeys(paths, 0), 0
    for number, (part, path) in enumerate(paths.items()):
        progress(number / len(paths), f"checking {path.name}")
        for line, block in csv_blocks(path, FILES[part][1]):
            if part != "truth":
                refuse_unknown(path, line, block)
            elif not (block["row"] == pl.int_range(rows[part], rows[part] + block.height, eager=True)).all():
                raise DataError(f"{path}, line {line}: rows are not 0, 1, 2, ...")
            if "click" in block.columns:
                clicks += int(block["click"].sum())
            rows[part] += block.height
    if rows["truth"] != rows["test"]:
        raise DataError(f"{paths['truth']}: {rows['truth']} rows, {rows['test']} in {paths['test'].name}")
    source = origin(folder, rows["train"] + rows["test"], ROWS)
    return Files(folder, fingerprint(list(paths.values()), folder), rows, {"clicks": clicks}, **vars(source))


def refuse_unknown(path: Path, line: int, block: pl.DataFrame) -> None:
    """Raises DataError for a policy, campaign, item or position that does not exist."""
    for name, known in (("policy", POLICIES), ("campaign", tuple(CAMPAIGNS))):
        refuse_rows(path, line, block, ~pl.col(name).is_in(known), name, f"none of {', '.join(known)}")
    items = pl.col("campaign").replace_strict(CAMPAIGNS)
    refuse_rows(
        path, line, block, (pl.col("item") < 0) | (pl.col("item") >= items), "item", "not of the campaign"
    )
    place = pl.col("position")
    refuse_rows(path, line, block, (place < 1) | (place > POSITIONS), "position", f"not 1 to {POSITIONS}")


def convert(folder: Path, out: Path, progress: Progress) -> None:
    """Check the files and write them as Parquet into the new folder `out`."""
    check(folder, progress)
    with new_folder(out) as partial:
        for part, (name, kinds) in FILES.items():
            scan(need(folder, (name,), WHERE), kinds).sink_parquet(partial / f"{part}.parquet")
