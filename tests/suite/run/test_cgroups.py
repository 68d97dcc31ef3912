import logging
from pathlib import Path

import pytest

from buzzer.suite.cli.env import limits_lines
from buzzer.suite.run import cgroups, limits


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for a mount of control groups, version 2."""
    monkeypatch.delenv("BUZZER_ENFORCEMENT", raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    return tmp_path


def test_in_a_container_processes_move_before_controllers_are_delegated(root: Path) -> None:
    (root / "cgroup.type").write_text("domain\n")
    make, move, *delegate = cgroups.missing(root, is_admin=True).commands
    assert make == f"mkdir -p {root}/init {root}/benchexec"
    assert f"> {root}/init/cgroup.procs" in move
    assert [line.split("> ")[1].split(";")[0] for line in delegate] == [
        f"{root}/cgroup.subtree_control",
        f"{root}/benchexec/cgroup.subtree_control",
    ]


def test_the_commands_run_in_a_shell(root: Path) -> None:
    """Run on the stand-in, they write every process and every controller to the right file."""
    import subprocess

    (root / "cgroup.type").write_text("domain\n")
    (root / "cgroup.procs").write_text("1\n7\n")
    for command in cgroups.missing(root, is_admin=True).commands:
        subprocess.run(["sh", "-ec", command.replace("> ", ">> ").replace("{root}", str(root))], check=False)
    assert (root / "init" / "cgroup.procs").read_text().split() == ["1", "7"]
    assert (root / "cgroup.subtree_control").read_text().split() == [
        "+cpuset",
        "+cpu",
        "+io",
        "+memory",
        "+pids",
    ]


def test_the_root_group_of_the_machine_keeps_its_processes(root: Path) -> None:
    assert not any("cgroup.procs" in c for c in cgroups.missing(root, is_admin=True).commands)


def test_a_user_who_is_not_root_needs_systemd(root: Path) -> None:
    missing = cgroups.missing(root, is_admin=False)
    assert missing.commands == ["systemd-run --user --scope --slice=benchexec -p Delegate=yes buzzer run"]


def test_a_read_only_mount_is_reported(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "read_only", lambda path: True)
    missing = cgroups.missing(root, is_admin=True)
    assert ("read-only" in missing.reason, missing.commands) == (True, [])


def test_a_user_who_chooses_polling_gets_no_commands(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUZZER_ENFORCEMENT", "polled")
    missing = cgroups.missing(root, is_admin=True)
    assert ("asks for polling" in missing.reason, missing.commands) == (True, [])
    assert limits_lines(missing) == [f"  {missing.reason}"]
    assert limits_lines(None) == []


def test_only_benchexec_is_silenced(caplog: pytest.LogCaptureFixture) -> None:
    """The root logger's level is the user's: warnings of other libraries, and of buzzer, still reach it."""
    limits.cgroups_work.cache_clear()
    limits.cgroups_work()
    with caplog.at_level(logging.WARNING):
        logging.warning("from a user's script")  # noqa: LOG015  BenchExec does this too
        logging.getLogger("buzzer").warning("from buzzer")
        logging.getLogger().handle(record_of("/venv/lib/benchexec/runexecutor.py"))
    assert caplog.messages == ["from a user's script", "from buzzer"]


def record_of(path: str) -> logging.LogRecord:
    return logging.LogRecord("root", logging.WARNING, path, 1, "from BenchExec", None, None)
