"""Tiny random checkpoints."""

import shutil

import pytest

from chatterbox_opt.weights.random_init import write_checkpoint


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """A tiny random checkpoint per family. Tests copy what they change."""
    families = ("tts", "mtl", "turbo", "nano")
    return {family: write_checkpoint(tmp_path_factory.mktemp(family), family) for family in families}


@pytest.fixture
def folder(folders, tmp_path):
    """A copy of the English one, which a test may change."""
    return shutil.copytree(folders["tts"], tmp_path / "tts")
