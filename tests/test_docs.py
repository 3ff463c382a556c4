"""The pages: links lead somewhere, Python runs or at least compiles, lines are short."""

import dataclasses
import importlib
import importlib.util
import io
import re
import tarfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from documents import DOCS, PAGES, ROOT, anchors, blocks, check_imports, page_names, prose, read, run
from safetensors.torch import save_file

from chatterbox_opt import OptimizedChatterboxMultilingualTTS, OptimizedChatterboxTurboTTS, OptimizedChatterboxVC
from chatterbox_opt.packing.cache import ABANDONED
from chatterbox_opt.reading.script import SCENE
from chatterbox_opt.text.languages import HELPERS, SUPPORTED_LANGUAGES
from chatterbox_opt.voice_preparer import VOICE_SECONDS

ARCHITECTURE = read(ROOT / "docs" / "architecture.md")


def path_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=path_of)
def test_links_exist(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(read(page))):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), target
        if anchor:
            assert anchor in anchors(read(found)), target


@pytest.mark.parametrize("page", PAGES, ids=path_of)
def test_its_python_compiles_and_its_imports_exist(page):
    for code in blocks(read(page), "python"):
        check_imports(code)


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent.name != "mini"], ids=path_of)
def test_its_lines_are_short(page):
    """Except tables, which cannot be wrapped."""
    long = [line for line in prose(read(page)).splitlines() if len(line) > 100 and not line.startswith(("|", "!["))]
    assert long == []


def test_the_python_of_usage_runs(tmp_path, monkeypatch):
    codes, names = blocks(read(ROOT / "docs" / "usage.md"), "python"), page_names(tmp_path, monkeypatch, "tiny")
    run(codes, names, {"max_new_tokens=500, ": "", "cuda": "cpu"})
    assert len(names["wavs"]) == 3
    assert names["speech"].stops
    assert Path("ref.pt").is_file()
    assert names["model"].config.clones is False, "the last block loads mini"


@pytest.mark.parametrize("name", ["options", "streaming", "loading", "scale"])
def test_the_python_of_a_page_runs_on_mini(tmp_path, monkeypatch, name):
    codes, names = blocks(read(ROOT / "docs" / f"{name}.md"), "python"), page_names(tmp_path, monkeypatch, "mini")
    run(codes, names, {"cuda": "cpu", '"DIR"': "MINI"})


def test_the_python_of_parts_runs(tmp_path, monkeypatch):
    names = page_names(tmp_path, monkeypatch, "tiny")
    state = {name: tensor.clone() for name, tensor in names["model"].t3.state_dict().items()}
    rows = len(state["text_emb.weight"]) + 5
    save_file(state, "my_t3.safetensors")
    save_file(state | {"text_emb.weight": torch.ones(rows, names["model"].t3.dim)}, "my_larger_t3.safetensors")
    names |= {"device": "cpu", "rows": rows, "torch": torch, "my_tokenizer": names["model"].tokenizer}
    run(blocks(read(ROOT / "docs" / "parts.md"), "python"), names, {})
    assert torch.equal(names["model"].t3.text_emb.weight.float(), torch.ones(rows, names["model"].t3.dim))
    assert names["model"].generate("Hello.").numel()


def test_the_python_of_families_runs(tmp_path, monkeypatch):
    names = page_names(tmp_path, monkeypatch, "tiny")
    for cls in (OptimizedChatterboxTurboTTS, OptimizedChatterboxMultilingualTTS, OptimizedChatterboxVC):
        load = partial(cls.from_random, "cpu", enable_watermark=False)
        monkeypatch.setattr(cls, "from_pretrained", lambda device, t3_model="", load=load: load())
    for cls in (OptimizedChatterboxTurboTTS, OptimizedChatterboxMultilingualTTS):
        monkeypatch.setattr(cls, "defaults", dataclasses.replace(cls.defaults, max_new_tokens=8))
    run(blocks(read(ROOT / "docs" / "families.md"), "python"), names, {"cuda": "cpu", "speech.wav": "ref.flac"})
    assert names["wav"].shape[1] > 24_000, "all of the recording"


def test_families_names_every_language_and_package():
    page = read(ROOT / "docs" / "families.md")
    assert f"\n\n{', '.join(SUPPORTED_LANGUAGES)};" in page
    for language, helper in HELPERS.items():
        assert re.search(rf"^\| {language} \| .*{helper._package}", page, re.M)


