"""The model that knows the shop: its probabilities are calibrated, and its log odds are those of a loop over the actions."""

import json
from pathlib import Path

import numpy as np
import pytest

from buzzer.datasets import sigir_ecom
from buzzer.datasets.contract import silent
from buzzer.datasets.sigir_ecom import walk
from buzzer.datasets.sigir_ecom.ceiling import DIRECT, NEW, STAYS, Seen, Shop, calibrated, ceiling, latest
from buzzer.datasets.sigir_ecom.metric import K
from buzzer.datasets.sigir_ecom.walk import ADD, DETAIL, PAGE, PURCHASE, REMOVE, SEARCHED, Sessions
from buzzer.datasets.sigir_ecom.world import CHECKOUT, STYLES, World


@pytest.fixture(scope="module")
def world() -> World:
    return World(0.02)


@pytest.fixture(scope="module")
def sessions(world: World) -> Sessions:
    return walk.draw(world, 0, 0, walk.CHUNK, (91, 119))


def test_products_are_as_concentrated_as_the_published_ones(world: World, sessions: Sessions) -> None:
    counts = np.sort(np.bincount(sessions.product[sessions.product >= 0], minlength=world.products))[::-1]
    counts = counts[counts > 0]
    share = {q: counts[: round(len(counts) * q)].sum() / counts.sum() for q in (0.01, 0.1, 0.5)}
    assert 0.30 < share[0.01] < 0.40  # official .347
    assert 0.65 < share[0.1] < 0.85  # .817
    assert share[0.5] > 0.95  # .995


def test_the_next_product_has_the_probability_that_the_model_gives(world: World, sessions: Sessions) -> None:
    rng = np.random.default_rng(0)
    steps = np.arange(sessions.kind.shape[1])
    is_product = np.isin(sessions.kind, [DETAIL, ADD, REMOVE, PURCHASE])
    last = np.where(is_product, steps, -1).max(axis=1)
    rows = np.flatnonzero(last > 0)
    cuts = 1 + (rng.random(len(rows)) * last[rows]).astype(np.int64)
    place = (is_product[rows] & (steps >= cuts[:, None])).argmax(axis=1)
    seen = Seen.of(world, sessions, rows, cuts)
    plain = ~((sessions.kind[rows] == ADD) & (steps < cuts[:, None])).any(axis=1)
    between = (steps >= cuts[:, None]) & (steps < place[:, None])
    listed = (between & (sessions.listing[rows] >= 0)).any(axis=1)
    assert (place == cuts)[plain & seen.viewed].mean() == pytest.approx(DIRECT, abs=0.05)
    assert listed[plain].mean() == pytest.approx(NEW, abs=0.03)
    same_leaf = sessions.leaf[rows, place] == sessions.leaf[rows, cuts - 1]
    assert same_leaf.mean() == pytest.approx(STAYS, abs=0.02)
    codes, mass = Shop(world).next_products(sessions, rows, cuts)
    assert codes.shape == mass.shape == (len(rows), K)
    assert (np.diff(mass, axis=1) <= 0).all() and (mass.sum(axis=1) < 1 + 1e-9).all()
    assert all(
        len(np.unique(row[m > 0])) == (m > 0).sum() for row, m in zip(codes[:200], mass[:200], strict=True)
    )
    hit = codes == sessions.product[rows, place][:, None]
    for ranks in (slice(0, 1), slice(1, 3), slice(3, 8), slice(8, K)):
        expected = mass[:, ranks].sum(axis=1)
        noise = np.sqrt((expected * (1 - expected)).sum()) / len(rows)
        # The steps between the cut and the next product enter by their average, so a part is biased by up to a tenth.
        assert hit[:, ranks].sum() / len(rows) == pytest.approx(expected.mean(), rel=0.1, abs=4 * noise)


def test_log_odds_are_those_of_a_loop_over_the_actions(sessions: Sessions) -> None:
    carts = np.flatnonzero((sessions.kind == ADD).any(axis=1))[:300]
    for row in carts:
        kind, page = sessions.kind[row], sessions.page[row]
        first = int((kind == ADD).argmax())
        odds, paying = float(sessions.log_odds[row, first]), False
        for step in range(first + 1, int((kind != walk.NONE).sum())):
            late = walk.TO_CHECKOUT_LATE if step - first > 4 else walk.TO_CHECKOUT[0]
            if kind[step] == PURCHASE:
                break
            checkout = kind[step] == PAGE and page[step] == CHECKOUT
            buyer, other = (late, walk.TO_CHECKOUT[1]) if checkout else (1 - late, 1 - walk.TO_CHECKOUT[1])
            if not checkout:
                removes = [p if kind[step] == REMOVE else 1 - p for p in walk.REMOVES]
                buyer, other = buyer * removes[0], other * removes[1]
            odds += np.log(buyer / other) + (np.log(1 - walk.TO_PURCHASE) if paying else 0)
            paying |= bool(checkout)
            assert sessions.log_odds[row, step] == pytest.approx(odds, abs=1e-4)


