"""Columns, names and sizes of the official files."""

from typing import Required, TypedDict

BROWSING = {
    "session_id_hash": "hash64",
    "event_type": "str",
    "product_action": "str",
    "product_sku_hash": "hash64",
    "server_timestamp_epoch_ms": "int64",
    "hashed_url": "hash64",
}
SEARCH = {
    "session_id_hash": "hash64",
    "query_vector": "vector",
    "clicked_skus_hash": "hashes",
    "product_skus_hash": "hashes",
    "server_timestamp_epoch_ms": "int64",
}
CONTENT = {
    "product_sku_hash": "hash64",
    "description_vector": "vector",
    "category_hash": "path",
    "image_vector": "vector",
    "price_bucket": "float64",
}
EMPTY = {  # columns in which fields may be empty
    "browsing": ("product_action", "product_sku_hash", "hashed_url"),
    "search": ("query_vector", "clicked_skus_hash", "product_skus_hash"),
    "content": ("description_vector", "category_hash", "image_vector", "price_bucket"),
}
KINDS = {"browsing": BROWSING, "search": SEARCH, "content": CONTENT}
NAMES = {
    "browsing": ("browsing_train.csv",),
    "search": ("search_train.csv",),
    "content": ("sku_to_content.csv",),
}
# The second phase, which decided the prizes, then the first.
TESTS = {
    "rec": ("rec_test_phase_2.json", "rec_test_phase_1.json"),
    "cart": ("intention_test_phase_2.json", "intention_test_phase_1.json"),
}


class EventRecord(TypedDict):
    """An event in a test file."""

    query_vector: list[float] | None
    clicked_skus_hash: list[str] | None
    product_skus_hash: list[str] | None
    server_timestamp_epoch_ms: int
    event_type: str | None
    product_action: str | None
    product_sku_hash: str | None
    hashed_url: str | None
    session_id_hash: str
    is_search: bool


class QueryRecord(TypedDict, total=False):
    """A query in a test file: the first events of a session, and the label."""

    query: Required[list[EventRecord]]
    label: list[str] | int  # the next products (first task), or 1 if the cart is bought, else 0 (second task)
    nb_after_add: int  # second task only


EVENT = tuple(EventRecord.__annotations__)
ACTIONS = ("detail", "add", "remove", "purchase")
BUCKETS = 10  # price buckets, from 1; 0 means no price
DIMS = 50  # length of description, image and query vectors
AFTER_ADD = (0, 2, 4, 6, 8, 10)  # sessions of the second task are cut this many events after the first add
MOST_LABELS = 20  # products of a label of the first task
OFFICIAL_ROWS = {"browsing": 36_079_307, "search": 819_516, "content": 66_386}
WHERE = (
    "`buzzer data info sigir_ecom` says where to get the official files; without --data files are generated"
)
