"""What tests of pipelines share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.pipelines.slurm_cluster import SlurmCluster, slurm_cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmCluster]:
    """A Slurm of two nodes, for all tests of a file."""
    with slurm_cluster() as running:
        yield running
