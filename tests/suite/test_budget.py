import pytest
from hypothesis import given
from hypothesis import strategies as st

from buzzer.engine.device import Gpu
from buzzer.errors import UsageError
from buzzer.suite import budget
from buzzer.suite.budget import Budget


@pytest.mark.parametrize(
    ("text", "cores", "memory", "seconds"),
    [
        ("1c20g24h", 1, 20 * 10**9, 86400),
        ("2c512m90s", 2, 512 * 10**6, 90),
        ("1c64g24h", 1, 64 * 10**9, 86400),
        ("16c1.5ti2d", 16, int(1.5 * 2**40), 172800),
        ("1C4GB5M", 1, 4 * 10**9, 300),
        ("1c512mib30s", 1, 512 * 2**20, 30),
    ],
)
def test_budgets_with_cores_memory_and_time(text: str, cores: int, memory: int, seconds: float) -> None:
    assert budget.parse(text) == Budget(text, cores, memory, seconds)


@pytest.mark.parametrize(("text", "gpu"), [("8c64g1h-gpu40g", 40 * 10**9), ("1c4g5m-gpu1.5GiB", 3 * 2**29)])
def test_gpu_memory_may_follow(text: str, gpu: int) -> None:
    assert budget.parse(text).gpu_memory_bytes == gpu
    assert budget.parse(text.split("-")[0]).gpu_memory_bytes is None


def test_more_gpu_memory_than_the_machine_has_is_unmet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("buzzer.engine.device.gpus", lambda: [Gpu("a GPU", 80 * 10**9)])
    assert budget.unmet(budget.parse("1c1m1h-gpu40g")) == []
    assert budget.unmet(budget.parse("1c1m1h-gpu100g")) == [
        "100.0 GB of GPU memory required, 80.0 GB available"
    ]


@pytest.mark.parametrize("text", ["0c1g1h", "1c0g1h", "1c1g0s", "1c1g1s-gpu0g"])
def test_zero_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="zero"):
        budget.resolve(text)


@pytest.mark.parametrize("text", ["99999999c1g1h", f"1c{'9' * 20}t1h", f"1c{'9' * 400}g1h", "1c1g99999999d"])
def test_budgets_beyond_any_machine_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="beyond any machine"):
        budget.resolve(text)


@pytest.mark.parametrize(
    "text",
    [
        "1c20g",
        "c20g24h",
        "1c20g24",
        "1c20x24h",
        "-1c1g1h",
        "1c20g24h "[:-2] + "y",
        "1c20g24h-gpu",
        "1c20g24h-40g",
    ],
)
def test_malformed_budgets_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        budget.resolve(text)


def test_named_budgets() -> None:
    assert budget.resolve("seed-cpu") == Budget("seed-cpu", 1, 20 * 10**9, 86400)
    assert budget.resolve("recsys2021-official") == Budget("recsys2021-official", 1, 64 * 10**9, 86400)
    assert budget.resolve("unlimited") == Budget("unlimited")


def test_an_unknown_name_gets_a_suggestion() -> None:
    with pytest.raises(UsageError) as caught:
        budget.resolve("sed-cpu")
    assert "did you mean seed-cpu" in caught.value.hint


def test_unmet_limits_are_named() -> None:
    problems = budget.unmet(Budget("big", 10**4, 10**15, 1.0))
    assert len(problems) == 2
    assert "10000 cores" in problems[0]
    assert "GB" in problems[1]
    assert budget.unmet(Budget("small", 1, 10**6, 1.0)) == []


@given(
    st.integers(1, 512),
    st.integers(1, 10**4),
    st.sampled_from("kmgt"),
    st.integers(1, 10**4),
    st.sampled_from("smhd"),
)
def test_every_written_budget_reads_back(
    cores: int, memory: int, unit: str, time: int, time_unit: str
) -> None:
    read = budget.parse(f"{cores}c{memory}{unit}{time}{time_unit}")
    assert read.cores == cores
    assert read.memory_bytes == memory * 1000 ** ("kmgt".index(unit) + 1)
    assert read.time_s == time * {"s": 1, "m": 60, "h": 3600, "d": 86400}[time_unit]
