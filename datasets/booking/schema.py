"""Columns, names and sizes of the official files."""

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
TEST = {  # the columns of TRAIN in another order
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
HIDDEN = 0  # city_id of the stay to predict; its hotel_country is empty

# Names in the GitHub release, then in the original zip, whose files also have an index and counters.
NAMES = {
    "train": ("train_set.csv", "booking_train_set.csv"),
    "test": ("test_set.csv", "booking_test_set.csv"),
    "truth": ("ground_truth.csv",),
}
EXTRA = ("", "Unnamed: 0", "row_num", "total_rows")
OFFICIAL_ROWS = {"train": 1_166_835, "test": 378_667, "truth": 70_662}
WHERE = "`buzzer data info booking` says where to get the official files; without --data files are generated"
