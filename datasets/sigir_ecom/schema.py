"""The official files' columns, names and sizes."""

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
EMPTY = {  # columns whose fields may be empty
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
# The second phase's, on which the prizes were given, then the first's.
TESTS = {
    "rec": ("rec_test_phase_2.json", "rec_test_phase_1.json"),
    "cart": ("intention_test_phase_2.json", "intention_test_phase_1.json"),
}
EVENT = (
    "query_vector",
    "clicked_skus_hash",
    "product_skus_hash",
    "server_timestamp_epoch_ms",
    "event_type",
    "product_action",
    "product_sku_hash",
    "hashed_url",
    "session_id_hash",
    "is_search",
)
ACTIONS = ("detail", "add", "remove", "purchase")
BUCKETS = 10  # of prices, from 1; 0 is none
DIMS = 50  # of description, image and query vectors
AFTER_ADD = (0, 2, 4, 6, 8, 10)  # events after the add-to-cart at which sessions of the second task are cut
MOST_LABELS = 20
OFFICIAL_ROWS = {"browsing": 36_079_307, "search": 819_516, "content": 66_386}
WHERE = "`buzzer data info sigir_ecom` says where the official files are; without --data they are generated"
