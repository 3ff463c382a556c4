"""Seeds, threads, and the one place that says why a test is skipped."""

from __future__ import annotations

import importlib.util
import logging
import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny networks lose by more, and badly beside other work
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TQDM_DISABLE", "1")  # upstream draws bars unasked

WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))  # processes that run tests on this machine's cores
NEEDS_UPSTREAM = "chatterbox-tts 0.1.7 is not installed: pip install --no-deps chatterbox-tts==0.1.7"
NEEDS_GPU = "needs a CUDA device"
NEEDS_WEIGHTS = "needs the published weights: --weights FOLDER"
NEEDS_SLOW = "full-size or long: --slow"

# The same examples in every run and order, however busy the machine is. On a GPU without a network the
# library may be missing.
if importlib.util.find_spec("hypothesis"):
    from hypothesis import HealthCheck, settings

    settings.register_profile(
        "suite", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
    )
    settings.load_profile("suite")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run what is marked slow too")
    parser.addoption("--weights", metavar="FOLDER", help="folder of published weights, one folder a family inside")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    reasons = {
        "gpu": None if _has_gpu() else NEEDS_GPU,
        "weights": None if config.getoption("--weights") else NEEDS_WEIGHTS,
        "slow": None if config.getoption("--slow") else NEEDS_SLOW,
    }
    for item in items:
        for mark, reason in reasons.items():
            if reason and item.get_closest_marker(mark):
                item.add_marker(pytest.mark.skip(reason=reason))


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(autouse=True)
def _same_start(request: pytest.FixtureRequest):
    """Every test begins with the same generators, in full float32; what a test sets is put back."""
    import torch

    tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    threads, level = torch.get_num_threads(), logging.getLogger("chatterbox_opt").level
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    if request.node.get_closest_marker("slow"):
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // WORKERS))
    torch.manual_seed(0)
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32
    torch.set_num_threads(threads)
    logging.getLogger("chatterbox_opt").setLevel(level)  # the benchmarks' mains want quiet


@pytest.fixture
def upstream():
    """Skips where upstream is not installed; its modules are imported by the test that needs them."""
    if importlib.util.find_spec("chatterbox") is None:
        pytest.skip(NEEDS_UPSTREAM)
    return pytest.importorskip("chatterbox", reason=NEEDS_UPSTREAM)


@pytest.fixture(scope="session")
def listener():
    """Whisper tiny.en, of benchmarks/metrics.py."""
    import metrics

    if missing := metrics.Listener.missing():
        pytest.skip(missing)
    return metrics.Listener()


@pytest.fixture(scope="session")
def weights_folder(request: pytest.FixtureRequest) -> str:
    return request.config.getoption("--weights")