@pytest.mark.parametrize(
    ("page", "words", "number", "said"),
    [
        ("long_form", "is a pause of 1.5 s", SCENE, 1.5),
        ("families", "all of it, up to 5 minutes", VOICE_SECONDS, 5 * 60),
        ("loading", "its remains are deleted after an hour", ABANDONED, 60 * 60),
    ],
    ids=["long_form", "families", "loading"],
)
def test_numbers_of_pages_are_those_of_the_package(page, words, number, said):
    assert words in " ".join(read(ROOT / "docs" / f"{page}.md").split())
    assert number == said


def test_what_pages_name_by_its_module_is_there():
    for page in PAGES:
        for name in re.findall(r"\b(chatterbox_opt(?:\.\w+)+)", read(page)):
            module, _, attribute = name.rpartition(".")
            if importlib.util.find_spec(module) and not importlib.util.find_spec(module).submodule_search_locations:
                assert hasattr(importlib.import_module(module), attribute), f"{page.name}: {name}"


def test_every_file_of_the_tree_exists():
    tree = re.search(r"## The tree\n\n```\n(.*?)```", ARCHITECTURE, re.S)[1]
    for name in re.findall(r"[\w/]+\.py|(?<!\S)\w+/", tree):
        inside = ROOT / "chatterbox_opt" / name
        assert inside.exists() or (ROOT / name).exists(), name


def test_every_folder_of_the_package_is_in_the_tree():
    folders = {path.parent.name for path in (ROOT / "chatterbox_opt").glob("*/__init__.py")}
    assert {folder for folder in folders if f"  {folder}/" not in ARCHITECTURE} == set()


def test_every_file_that_architecture_points_to_exists():
    for name in re.findall(r"`([\w/]+\.py)`", ARCHITECTURE):
        assert (ROOT / "chatterbox_opt" / name).exists() or (ROOT / name).exists(), name


def test_the_site_has_every_page():
    pages = set(re.findall(r"[\w/]+\.md", (ROOT / "mkdocs.yml").read_text()))
    assert {page.name for page in DOCS} <= pages


@pytest.mark.parametrize(("page", "link", "moved"), [
    ("index.md", "[quality](docs/quality.md#x)", "[quality](quality.md#x)"),
    ("gpu.md", "[figures](../OPTIMIZATION.md#measured)", "[figures](optimization.md#measured)"),
    ("mini.md", "![picture](../../../benchmarks/results/overview.svg)", "![picture](benchmarks/results/overview.svg)"),
    ("serving.md", "[deploy](../deploy)", "deploy"),
    ("serving.md", "[else](https://example.com/a)", "[else](https://example.com/a)"),
])  # fmt: skip
def test_links_of_the_site_lead_where_those_of_the_repository_lead(page, link, moved, monkeypatch):
    files = pytest.importorskip("mkdocs.structure.files", reason="mkdocs is not installed: pip install -e '.[docs]'")
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    site = importlib.import_module("site_pages")
    known = [files.File(path.name, str(ROOT / "docs"), "site", True) for path in DOCS]
    others = [*site.PAGES.values(), "benchmarks/results/overview.svg"]
    known += [files.File(name, str(ROOT), "site", True) for name in others]
    of_site = files.Files(known)
    assert site.on_page_markdown(link, SimpleNamespace(file=of_site.get_file_from_path(page)), None, of_site) == moved


@pytest.mark.parametrize(("npm", "loaded"), [(True, True), (False, False)], ids=["with npm", "without"])
def test_pages_with_diagrams_load_mermaid_from_the_site(npm, loaded, monkeypatch):
    """Without npm the theme loads it from a CDN, and the site is built all the same."""
    files = pytest.importorskip("mkdocs.structure.files", reason="mkdocs is not installed: pip install -e '.[docs]'")
    building = SimpleNamespace(_current_plugin="site_diagrams")
    config = SimpleNamespace(site_dir="site", use_directory_urls=True, plugins=building)
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    site = importlib.import_module("site_diagrams")

    def pack(command, **_):
        if not npm:
            raise FileNotFoundError(command[0])
        with tarfile.open(Path(command[command.index("--pack-destination") + 1], "mermaid.tgz"), "w:gz") as tar:
            script = tarfile.TarInfo(site.MEMBER)
            script.size = 2
            tar.addfile(script, io.BytesIO(b"//"))

    monkeypatch.setattr(site.subprocess, "run", pack)
    of_site = site.on_files(files.Files([]), config)
    page, diagram = SimpleNamespace(url="streaming/"), '<pre class="mermaid">'
    script = '<script src="../assets/mermaid.min.js">'
    assert (script in site.on_page_content(diagram, page, config, of_site)) == loaded
    assert site.on_page_content("<p>", page, config, of_site) == "<p>"
