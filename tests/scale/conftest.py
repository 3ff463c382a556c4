"""A Ray cluster of two nodes on this machine, shared by all tests of a pytest process."""

from __future__ import annotations

import sys

import pytest

NO_RAY = "Ray is not installed: pip install -e '.[ray]'"


@pytest.fixture(scope="session")
def cluster():
    ray = pytest.importorskip("ray", reason=NO_RAY)
    from ray.cluster_utils import Cluster

    from chatterbox_opt.scale.again import PROXIES

    with pytest.MonkeyPatch.context() as patch:
        for name, value in PROXIES.items():
            patch.setenv(name, value)
        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
        try:
            nodes.add_node(num_cpus=2)
            ray.init(nodes.address, log_to_driver=False, configure_logging=False)
            yield nodes
            if "ray.serve" in sys.modules:
                ray.serve.shutdown()
        finally:
            ray.shutdown()
            nodes.shutdown()
