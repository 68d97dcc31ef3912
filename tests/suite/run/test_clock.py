import io

from hypothesis import given
from hypothesis import strategies as st

from buzzer.models.api.context import Result, Steps
from buzzer.suite.run import clock, events
from buzzer.suite.run.progress import RunProgress


class FakeTime:
    """A clock that the test sets, so that sums are exact."""

    def __init__(self) -> None:
        self.t = 100.0

    def __call__(self) -> float:
        return self.t


def progress_of(file: io.StringIO) -> RunProgress:
    progress = RunProgress()
    for line in file.getvalue().splitlines():
        progress.apply(events.parse(line))
    return progress


@given(
    st.lists(st.tuples(st.sampled_from(["load", "features", "predict"]), st.integers(0, 1000)), max_size=30)
)
def test_phases_and_laps_add_up_to_the_wall_time(visits: list[tuple[str, int]]) -> None:
    now, file = FakeTime(), io.StringIO()

    def steps() -> Steps:
        now.t += 1.0  # the import of the task, still in phase start
        for name, milliseconds in visits:
            yield name
            now.t += milliseconds / 1024
        return Result(rows=len(visits))

    result, wall_s = clock.run(steps(), clock.Clock(file, now=now, cpu=now, age=2.0))
    progress = progress_of(file)
    assert result.rows == len(visits)
    assert wall_s == 3.0 + sum(ms for _, ms in visits) / 1024
    assert sum(p.wall_s for p in progress.phases.values()) == wall_s
    assert progress.phases["start"].wall_s == 3.0
    for name in {name for name, _ in visits}:
        expected = [ms / 1024 for visited, ms in visits if visited == name]
        assert progress.phases[name].wall_s == sum(expected)
        assert progress.samples[name] == expected


def test_a_stopped_run_keeps_its_running_phase() -> None:
    now, file = FakeTime(), io.StringIO()
    ticker = clock.Clock(file, now=now, cpu=now)
    now.t += 1
    ticker.phase("load")
    now.t += 2
    ticker.phase("predict")
    progress = progress_of(file)
    progress.close_phase(10.0)
    assert {n: p.wall_s for n, p in progress.phases.items()} == {"start": 1, "load": 2, "predict": 7}


def test_the_device_is_waited_for_before_every_reading() -> None:
    now, waits = FakeTime(), []

    def synchronize() -> None:
        waits.append(now.t)
        now.t += 5  # work that was still in flight

    ticker = clock.Clock(io.StringIO(), now=now, cpu=now, synchronize=synchronize)
    ticker.phase("predict")
    assert ticker.stop() == 10
    assert len(waits) == 2


def test_process_age_and_peak_are_available() -> None:
    assert 0 < clock.process_age() < 10**6
    block = bytearray(50 << 20)
    block[::4096] = b"x" * len(block[::4096])
    assert clock.resident_peak(reset=True) > 50 << 20
    del block
    assert clock.resident_peak(reset=False) > 0
