"""The routes of devnen's Chatterbox server that SillyTavern's chatterbox provider calls."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from . import catalogue
from .errors import ApiError
from .responses import SpeechResponse, while_here
from .routes_openai import SOUND, service_of
from .service import Service
from .speech_request import Number, SpeechRequest

router = APIRouter()


class TtsRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    text: str
    voice_mode: Literal["predefined", "clone"] = "predefined"
    predefined_voice_id: str | None = None
    reference_audio_filename: str | None = Field(None, description="A name out of /get_reference_files")
    output_format: Literal["wav", "opus", "mp3"] = "wav"
    split_text: bool = True
    chunk_size: int = Field(280, ge=20, le=4000)
    temperature: Number | None = None
    exaggeration: Number | None = None
    cfg_weight: Number | None = None
    seed: int | None = Field(None, description="Below 0: another one each time")
    speed_factor: Number = Field(1.0, ge=0.25, le=4.0)
    language: str | None = None

    def translated(self, model: Any, stream: bool) -> tuple[SpeechRequest, list[str]]:
        """Ours, and the names of what this model does not take: that client sends all of them, always."""
        wanted = {name: getattr(self, name) for name in ("temperature", "exaggeration", "cfg_weight")}
        wanted = {name: value for name, value in wanted.items() if value is not None}
        ignored = [name for name in wanted if name not in catalogue.takes(model)]
        return SpeechRequest(
            input=self.text, voice=self._voice(), response_format=self.output_format, speed=self.speed_factor,
            seed=self.seed if self.seed is None or self.seed >= 0 else None, language=self.language,
            max_chars=self.chunk_size if self.split_text else None, stream=stream,
            **{name: value for name, value in wanted.items() if name not in ignored},
        ), ignored

    def _voice(self) -> str | None:
        if self.voice_mode == "predefined":
            return self.predefined_voice_id
        if not self.reference_audio_filename:
            raise ApiError(400, "voice_mode='clone' needs reference_audio_filename", param="reference_audio_filename")
        return self.reference_audio_filename


async def _voices(service: Service) -> list[dict[str, str]]:
    """What needs no recording: there it is a file, here a name."""
    return [
        {"display_name": item["name"], "filename": item["name"], "voice_id": item["name"]}
        for item in (await service.voice_list())["data"] if not item["deletable"]
    ]


async def _references(service: Service) -> list[str]:
    return [item["name"] for item in (await service.voice_list())["data"] if item["deletable"]]


@router.get("/get_predefined_voices")
async def predefined_voices(request: Request) -> list[dict[str, str]]:
    return await _voices(service_of(request))


@router.get("/get_reference_files")
async def reference_files(request: Request) -> list[str]:
    return await _references(service_of(request))


@router.get("/api/ui/initial-data")
async def initial_data(request: Request) -> dict[str, Any]:
    service = service_of(request)
    defaults = {name: one["default"] for name, one in catalogue.sliders(service.model).items()}
    return {
        "config": {"generation_defaults": {**defaults, "speed_factor": 1.0, "language": "en"}},
        "reference_files": await _references(service),
        "predefined_voices": await _voices(service),
        "presets": [],
        "model_info": {
            "loaded": True, "type": service.settings.model_id, "class_name": type(service.model).__name__,
            "device": str(service.model.device), "sample_rate": service.model.sr,
        },
    }


@router.post("/tts", responses=SOUND, response_class=Response)
async def tts(body: TtsRequest, request: Request) -> Response:
    return await _spoken(body, request, stream=False)


@router.get("/tts-stream", responses=SOUND, response_class=Response)
async def tts_stream(query: Annotated[TtsRequest, Query()], request: Request) -> Response:
    return await _spoken(query, request, stream=True)


async def _spoken(body: TtsRequest, request: Request, stream: bool) -> SpeechResponse:
    service = service_of(request)
    ours, ignored = body.translated(service.model, stream)
    live = await while_here(request, service.speak(ours.input, ours))
    headers = {"x-ignored-parameters": ", ".join(ignored)} if ignored else None
    return SpeechResponse(service, service.sound(live, ours), headers)
