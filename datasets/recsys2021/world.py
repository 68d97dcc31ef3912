"""The synthetic Twitter that rows are drawn from.

Users and tweets are numbers. Their properties are functions of the number, so no tables are kept, and all rows of a user or
tweet agree.
"""

import numpy as np
import numpy.typing as npt

from buzzer.datasets.draws import splitmix64
from buzzer.datasets.recsys2021.schema import ALL_DAYS, DAY, FIRST_SECOND, MEDIA, TRAIN_DAYS

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint64]

USERS, TWEETS = 45_278_930, 560_000_000  # numbers at scale 1; the number of tweets is an estimate
TOP_AUTHORS = 10  # the most active authors are equally active, so that none writes much of a small data set
AUTHOR_SKEW = 12.0  # log of the ratio between the most and the least active author
# For an expected number of training rows, the share of readers that expect more. Fitted so that the drawn rows have the real
# shares of readers with more than 1 to 3, 50 and 100 rows, and the real mean. Interpolated linearly in logarithms.
READER_ROWS = dict(
    zip(
        (2000, 800, 400, 200, 100, 50, 10, 3, 2, 1, 0.35),
        (1e-5, 0.0012, 0.005, 0.013, 0.026, 0.055, 0.2, 0.52, 0.58, 0.67, 1.0),
        strict=True,
    )
)
TOPICS = 24
OPENERS, RETWEETED = 400, 20_000  # first words of a language, and users who are retweeted
QUESTION, EXCLAMATION = 136, 106  # tokens "?" and "!"
LAST_MARKS = np.array([0.15, 0.27])  # share of the texts that end with "?", and with "?" or "!"
# Shares of languages by rank, from one official part of 3 M rows; the tail falls geometrically to nearly 0.
LANGUAGES = np.concatenate(
    [
        [
            0.361,
            0.171,
            0.083,
            0.080,
            0.064,
            0.035,
            0.034,
            0.022,
            0.021,
            0.016,
            0.015,
            0.013,
            0.008,
            0.007,
            0.007,
            0.006,
        ],
        np.geomspace(0.006, 1e-5, 50),
    ]
)
LANGUAGES /= LANGUAGES.sum()
UNDETERMINED = 4  # language of a tweet without words
SLOTS = 1000  # user i has the language of slot i % SLOTS
SLOT_LANGUAGE = np.random.default_rng(5).permutation(
    np.searchsorted(np.cumsum(LANGUAGES), (np.arange(SLOTS) + 0.5) / SLOTS)
)
SLOTS_BY_LANGUAGE = np.argsort(SLOT_LANGUAGE, kind="stable")
SLOTS_OF = np.searchsorted(
    SLOT_LANGUAGE[SLOTS_BY_LANGUAGE], np.arange(len(LANGUAGES) + 1)
)  # index of the first slot of each language
TYPE_SHARES = np.cumsum([0.60, 0.32])  # TopLevel, Retweet; the rest are quotes
MEDIA_PATTERNS = (
    "",
    *("\t".join(m) for m in (["Photo"], ["Video"], ["Photo"] * 2, ["Photo"] * 4, ["Photo"] * 3, ["GIF"])),
)
MEDIA_SHARES = np.cumsum([0.639, 0.20, 0.067, 0.054, 0.026, 0.015])
HASHTAG_SHARES = np.cumsum([0.79, 0.118, 0.047, 0.024, 0.012])
LINK_SHARES = np.cumsum([0.877, 0.119])
HOURS = np.array(
    [41, 43, 46, 43, 39, 35, 31, 30, 31, 34, 38, 42, 47, 52, 54, 53, 50, 47, 45, 44, 43, 42, 42, 41]
)
# Readers from the most to the least active: cumulative share of the readers, and of the rows.
READER_SHARES = np.concatenate([[0.0], np.geomspace(1e-5, 1.0, 200)])
READER_MASS = np.cumsum(
    np.diff(READER_SHARES, prepend=0.0)
    * np.exp(np.interp(np.log(READER_SHARES + 1e-9), np.log([*READER_ROWS.values()]), np.log([*READER_ROWS])))
)
READER_MASS /= READER_MASS[-1]
HOUR_SUMS = np.cumsum(HOURS / HOURS.sum())
assert set("\t".join(MEDIA_PATTERNS).split("\t")) <= {"", *MEDIA}


def mixed(values: Ints | Bytes, salt: int) -> Bytes:
    """A uniform 64-bit word for each value and a salt, by hash."""
    x = values.astype(np.uint64)
    x += np.uint64((salt + 1) * 0x9E3779B97F4A7C15 % 2**64)
    return splitmix64(x)


