"""Hooks of mkdocs.yml: pages with diagrams load Mermaid from the site itself. The theme alone would use a CDN."""

from __future__ import annotations

import logging
import shutil
import subprocess
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.utils import get_relative_url

logger = logging.getLogger("mkdocs.hooks.site_diagrams")

PACKAGE, MEMBER = "mermaid@11.16.0", "package/dist/mermaid.min.js"  # 11 as in the theme; 3 MB, so it is not kept here
SCRIPT = "assets/mermaid.min.js"


def on_files(files: Files, config: Any) -> Files:
    try:
        files.append(File.generated(config, SCRIPT, content=mermaid()))
    except (OSError, subprocess.CalledProcessError) as error:
        logger.info("npm gave no %s (%s): the diagrams of this site come from a CDN", PACKAGE, error)
    return files


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    if 'class="mermaid"' not in html or files.get_file_from_path(SCRIPT) is None:
        return html
    return f'<script src="{get_relative_url(SCRIPT, page.url)}"></script>\n{html}'


def mermaid() -> bytes:
    with TemporaryDirectory() as folder:
        command = [shutil.which("npm") or "npm", "pack", "--silent", "--pack-destination", folder, PACKAGE]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        (archive,) = Path(folder).iterdir()
        with tarfile.open(archive) as tar:
            return tar.extractfile(MEMBER).read()
