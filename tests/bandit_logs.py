"""Logs of Open Bandit as they are distributed."""

from pathlib import Path

from buzzer.datasets.open_bandit import schema

HASH = {name: f"{name:0>32}" for name in ("a", "b", "c")}


def write_logs(root: Path) -> None:
    """Six logs of three impressions of two items, in the form of the package: the last one is in the test."""
    for policy in schema.POLICIES:
        for campaign in schema.CAMPAIGNS:
            folder = root / policy / campaign
            folder.mkdir(parents=True)
            users = ",".join(f"user_feature_{i}" for i in range(4))
            rows = [
                f",timestamp,item_id,position,click,propensity_score,{users},user-item_affinity_0,user-item_affinity_1",
                f"0,2019-11-24 00:00:34.762830+00:00,1,3,0,0.5,{HASH['a']},{HASH['a']},{HASH['b']},{HASH['c']},2.0,5.0",
                f"1,2019-11-28 23:59:59+00:00,0,1,1,0.5,{HASH['b']},{HASH['a']},{HASH['b']},{HASH['c']},1.0,0.0",
                f"2,2019-11-29 00:00:00+00:00,1,2,1,0.5,{HASH['c']},{HASH['a']},{HASH['b']},{HASH['c']},0.0,0.0",
            ]
            (folder / f"{campaign}.csv").write_text("\n".join(rows) + "\n")
            features = ",".join(f"item_feature_{i}" for i in range(4))
            items = [f",item_id,{features}"]
            items += [f"{i},{i},{i}.5,{HASH['a']},{HASH['b']},{HASH['c']}" for i in (0, 1)]
            (folder / "item_context.csv").write_text("\n".join(items) + "\n")
