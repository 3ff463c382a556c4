"""A container's limit of processor time, which is less than its number of processors."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from chatterbox_opt import OptimizedChatterboxTTS, cpu_limit
from chatterbox_opt.computing import computing
from chatterbox_opt.openmp import can_choose_cores

ONE = Path("/sys/fs/cgroup/cpu/chatterbox-test")


@pytest.fixture
def limited(tmp_path, monkeypatch):
    """Writes what a process sees of its control groups, and returns the limit that is found."""

    def limit(groups: str, files: dict[str, str]) -> float | None:
        (tmp_path / "groups").write_text(groups)
        for name, content in files.items():
            file = tmp_path / "mounted" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content)
        monkeypatch.setattr(cpu_limit, "GROUPS", tmp_path / "groups")
        monkeypatch.setattr(cpu_limit, "MOUNTED", tmp_path / "mounted")
        cpu_limit.cpu_limit.cache_clear()
        return cpu_limit.cpu_limit()

    yield limit
    cpu_limit.cpu_limit.cache_clear()


FIRST = {"cpu/cpu.cfs_period_us": "100000\n"}


@pytest.mark.parametrize(
    ("groups", "files", "wanted"),
    [
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),  # Docker and Kubernetes
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", {}, None),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "50000 100000", "cpu.max": "400000 100000"}, 0.5),
        ("0::/a/b\n", {"a/b/cpu.max": "150000 100000", "a/cpu.max": "400000 100000"}, 1.5),  # systemd's CPUQuota=150%
        ("3:cpuset:/\n1:cpu:/x\n0::/\n", FIRST | {"cpu/cpu.cfs_quota_us": "300000\n"}, 3),  # the host's path
        ("4:cpu,cpuacct:/\n", {"cpu,cpuacct/cpu.cfs_quota_us": "100000", "cpu,cpuacct/cpu.cfs_period_us": "50000"}, 2),
        ("1:cpu:/\n", FIRST | {"cpu/cpu.cfs_quota_us": "-1\n"}, None),
        ("\nnothing\n0:\n0::/\n", {"cpu.max": "200000 100000\n"}, 2),  # lines of another form
        ("0::/\n", {"cpu.max": "200000 0\n"}, None),
        ("0::/../b\n", {"b/cpu.max": "max 100000\n", "cpu.max": "200000 100000\n"}, 2),  # outside the namespace
        ("5:memory:/\n", FIRST | {"cpu/cpu.cfs_quota_us": "100000\n"}, None),
    ],
)
def test_limits_as_systems_write_them(limited, groups, files, wanted):
    assert limited(groups, files) == wanted


def test_a_name_in_another_encoding(limited, tmp_path):
    limited("", {"cpu.max": "200000 100000"})
    (tmp_path / "groups").write_bytes(b"0::/caf\xe9\n")
    cpu_limit.cpu_limit.cache_clear()
    assert cpu_limit.cpu_limit() is None


def test_a_system_without_control_groups(limited, monkeypatch, tmp_path):
    limited("0::/\n", {"cpu.max": "100000 100000"})
    monkeypatch.setattr(cpu_limit, "GROUPS", tmp_path / "missing")
    cpu_limit.cpu_limit.cache_clear()
    assert cpu_limit.cpu_limit() is None
    assert cpu_limit.threads_within_limit(4) is None


@pytest.mark.skipif(not can_choose_cores(), reason="no GNU OpenMP in this torch")
def test_a_thread_computes_on_no_more_cores_and_has_its_own_number_again(limited):
    before = torch.get_num_threads()
    torch.set_num_threads(5)
    try:
        for quota, threads in ((25, 1), (100, 1), (110, 2), (300, 3), (500, 5), (900, 5)):
            limited("0::/\n", {"cpu.max": f"{quota}000 100000"})
            with computing(torch.device("cpu")):
                assert torch.get_num_threads() == threads
                with computing(torch.device("cpu")):
                    assert torch.get_num_threads() == threads
            assert torch.get_num_threads() == 5
        limited("0::/\n", {"cpu.max": "200000 100000"})
        loaded = OptimizedChatterboxTTS.from_random(size="tiny", seed=0)
        parts = loaded.t3, loaded.s3gen, loaded.ve, loaded.tokenizer, "cpu"
        for model in (loaded, OptimizedChatterboxTTS(*parts, config=loaded.config)):
            assert model.pipeline.engine.renderer.workers.count == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not (ONE.parent / "cgroup.procs").exists(), reason="no first version of control groups")
def test_a_real_group():
    try:
        ONE.mkdir(exist_ok=True)
        (ONE / "cpu.cfs_quota_us").write_text("100000")
    except OSError as error:
        pytest.skip(f"no group can be made: {error}")
    try:
        join = f"import os; open('{ONE}/cgroup.procs', 'w').write(str(os.getpid()))"
        program = f"{join}; from chatterbox_opt.cpu_limit import cpu_limit; print(cpu_limit())"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "1.0"
    finally:
        ONE.rmdir()
