"""A Ray cluster of two nodes on this machine, for the tests that need a real one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any


@contextmanager
def two_nodes(*by_value: ModuleType) -> Iterator[Any]:
    """A `Cluster` of two nodes with one CPU each, connected to; the modules given travel to workers with the work,
    because no worker has the tests' folders on its path.
    """
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_raylet_start_wait_time_s": "120"}  # machines may be busy
    import ray
    from ray.cluster_utils import Cluster

    for module in by_value:
        ray.cloudpickle.register_pickle_by_value(module)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    try:
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()
        for module in by_value:
            ray.cloudpickle.unregister_pickle_by_value(module)
