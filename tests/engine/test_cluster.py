"""Dask clusters: errors, and the options of a cluster of GPUs."""

import sys
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest

from buzzer.engine import cluster
from buzzer.engine.device import Gpu
from buzzer.errors import UnsupportedError, UsageError

dask = pytest.importorskip("dask", reason="needs the cluster extra")
distributed = pytest.importorskip("distributed", reason="needs the cluster extra")


def some_gpus(n: int) -> list[Gpu]:
    return [Gpu("a GPU", 80 * 10**9)] * n


def test_an_address_without_a_scheduler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "CONNECT_S", 1)
    with pytest.raises(UsageError, match="no Dask scheduler answers"), cluster.opened(0, "tcp://127.0.0.1:9"):
        pass


def test_an_address_without_a_known_scheme_is_refused() -> None:
    with pytest.raises(UsageError, match="no Dask scheduler answers"), cluster.opened(0, "nonsense://x"):
        pass


def test_a_running_cluster_keeps_running_after_use() -> None:
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None
    ) as local:
        for _ in range(2):
            with cluster.opened(0, local.scheduler_address) as client:
                assert len(cluster.addresses(client)) == 2
                array = np.arange(10.0)
                assert float(cluster.spread(client, array, 5).sum().compute()) == 45
        local.scale(0)
        with pytest.raises(UsageError, match="has no workers"):
            for _ in range(100):  # workers leave one by one
                with cluster.opened(0, local.scheduler_address):
                    pass


def test_the_list_of_workers_is_complete_while_the_client_refreshes_its_own() -> None:
    with (
        dask.config.set({"distributed.client.scheduler-info-interval": "1ms"}),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None
        ) as local,
        distributed.Client(local) as client,
    ):
        client.wait_for_workers(2)
        assert {len(cluster.addresses(client)) for _ in range(200)} == {2}


def test_a_local_cluster_listens_to_this_machine_only() -> None:
    """Dask has no authentication."""
    with cluster.cpu_cluster(0, 1):
        heard = psutil.Process().net_connections(kind="inet")
        addresses = {c.laddr.ip for c in heard if c.status == psutil.CONN_LISTEN}
    assert addresses == {"127.0.0.1"}


@pytest.mark.parametrize(
    ("package", "device", "hint"), [("distributed", "cpu", "[cluster]"), ("dask_cuda", "cuda", "[gpu]")]
)
def test_the_error_of_a_missing_package_names_the_extra(
    package: str, device: str, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match=package) as caught, cluster.opened(2, device=device):
        pass
    assert hint in caught.value.hint


def test_more_gpus_than_the_machine_has_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("buzzer.engine.device.gpus", lambda: some_gpus(1))
    with pytest.raises(UnsupportedError, match="2 GPUs requested, this machine has 1"):
        cluster.cuda_cluster(2, None)


@pytest.mark.parametrize(("limit", "asked"), [(None, 0.8), (40 * 10**9, 40 * 10**9)])
def test_gpu_workers_have_a_pool_and_spill(
    limit: int | None, asked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for dask-cuda that accepts the keywords of the real one."""
    given: dict[str, Any] = {}

    @contextmanager
    def stand_in(
        *,
        device_memory_limit: Any,
        rmm_async: bool,
        rmm_maximum_pool_size: Any,
        enable_cudf_spill: bool,
        **rest: Any,
    ) -> Any:
        given.update(
            limit=device_memory_limit, pool=rmm_maximum_pool_size, spill=enable_cudf_spill and rmm_async
        )
        with distributed.LocalCluster(**rest, threads_per_worker=1, processes=False) as local:
            yield local

    monkeypatch.setitem(sys.modules, "dask_cuda", SimpleNamespace(LocalCUDACluster=stand_in, __spec__="here"))
    monkeypatch.setattr("buzzer.engine.device.gpus", lambda: some_gpus(2))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    with cluster.opened(1, device="cuda", gpu_memory_bytes=limit) as client:
        assert len(cluster.addresses(client)) == 1
    assert given == {"limit": asked, "pool": asked, "spill": True}
