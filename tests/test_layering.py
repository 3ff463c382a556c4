"""Which module may import which, and which names belong to certain files only."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "chatterbox_opt"
FILES = sorted(ROOT.rglob("*.py"))

# layer -> what it may import from the package (itself always)
LAYERS = {
    "config": set(),
    "options": set(),
    "device_lock": set(),
    "openmp": set(),
    "cpu_limit": set(),
    "computing": {"openmp", "cpu_limit"},
    "presets": {"config", "options"},
    "text": {"config", "files"},
    "models": {"config"},
    "weights": {"config", "models", "computing", "files"},
    "engine": {"config", "options", "models", "device_lock", "computing", "openmp", "files", "__version__"},
    "audio": {"config", "models", "computing"},
    "voice": {"config", "audio", "computing"},
    "voice_preparer": {"config", "models", "audio", "voice", "device_lock", "computing"},
    "checks": {"config"},
    "files": set(),
    "progress": set(),
    "switches": {"checks", "config", "options", "presets", "engine", "weights"},
    "captions": set(),
    "whisper": set(),
    "listening": {"config", "audio", "text", "whisper", "computing"},
    "scores": {"config", "audio", "models", "text", "listening", "device_lock", "computing"},
    "takes": {"config", "engine", "voice", "scores"},
    "speech": {"captions", "config", "engine", "takes"},
    "marks": {"config", "text", "voice"},
    "align": {"config", "audio", "whisper", "computing"},
    "streaming": {"config", "audio", "engine", "speech", "voice"},
    "mlx": {"config", "options", "models", "engine"},
    "executor": {"config", "options", "models", "engine", "weights", "mlx"},
}
LAYERS["voiced"] = {"checks", "config", "voice", "voice_preparer", "device_lock"}
LAYERS["whole_speech"] = {"audio", "config", "engine", "voice"}
LAYERS["calls"] = {"checks", "scores", "takes", "text"}
LAYERS["keywords"] = {"config", "options", "scores"}
LAYERS["pipeline"] = LAYERS["streaming"] | {
    "options", "text", "models", "streaming", "executor", "takes", "calls", "whole_speech", "computing",
}
LAYERS["parts"] = {
    "config", "options", "models", "audio", "voice", "voice_preparer", "computing", "engine", "executor", "pipeline",
    "weights", "whole_speech",
}
LAYERS["packing"] = {
    "config", "options", "models", "checks", "switches", "engine", "weights", "executor", "keywords", "computing",
    "files", "presets", "__version__",
}
LAYERS["loading"] = {"audio", "checks", "packing", "pipeline", "presets", "switches", "weights"}
LAYERS["base"] = LAYERS["pipeline"] | {
    "keywords", "loading",
    "marks", "weights", "checks", "pipeline", "progress", "presets", "switches", "packing", "executor", "scores",
    "voice_preparer", "voiced", "device_lock", "parts", "whole_speech",
}
DOORS = {"tts", "mtl_tts", "tts_turbo", "vc"}
for door in DOORS:
    LAYERS[door] = set(LAYERS["base"]) | {"base"}
LAYERS["upstream"] = set(LAYERS["base"]) | DOORS | {"base"}
LAYERS["reading"] = {
    "options", "config", "checks", "audio", "text", "captions", "speech", "takes", "keywords", "files", "__version__",
}
LAYERS["serve"] = {"options", "config", "checks", "audio", "text", "files", "__version__"} | DOORS
LAYERS["scale"] = {"files", "serve", "text", "cli"}  # its serve.py is an entry point, as the command is
LAYERS["doctor"] = {"options", "config", "engine", "pipeline", "weights", "cpu_limit", "__version__"} | DOORS
LAYERS["cli"] = {
    "options", "checks", "presets", "config", "audio", "weights", "serve", "packing", "doctor", "captions", "pipeline",
    "calls", "files", "reading", "scale", "scores", "text", "align", "__version__",
} | DOORS
LAYERS["__main__"] = {"cli"}
LAYERS["__init__"] = set(LAYERS["base"]) | DOORS | {"base"}

# a name -> the only files that may use it
CONFINED = {
    "torch.compile": {"engine/graphs.py"},
    "CUDAGraph": {"engine/graphs.py"},
    "torch.jit": {"engine/traced.py"},
    "torch.cuda.graph": {"engine/graphs.py"},
    "huggingface_hub": {"weights/hub.py"},
    "fsspec": {"serve/voice_files/url.py"},
    "soundfile": {"audio/io.py", "serve/encoders.py"},
    "soxr": {"audio/io.py"},
    "import perth": set(),
    "chatterbox.": {"upstream.py"},
    "mlx": {"checks.py", *(f"mlx/{file.name}" for file in (ROOT / "mlx").glob("*.py"))},
}
FOREIGN = {"torchaudio", "transformers", "s3tokenizer", "librosa", "einops", "scipy", "diffusers", "omegaconf"}


def layer_of(file: Path) -> str:
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


def imports_of(file: Path) -> set[str]:
    """Returns the absolute dotted names of all imports of the file, wherever they are."""
    package = ["chatterbox_opt", *file.relative_to(ROOT).parent.parts]
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            found |= {stem if node.module and stem != "chatterbox_opt" else f"{stem}.{a.name}" for a in node.names}
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_only_downward(file: Path):
    layer = layer_of(file)
    inside = {name.split(".")[1] for name in imports_of(file) if name.startswith("chatterbox_opt.")}
    assert inside - LAYERS[layer] - {layer} == set(), f"{layer} must not import these"
    assert not {name.split(".")[0] for name in imports_of(file)} & FOREIGN


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_confined_names_and_size(file: Path):
    where = file.relative_to(ROOT).as_posix()
    code = "\n".join(line.split("#")[0] for line in file.read_text().splitlines())
    modules = imports_of(file)
    for name, allowed in CONFINED.items():
        if name == "chatterbox.":
            said = any(m == "chatterbox" or m.startswith("chatterbox.") for m in modules)
        elif name.startswith("import "):
            said = any(m.split(".")[0] == name.split()[1] for m in modules)
        elif "." in name or name == "CUDAGraph":
            begins = {"torch.jit": "torch.jit.", "CUDAGraph": name}.get(name, name + "(")  # a module, or what is called
            said = begins in code
        else:
            said = any(m.split(".")[0] == name for m in modules)
        assert not said or where in allowed, f"{name} belongs in {allowed or 'no file'}"
    assert len(file.read_text().splitlines()) <= 400


@pytest.mark.parametrize("file", [f for f in FILES if layer_of(f) == "models"], ids=lambda f: f.name)
def test_models_do_not_ask_for_the_device(file: Path):
    """Operations that depend on the device are passed to them."""
    code = "\n".join(line.split("#")[0] for line in file.read_text().splitlines())
    assert not any(name in code for name in ("is_cuda", "is_cpu", "is_mps", "device.type", "torch.backends"))


def test_config_and_options_need_the_standard_library_only():
    for name in ("config.py", "options.py"):
        found = {m.split(".")[0] for m in imports_of(ROOT / name)}
        assert found <= {"__future__", "dataclasses", "typing", "math", "numbers"}


def test_the_package_says_that_it_is_typed():
    """PEP 561: without the file, type checkers ignore the annotations of an installed package."""
    assert (ROOT / "py.typed").is_file()
