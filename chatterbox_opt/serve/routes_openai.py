"""OpenAI's routes: speech, models, voices; the lists are those that its community's clients read."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Form, Request, UploadFile
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from . import catalogue
from .errors import ApiError
from .responses import EventResponse, SpeechResponse, while_here
from .service import Service
from .speech_request import SpeechRequest
from .voice_names import folded

router = APIRouter()
SOUND = {200: {"description": "The sound, while it is made", "content": {"audio/*": {}, "text/event-stream": {}}}}


def service_of(request: Request) -> Service:
    """The service, ready to speak; raises 503 otherwise."""
    service: Service = request.app.state.service
    service.check_ready()
    return service


@router.post("/v1/audio/speech", responses=SOUND, response_class=Response)
async def speech(body: SpeechRequest, request: Request) -> Response:
    service = service_of(request)
    live = await while_here(request, service.speak(body.input, body))
    sound = service.sound(live, body)
    if body.stream_format == "sse":
        return EventResponse(service, sound, body.input)
    return SpeechResponse(service, sound)


@router.get("/v1/models")
@router.get("/v1/audio/models")
async def models(request: Request) -> dict[str, Any]:
    service = service_of(request)
    return catalogue.listing(service.model, service.settings.model_id)


@router.get("/v1/models/{name}")
async def model(name: str, request: Request) -> dict[str, Any]:
    service = service_of(request)
    cards = catalogue.listing(service.model, service.settings.model_id)["data"]
    catalogue.check_model(name, service.settings.model_id)
    return next(card for card in cards if card["id"] == name)


class NewVoice(BaseModel):
    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    name: str
    audio_sample: UploadFile = Field(description="A recording: wav, flac, ogg or mp3, 6 to 15 s of clean speech")
    consent: str | None = Field(None, max_length=1000, description="Kept with the voice, and not looked into")


@router.get("/v1/audio/voices")
async def voices(request: Request) -> dict[str, Any]:
    return await service_of(request).voice_list()


@router.post("/v1/audio/voices")
async def add_voice(form: Annotated[NewVoice, Form(media_type="multipart/form-data")], request: Request) -> dict:
    service = service_of(request)
    return await service.prepare(service.voices.add, form.name, form.audio_sample.file, form.consent)


@router.get("/v1/audio/voices/{name}")
async def voice(name: str, request: Request) -> dict[str, Any]:
    for item in (await service_of(request).voice_list())["data"]:
        if folded(name) in (item["id"], folded(item["name"])):
            return item
    raise ApiError(404, f"There is no voice {name!r}", param="name", code="voice_not_found")


@router.delete("/v1/audio/voices/{name}")
async def delete_voice(name: str, request: Request) -> dict[str, Any]:
    service = service_of(request)
    identity = await service.prepare(service.voices.delete, name)
    return {"id": identity, "object": "audio.voice.deleted", "deleted": True}
