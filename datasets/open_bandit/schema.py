"""Columns, names and sizes of the files: the logs of ZOZOTOWN's campaigns as three tables, split by time."""

POLICIES = ("random", "bts")  # uniform, and Bernoulli Thompson sampling
CAMPAIGNS = {"all": 80, "men": 34, "women": 46}  # and the numbers of their items
POSITIONS = 3
USER = tuple(f"user_{i}" for i in range(4))  # hashed features of the user
ITEM = tuple(f"item_{i}" for i in range(1, 4))  # hashed features of the item
TEST = {
    "time": "int64",  # milliseconds since 1970
    "policy": "str",
    "campaign": "str",
    "item": "int64",
    "position": "int64",  # 1 to 3, from left to right
    **dict.fromkeys(USER, "hash"),
    "item_0": "float64",
    **dict.fromkeys(ITEM, "hash"),
    "affinity": "float64",  # of the user to the item: earlier clicks
    "affinities": "float64",  # of the user to all items of the campaign, summed
}
TRAIN = TEST | {"click": "bit"}
TRUTH = {"row": "int64", "click": "bit"}
FILES = {"train": ("train.csv", TRAIN), "test": ("test.csv", TEST), "truth": ("truth.csv", TRUTH)}
LOG_ROWS = 10_000  # of each of the six logs in the package
ROWS = LOG_ROWS * len(POLICIES) * len(CAMPAIGNS)
FIRST_DAY_MS, DAY_MS, DAYS = 1_574_553_600_000, 86_400_000, 7  # 2019-11-24
TRAIN_DAYS = 5  # the last two days are the test
WHERE = "a folder has random/all/all.csv, item_context.csv and the other logs of `obp`, or train.csv, test.csv and truth.csv"
