"""The Pareto front against its definition."""

from hypothesis import given
from hypothesis import strategies as st

from buzzer.suite.analysis import pareto

POINTS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12)


@given(POINTS)
def test_the_front_has_the_points_that_no_other_point_beats(points: list[tuple[int, int]]) -> None:
    def beaten(p: tuple[int, int]) -> bool:
        return any(q[0] <= p[0] and q[1] >= p[1] and q != p for q in points)

    front = pareto.front(points, cost=lambda p: p[0], value=lambda p: p[1])
    assert front == sorted({p for p in points if not beaten(p)})