def test_carts_are_bought_with_the_odds_at_the_add(sessions: Sessions) -> None:
    carts = np.flatnonzero((sessions.kind == ADD).any(axis=1))
    first = (sessions.kind[carts] == ADD).argmax(axis=1)
    chance = 1 / (1 + np.exp(-sessions.log_odds[carts, first].astype(np.float64)))
    bought = (sessions.kind[carts] == PURCHASE).any(axis=1)
    noise = np.sqrt((chance * (1 - chance)).sum()) / len(carts)
    assert bought.mean() == pytest.approx(chance.mean(), abs=4 * noise)
    high = chance > np.median(chance)
    assert bought[high].mean() > bought[~high].mean() + 0.05


def test_what_is_seen_of_a_session() -> None:
    """Three actions of one session: a listing, a product, a search."""
    world = World(0.0005)
    leaf = int(world.leaf[7])
    listing = int(world.listing_first[leaf])
    fields = {"kind": [PAGE, DETAIL, SEARCHED, DETAIL], "product": [-1, 7, -1, 9]}
    fields |= {"listing": [listing, -1, listing + 1, -1], "leaf": [leaf] * 4, "style": [3] * 4}
    arrays = {name: np.array([values]) for name, values in fields.items()}
    zeros = np.zeros((1, 4), dtype=np.int64)
    session = Sessions(
        number=zeros[0],
        page=zeros,
        log_odds=zeros.astype(np.float32),
        day=np.array([91]),
        time=zeros,
        **arrays,
    )
    two, three = (Seen.of(world, session, np.array([0]), np.array([cut])) for cut in (2, 3))
    assert (two.product[0], two.n_views[0], two.listings[0], two.leaf[0]) == (7, 1, 1, leaf)
    assert two.viewed[0] and not two.searched[0] and two.same[0] == pytest.approx(walk.TO_CART)
    assert (
        three.tabs[0, :3].tolist() == [listing + 1, listing, -1] and three.searched[0] and not three.viewed[0]
    )
    shop = Shop(world)
    assert shop.styles(three)[0].tolist() == [float(style == 3) for style in range(STYLES)]
    # Before the search, by Bayes' rule with the popularity of the category.
    members = world.leaf == leaf
    likelihood = [
        world.weight[7]
        * world.liking[s, world.style[7]]
        / (world.weight * world.liking[s, world.style])[members].sum()
        for s in range(STYLES)
    ]
    assert shop.styles(two)[0] == pytest.approx(np.array(likelihood) / sum(likelihood))


def test_latest_values() -> None:
    values = np.array([[1, -1, 2, 3], [-1, -1, -1, -1]])
    assert latest(values, 2).tolist() == [[3, 2], [-1, -1]]
    assert latest(values, 5).tolist() == [[3, 2, 1, -1, -1], [-1] * 5]


def test_calibration_keeps_the_order_and_has_the_rate() -> None:
    log_odds = np.array([-2.0, 0.0, 1.0, 3.0])
    p = calibrated(log_odds, np.array([0, 0, 0, 1]))
    assert p.mean() == pytest.approx(0.25) and (np.diff(p) > 0).all()
    assert np.diff(np.log(p / (1 - p))) == pytest.approx([2.0, 1.0, 2.0])


def test_the_files_have_the_ceiling_and_older_ones_have_none(tmp_path: Path) -> None:
    sigir_ecom.generate(tmp_path / "data", 0.001, 0, silent)
    facts = json.loads((tmp_path / "data" / "generator.json").read_text())
    for task, metric, largest in (("rec", "MRR@20", 1.0), ("cart", "weighted_f1", 4.5)):
        found = ceiling(tmp_path / "data", task, metric)
        assert found == facts["ceiling"][task][metric] and 0 < found <= largest
        assert found == pytest.approx(facts["ceiling"][task]["expected"], abs=0.1 * largest)
    del facts["ceiling"]
    (tmp_path / "data" / "generator.json").write_text(json.dumps(facts | {"version": 1}))
    assert ceiling(tmp_path / "data", "rec", "MRR@20") is None
    assert ceiling(tmp_path, "rec", "MRR@20") is None