def uniform(values: Ints | Bytes, salt: int) -> Floats:
    """A uniform number in [0, 1) for each value, by hash."""
    return (mixed(values, salt) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def normal(values: Ints | Bytes, salt: int) -> Floats:
    """A nearly normal number with mean 0 and deviation 1 for each value, by hash: the sum of four uniform 16-bit parts."""
    word = mixed(values, salt)
    parts = sum(((word >> np.uint64(s)) & np.uint64(0xFFFF)).astype(np.float64) for s in (0, 16, 32, 48))
    return np.asarray((parts / 65536 - 2.0) * np.sqrt(3.0))


def uniform_int(values: Ints, salt: int, n: int) -> Ints:
    """A whole number from 0 to n - 1 for each value, by hash."""
    return (uniform(values, salt) * n).astype(np.int64)


def skewed(u: Floats, n: int, skew: float) -> Ints:
    """A whole number from 0 to n - 1 for each uniform number; small ones are drawn more often. skew: log of the largest ratio."""
    return (np.expm1(u * skew) / np.expm1(skew) * n).astype(np.int64)


def by_share(u: Floats, sums: Floats) -> Ints:
    """The index of the range of cumulative shares that contains u; the number of shares if u is beyond the last."""
    return np.searchsorted(sums, u, side="right")


class World:
    """Users and tweets; their numbers are proportional to the scale.

    known_scale: scale of the training parts, if it is smaller. The week 4 of this world has none of their tweets.
    """

    def __init__(self, scale: float, seed: int, known_scale: float = 0.0) -> None:
        self.seed = seed * 1000
        self.users = max(int(USERS * scale) // SLOTS * SLOTS, 2 * SLOTS)
        self.tweets = max(int(TWEETS * scale), 1000)
        self.first_late = max(int(TWEETS * known_scale), 1000) if known_scale < scale else 0
        self.author_skew = min(AUTHOR_SKEW, np.log(self.users / TOP_AUTHORS))

    def salt(self, number: int) -> int:
        """The salt of a hash, different for each seed."""
        return self.seed + number

    # ---- users: arrays of user numbers ----------------------------------------------------------------------------

    def author_at(self, u: Floats) -> Ints:
        """The author for a uniform number u: author n has a weight of about 1 / n."""
        share = np.expm1(self.author_skew * u) / np.expm1(self.author_skew)
        return np.minimum((share * self.users).astype(np.int64), self.users - 1)

    def reader_at(self, u: Floats, language: Ints) -> Ints:
        """The reader of a language for a uniform number u. Active readers and active authors are independent."""
        first, slots = SLOTS_OF[language], SLOTS_OF[language + 1] - SLOTS_OF[language]
        readers = self.users // SLOTS * slots
        rank = np.minimum((np.interp(u, READER_MASS, READER_SHARES) * readers).astype(np.int64), readers - 1)
        place = (rank * 7_368_787 + 12_345) % readers  # a prime, so that places are unique
        return place // slots * SLOTS + SLOTS_BY_LANGUAGE[first + place % slots]

    def fame(self, user: Ints) -> Floats:
        """The fame of each user: -log of the share of users that write more, up to AUTHOR_SKEW.

        Values above 2 are stretched if there are too few users to reach AUTHOR_SKEW, so that the authors of most rows are as
        famous at every scale.
        """
        up = np.minimum(-np.log((user + 1) / self.users), self.author_skew)
        stretch = (AUTHOR_SKEW - 2) / (self.author_skew - 2)
        return np.asarray(np.where(up > 2, 2 + (up - 2) * stretch, up))

    def log_followers(self, user: Ints) -> Floats:
        """log(1 + followers) of each user."""
        return np.clip(4.55 + 0.78 * self.fame(user) + 1.3 * normal(user, self.salt(1)), 0, 18.5)

    def followers(self, user: Ints) -> Ints:
        """The number of followers of each user."""
        return np.expm1(self.log_followers(user)).astype(np.int64)

    def following(self, user: Ints) -> Ints:
        """The number of users that each user follows."""
        fame = self.fame(user)
        log = 5.75 + 0.085 * fame + (1.1 + 0.11 * fame) * normal(user, self.salt(2))
        return np.expm1(np.clip(log, 0, 14)).astype(np.int64)

    def verified(self, user: Ints) -> npt.NDArray[np.bool_]:
        """Whether each user is verified."""
        return uniform(user, self.salt(3)) < 0.9 / (1 + np.exp(2 * (9.3 - self.fame(user))))

    def created(self, user: Ints) -> Ints:
        """The creation of each account, in Unix seconds from March 2006 to January 2021; accounts of authors are older."""
        age = uniform(user, self.salt(4)) ** np.where(self.fame(user) > 3, 1.0, 0.6)
        return 1_141_000_000 + (age * 469_000_000).astype(np.int64)

    def language(self, user: Ints) -> Ints:
        """The language of each user."""
        return SLOT_LANGUAGE[user % SLOTS]

    def taste(self, user: Ints, topic: Ints) -> Floats:
        """How much each user likes a topic; nearly normal."""
        return normal(user * TOPICS + topic, self.salt(5))

    def peers(self, author: Ints, reader: Ints) -> Floats:
        """1 if the author has e times as many followers as the reader, near 0 if the numbers differ much."""
        apart = self.log_followers(author) - self.log_followers(reader) - 1
        return np.exp(-0.5 * (apart / 2) ** 2)

    def cohort(self, author: Ints, reader: Ints) -> npt.NDArray[np.bool_]:
        """Whether author and reader joined within two years."""
        return np.abs(self.created(author) - self.created(reader)) < 2 * 365 * DAY

    # ---- tweets: arrays of tweet numbers --------------------------------------------------------------------------

    def author(self, tweet: Ints) -> Ints:
        """The author of each tweet."""
        return self.author_at(uniform(tweet, self.salt(20)))

    def tweet_language(self, tweet: Ints, author: Ints) -> Ints:
        """The language of each tweet: the author's, or rarely undetermined."""
        u = uniform(tweet, self.salt(21))
        return np.where(u < 0.06, UNDETERMINED, self.language(author))

    def topic(self, tweet: Ints, author: Ints) -> Ints:
        """The topic of each tweet: mostly the author's topic."""
        usual = (mixed(author, self.salt(22)) % np.uint64(TOPICS)).astype(np.int64)
        other = (mixed(tweet, self.salt(23)) % np.uint64(TOPICS)).astype(np.int64)
        return np.where(uniform(tweet, self.salt(24)) < 0.7, usual, other)

    def kind(self, tweet: Ints) -> Ints:
        """The type of each tweet: 0 TopLevel, 1 Retweet, 2 Quote."""
        return by_share(uniform(tweet, self.salt(25)), TYPE_SHARES)

    def media(self, tweet: Ints) -> Ints:
        """The index into MEDIA_PATTERNS for each tweet."""
        return by_share(uniform(tweet, self.salt(26)), MEDIA_SHARES)

    def hashtags(self, tweet: Ints) -> Ints:
        """The number of hashtags of each tweet, 0 to 5."""
        return by_share(uniform(tweet, self.salt(27)), HASHTAG_SHARES)

    def links(self, tweet: Ints) -> Ints:
        """The number of links of each tweet, 0 to 2."""
        return by_share(uniform(tweet, self.salt(28)), LINK_SHARES)

    def quality(self, tweet: Ints) -> Floats:
        """How good each tweet is; nearly normal. Its words show it."""
        return normal(tweet, self.salt(33))

    def opener(self, tweet: Ints) -> Ints:
        """The first word of each tweet that is not a retweet, 0 to OPENERS - 1."""
        return skewed(uniform(tweet, self.salt(34)), OPENERS, 4.0)

    def retweeted(self, tweet: Ints) -> Ints:
        """The user whom each retweet is of, 0 to RETWEETED - 1."""
        return skewed(uniform(tweet, self.salt(35)), RETWEETED, 7.0)

    def last_mark(self, tweet: Ints) -> Ints:
        """The token of the mark at the end of each text; 0 if there is none."""
        return np.array([QUESTION, EXCLAMATION, 0])[by_share(uniform(tweet, self.salt(36)), LAST_MARKS)]

    def length(self, tweet: Ints) -> Floats:
        """The length of each text in deviations of its logarithm."""
        return normal(tweet, self.salt(29))

    def tokens(self, tweet: Ints) -> Ints:
        """The number of tokens of each tweet with [CLS] and [SEP], 3 to 238; at least 7 for a retweet."""
        log = 3.626 + 0.689 * self.length(tweet)
        return np.clip(np.exp(log).astype(np.int64) + 1, np.where(self.kind(tweet) == 1, 7, 3), 238)

    def time(self, tweet: Ints, late: bool) -> Ints:
        """The Unix seconds of each tweet, in the three training weeks or, if `late`, in the fourth."""
        days, first = (ALL_DAYS - TRAIN_DAYS, TRAIN_DAYS) if late else (TRAIN_DAYS, 0)
        day = first + (uniform(tweet, self.salt(30)) * days).astype(np.int64)
        hour = np.minimum(by_share(uniform(tweet, self.salt(31)), HOUR_SUMS), 23)
        second = (uniform(tweet, self.salt(32)) * 3600).astype(np.int64)
        return FIRST_SECOND + day * DAY + hour * 3600 + second
