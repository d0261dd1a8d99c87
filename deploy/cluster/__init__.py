"""Latebind as many processes on one machine, on real servers: for development, tests and `make demo-cluster`.

`python -m deploy.cluster up|stop|status`, or `Cluster` from Python. It does what an orchestrator does in production: migrates, starts two
of each part with one secrets folder, and keeps the address of the gateways open while they are restarted.
"""

from deploy.cluster.cluster import PARTS, Cluster
from deploy.cluster.process import Process, ProcessFailed
from deploy.cluster.stores import Stores

__all__ = ["PARTS", "Cluster", "Process", "ProcessFailed", "Stores"]
