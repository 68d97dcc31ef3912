import io
import json

from hypothesis import given
from hypothesis import strategies as st

from buzzer.models.api.context import Result, Steps
from buzzer.suite.run import clock
from buzzer.suite.run.progress import RunProgress


class FakeTime:
    """A clock that moves only when told, so that sums can be exact."""

    def __init__(self) -> None:
        self.t = 100.0

    def __call__(self) -> float:
        return self.t


def told(events: io.StringIO) -> RunProgress:
    story = RunProgress()
    for line in events.getvalue().splitlines():
        story.take(json.loads(line))
    return story


@given(
    st.lists(st.tuples(st.sampled_from(["load", "features", "predict"]), st.integers(0, 1000)), max_size=30)
)
def test_phases_and_laps_add_up_to_the_wall_time(visits: list[tuple[str, int]]) -> None:
    now, events = FakeTime(), io.StringIO()

    def steps() -> Steps:
        now.t += 1.0  # the import of the task, still in phase start
        for name, milliseconds in visits:
            yield name
            now.t += milliseconds / 1024
        return Result(rows=len(visits))

    result, wall_s = clock.run(steps(), clock.Clock(events, now=now, cpu=now, age=2.0))
    story = told(events)
    assert result.rows == len(visits)
    assert wall_s == 3.0 + sum(ms for _, ms in visits) / 1024
    assert sum(p.wall_s for p in story.phases.values()) == wall_s
    assert story.phases["start"].wall_s == 3.0
    for name in {name for name, _ in visits}:
        expected = [ms / 1024 for visited, ms in visits if visited == name]
        assert story.phases[name].wall_s == sum(expected)
        assert story.samples[name] == expected


def test_a_cut_run_keeps_the_phase_it_was_in() -> None:
    now, events = FakeTime(), io.StringIO()
    ticker = clock.Clock(events, now=now, cpu=now)
    now.t += 1
    ticker.phase("load")
    now.t += 2
    ticker.phase("predict")
    story = told(events)
    story.cut(wall_s=10.0)
    assert {n: p.wall_s for n, p in story.phases.items()} == {"start": 1, "load": 2, "predict": 7}


def test_the_device_is_waited_for_before_every_reading() -> None:
    now, waits = FakeTime(), []

    def synchronize() -> None:
        waits.append(now.t)
        now.t += 5  # work that was still in flight

    ticker = clock.Clock(io.StringIO(), now=now, cpu=now, synchronize=synchronize)
    ticker.phase("predict")
    assert ticker.stop() == 10
    assert len(waits) == 2


def test_process_age_and_peak_are_told_here() -> None:
    assert 0 < clock.process_age() < 10**6
    block = bytearray(50 << 20)
    block[::4096] = b"x" * len(block[::4096])
    assert clock.resident_peak(reset=True) > 50 << 20
    del block
    assert clock.resident_peak(reset=False) > 0
