"""What clients may choose from: names of the model, what it takes, the languages it speaks."""

from __future__ import annotations

from typing import Any

from . import encoders
from .errors import ApiError

CREATED = 1_745_971_200  # OpenAI's models have a date; no client looks at it
ALIASES = ("tts-1", "tts-1-hd", "gpt-4o-mini-tts")  # what clients of OpenAI's ask for unasked
SAMPLING = {  # name -> lowest, highest and step of a slider; the engine knows what is allowed
    "exaggeration": (0.0, 2.0, 0.05), "cfg_weight": (0.0, 1.0, 0.05), "temperature": (0.05, 2.0, 0.05),
    "top_p": (0.05, 1.0, 0.05), "min_p": (0.0, 1.0, 0.01), "top_k": (0, 2000, 10),
    "repetition_penalty": (1.0, 2.0, 0.05),
}
NOT_GPT = ("exaggeration", "cfg_weight", "min_p")  # Turbo and Nano know nothing of these
NAMES = {"nb": "no", "nn": "no", "iw": "he", "cmn": "zh"}  # what clients call a language that we call otherwise


def takes(model: Any) -> list[str]:
    """Names of the parameters that change what this model says."""
    return [name for name in SAMPLING if not (model.config.t3.is_gpt and name in NOT_GPT)]


def sliders(model: Any) -> dict[str, dict[str, float]]:
    out = {}
    for name in takes(model):
        low, high, step = SAMPLING[name]
        default = 0.5 if name == "exaggeration" else getattr(model.defaults, name)
        out[name] = {"default": default, "min": low, "max": high, "step": step}
    return out


def languages(model: Any) -> dict[str, str]:
    if model.config.family != "mtl":
        return {"en": "English"}
    return model.get_supported_languages()


def language_of(model: Any, asked: str | None) -> str | None:
    """The engine's language_id: "de-AT" is de; a model of one language wants none."""
    if not asked:
        return "en" if model.config.family == "mtl" else None
    name = asked.strip().lower().replace("_", "-")
    name = name.split("-")[0]
    name = NAMES.get(name, name)
    spoken = languages(model)
    if name not in spoken:
        message = f"language={asked!r}: this model speaks {', '.join(spoken)}"
        raise ApiError(400, message, param="language", code="unsupported_language")
    return name if model.config.family == "mtl" else None


def check_model(asked: str | None, own: str) -> None:
    if asked and asked not in (own, *ALIASES):
        message = f"The model {asked!r} does not exist here; this server runs {own!r}"
        raise ApiError(404, message, param="model", code="model_not_found")


def card(name: str) -> dict[str, Any]:
    """A model as every client's list has it."""
    return {
        "id": name, "object": "model", "created": CREATED, "owned_by": "chatterbox_opt",
        "name": name, "value": name, "label": name,
    }


def listing(model: Any, own: str) -> dict[str, Any]:
    """The model under all its names, and what a page needs to know of it."""
    cards = [card(name) for name in (own, *ALIASES)]
    cards[0] |= {
        "parameters": sliders(model), "languages": languages(model), "clones": model.config.clones,
        "formats": encoders.available(), "sample_rate": model.sr,
    }
    return {"object": "list", "data": cards, "models": cards}
