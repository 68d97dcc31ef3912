"""Columns, folders and sizes of the official files (Twitter, RecSys Challenge 2021)."""

SEPARATOR, LIST = "\x01", "\t"
# The spelling is the organisers': `enaging_user` is the reader, who may engage, and `engaged_with_user` the author.
FEATURES = {
    "text_tokens": "tokens",  # ids of the 119,547 tokens of bert-base-multilingual-cased
    "hashtags": "str",
    "tweet_id": "hash",
    "present_media": "str",
    "present_links": "str",
    "present_domains": "str",
    "tweet_type": "str",
    "language": "hash",
    "tweet_timestamp": "int64",
    "engaged_with_user_id": "hash",
    "engaged_with_user_follower_count": "int64",
    "engaged_with_user_following_count": "int64",
    "engaged_with_user_is_verified": "bool",
    "engaged_with_user_account_creation": "int64",
    "enaging_user_id": "hash",
    "enaging_user_follower_count": "int64",
    "enaging_user_following_count": "int64",
    "enaging_user_is_verified": "bool",
    "enaging_user_account_creation": "int64",
    "engagee_follows_engager": "bool",
}
LABELS = {
    "reply": "reply_timestamp",
    "retweet": "retweet_timestamp",
    "quote": "retweet_with_comment_timestamp",
    "like": "like_timestamp",
}
LABELLED = FEATURES | dict.fromkeys(LABELS.values(), "int64")
EMPTY = (
    "text_tokens",
    "hashtags",
    "present_media",
    "present_links",
    "present_domains",
    "tweet_type",
    *LABELS.values(),
)
TYPES = ("TopLevel", "Retweet", "Quote", "Reply")
MEDIA = ("Photo", "Video", "GIF")
SUBMISSION = ("tweet_id", "engaging_user_id", "reply", "retweet", "quote", "like")

# The columns in each folder. Week 4 was halved at random into validation and test; `test_truth` is the test with labels.
PARTS = {"train": LABELLED, "val": LABELLED, "test": FEATURES, "test_truth": LABELLED}
FIRST_SECOND = 1_612_396_800  # 2021-02-04 00:00:00 UTC
DAY = 86_400
TRAIN_DAYS, ALL_DAYS = 21, 28
# Rows of the winners' copy. Later downloads are smaller, as tweets were deleted.
OFFICIAL_ROWS = {"train": 719_714_693, "val": 14_461_760, "test": 14_500_000}
GROUPS = (240, 588, 1331, 3996)  # followers of the author at which the second to fifth group begins
WHERE = "`buzzer data info recsys2021` lists the files of the folder; without --data files are generated"
