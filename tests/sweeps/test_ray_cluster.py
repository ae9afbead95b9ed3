"""A sweep on a Ray cluster of two nodes on this machine, one of which is lost in the middle."""

import contextlib
import os

import pytest

from tests.faults.sweeps import end, needs, numbers, rows, start, sweep, wait_for

pytestmark = pytest.mark.slow

JOBS = ("max_steps=4000", "check_every=500", "checkpoint_every=100", "target=null", "lr_policy=fix", "seed=0,1")


@pytest.fixture
def cluster():
    needs("ray")
    before = dict(os.environ)
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - as in the environment of the sweep
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80_000_000}
    made = Cluster(initialize_head=True, head_node_args=node)
    made.add_node(num_cpus=1, object_store_memory=80_000_000)
    yield made
    with contextlib.suppress(Exception):  # whatever is left of it
        made.shutdown()
    for name in os.environ.keys() - before.keys():
        del os.environ[name]


def test_a_job_whose_node_is_lost_resumes_on_another(tmp_path, cluster):
    folder, output = tmp_path / "sweep", tmp_path / "output.txt"
    process = start(folder, "ray", *JOBS, f"hydra.launcher.init.address={cluster.address}", output=output)
    try:
        assert wait_for(lambda: len(list(folder.glob("*/checkpoints/step=*.ckpt"))) >= 2, limit_s=240)
        cluster.remove_node(cluster.worker_nodes.copy().pop(), allow_graceful=False)
        assert process.wait(timeout=540) == 0, output.read_text()
    finally:
        end(process)
    text = output.read_text()
    assert "queued again, its node was lost" in text
    assert "resuming from step=" in text
    assert "2 jobs: 2 without a target" in text
    assert [row["status"] for row in rows(folder)] == ["missed", "missed"]
    other = sweep(tmp_path / "other", "basic", *JOBS)
    assert other.returncode == 0, other.stdout + other.stderr
    assert numbers(folder) == numbers(tmp_path / "other")
