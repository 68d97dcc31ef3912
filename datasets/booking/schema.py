"""The official files' columns, names and sizes."""

TRAIN = {
    "user_id": "int64",
    "checkin": "date",
    "checkout": "date",
    "city_id": "int64",
    "device_class": "str",
    "affiliate_id": "int64",
    "booker_country": "str",
    "hotel_country": "str",
    "utrip_id": "str",
}
TEST = {  # the same columns in another order
    "user_id": "int64",
    "checkin": "date",
    "checkout": "date",
    "device_class": "str",
    "affiliate_id": "int64",
    "booker_country": "str",
    "utrip_id": "str",
    "city_id": "int64",
    "hotel_country": "str",
}
TRUTH = {"utrip_id": "str", "city_id": "int64", "hotel_country": "str"}
SUBMISSION = {
    "utrip_id": "str",
    "city_id_1": "int64",
    "city_id_2": "int64",
    "city_id_3": "int64",
    "city_id_4": "int64",
}
HIDDEN = 0  # city_id of the stay to be predicted; its hotel_country is empty

# The GitHub release's names, then those of the original zip, whose files have an index and counters besides.
NAMES = {
    "train": ("train_set.csv", "booking_train_set.csv"),
    "test": ("test_set.csv", "booking_test_set.csv"),
    "truth": ("ground_truth.csv",),
}
EXTRA = ("", "Unnamed: 0", "row_num", "total_rows")
OFFICIAL_ROWS = {"train": 1_166_835, "test": 378_667, "truth": 70_662}
WHERE = "`buzzer data info booking` says where the official files are; without --data they are generated"
