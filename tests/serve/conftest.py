"""A server with the small voice, one with random weights that can clone, and such a model alone."""

from __future__ import annotations

import pytest

pytest.importorskip("fastapi", reason="the server is not installed: pip install -e '.[serve-test]'")

from serving import load_mini, load_tiny, ready, running


@pytest.fixture(scope="module")
def mini(tmp_path_factory):
    with running(tmp_path_factory.mktemp("voices"), load_mini) as server:
        yield ready(server)


@pytest.fixture(scope="module")
def cloning():
    """A model that can clone, without a server."""
    model = load_tiny()
    yield model
    model.close()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    with running(tmp_path_factory.mktemp("voices"), load_tiny, model_id="english") as server:
        yield ready(server)
