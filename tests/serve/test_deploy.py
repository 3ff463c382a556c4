"""deploy/ as far as it can be tried without a container engine and without systemd running."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


def test_what_the_image_copies_is_enough_to_build_the_package(tmp_path):
    """And the wheel contains the small model."""
    context = tmp_path / "src"
    context.mkdir()
    for line in re.findall(r"^COPY (.+) /src", (DEPLOY / "Dockerfile").read_text(encoding="utf-8"), re.M):
        for name in line.split():
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, context / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, context / name)
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path], cwd=context, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "chatterbox_opt/serve/app.py" in names
    assert any(name.endswith("t3_cfg.safetensors") for name in names)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_accepts_the_unit(tmp_path):
    text = (DEPLOY / "chatterbox-opt.service").read_text(encoding="utf-8")
    program = re.search(r"^ExecStart=(\S+)", text, re.M)[1]
    here = tmp_path / "chatterbox-opt"  # it is looked for
    here.write_text("#!/bin/sh\n", encoding="utf-8")
    here.chmod(0o755)
    unit = tmp_path / "chatterbox-opt.service"
    unit.write_text(text.replace(program, str(here)), encoding="utf-8")
    env = os.environ | {"SYSTEMD_LOG_LEVEL": "warning"}
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, env=env)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
