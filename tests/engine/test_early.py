"""Which devices start kernels early."""

from __future__ import annotations

import pytest
import torch

from chatterbox_opt.engine.kernels import early

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(early.gdc_wait is None, reason="this version of Triton starts no kernel early")
GPU = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def nothing_known():
    early.able.cache_clear()
    yield
    early.able.cache_clear()


@pytest.mark.parametrize(
    ("capability", "hip", "able"),
    [((8, 9), None, False), ((9, 0), None, True), ((12, 0), None, True), ((9, 4), "6.4", False)],
    ids=["Ada", "Hopper", "Blackwell", "AMD"],
)
def test_from_hopper_on(capability, hip, able, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert early.early(GPU) == ({"EARLY": True, "launch_pdl": True} if able else {"EARLY": False})


def test_older_versions_of_triton_and_other_devices_do_not(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(early, "gdc_wait", None)
    assert early.early(GPU) == early.early(torch.device("cpu")) == {"EARLY": False}
