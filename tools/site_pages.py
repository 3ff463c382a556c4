"""Hooks of mkdocs.yml: they add pages from outside docs/ to the site, and adapt links to them."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {  # in the repository -> in the site
    "README.md": "index.md",
    "OPTIMIZATION.md": "optimization.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/README.md": "benchmarks.md",
    "chatterbox_opt/assets/mini/README.md": "mini.md",
}
HOMES = {page: source for source, page in PAGES.items()}
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!\w+:)([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    data = {p.relative_to(ROOT).as_posix() for p in (ROOT / "benchmarks" / "results").iterdir()}
    for source, page in {**PAGES, **{path: path for path in data}}.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    home = posixpath.dirname(HOMES.get(page.file.src_uri, f"docs/{page.file.src_uri}"))

    def moved(link: re.Match) -> str:
        picture, text, path, anchor = link.groups()
        source = posixpath.normpath(posixpath.join(home, path))
        target = PAGES.get(source, source.removeprefix("docs/"))
        if files.get_file_from_path(target):
            return f"{picture}[{text}]({target}{anchor or ''})"
        return text if (ROOT / source).exists() else link[0]  # a file of the repository has no page

    return LINK.sub(moved, markdown)
