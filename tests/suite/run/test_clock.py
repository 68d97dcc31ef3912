import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buzzer.models.api.context import Result, Steps
from buzzer.suite.run import clock, events
from buzzer.suite.run.events import PartDone, PhaseStarted
from buzzer.suite.run.progress import Part, RunProgress


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


def test_parts_of_a_phase_are_written_at_most_once_a_second() -> None:
    now, file = FakeTime(), io.StringIO()
    ticker = clock.Clock(file, now=now, cpu=now)
    for tenth in range(30):
        now.t = 100 + tenth / 8
        ticker.report(tenth / 32)
    assert progress_of(file).parts == [(1.0, 8 / 32), (2.0, 16 / 32), (3.0, 24 / 32)]
    ticker.phase("fit")
    assert progress_of(file).parts == []
    for share in (float("nan"), 1 + 1e-9):  # a rounded sum of parts may be above 1
        now.t += 1
        ticker.report(share)
    assert [share for _, share in progress_of(file).parts] == [0.0, 1.0]


@pytest.mark.parametrize(
    ("parts", "age_s", "expected"),
    [
        ([], 30.0, None),
        ([(20.0, 0.0)], 30.0, Part(0.0, None)),
        ([(20.0, 0.001)], 30.0, Part(0.001, None)),  # too little to tell
        ([(30.0, 0.25)], 30.0, Part(0.25, 60.0)),
        ([(30.0, 0.25)], 40.0, Part(0.25, 50.0)),  # ten seconds after the report
        ([(30.0, 0.25)], 400.0, Part(0.25, 0.0)),
        # An earlier fit had done the first half: the estimate follows what came after it.
        ([(11.0, 0.5), (31.0, 0.6), (51.0, 0.7)], 51.0, Part(0.7, 60.0)),
        # A phase that goes on after another one reports first what was done before.
        ([(10.0, 0.45), (15.0, 0.55)], 15.0, Part(0.55, 22.5)),
    ],
)
def test_the_time_left_follows_the_reported_shares(
    parts: list[tuple[float, float]], age_s: float, expected: Part | None
) -> None:
    progress = RunProgress(running="fit", running_since_s=10.0)
    for at_s, share in parts:
        progress.apply(PartDone(share, at_s))
    part = progress.part(age_s)
    assert part == (expected and pytest.approx(expected))


@pytest.mark.parametrize(
    "part", [PartDone(1.5, 2.0), PartDone(-0.1, 2.0), PartDone(0.5, 0.5), PartDone(0.5, float("nan"))]
)
def test_a_part_that_the_phase_cannot_have_is_rejected(part: PartDone) -> None:
    progress = RunProgress()
    progress.apply(PhaseStarted("fit", 1.0, 100.0))
    with pytest.raises(ValueError, match="cannot have"):
        progress.apply(part)
