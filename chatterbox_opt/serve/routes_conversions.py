"""Voice conversion: a file in, a file out."""

from __future__ import annotations

import asyncio
import threading
from typing import Annotated

from fastapi import APIRouter, Form, Request, UploadFile
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from . import encoders
from .conversions import MOST_AT_ONCE
from .errors import ApiError, busy, told
from .responses import gone
from .routes_openai import service_of
from .service import Service
from .speech_request import Format

router = APIRouter()


class Conversion(BaseModel):
    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    file: UploadFile = Field(description="The recording to speak again: wav, flac, ogg or mp3")
    voice: str | None = Field(None, description="The voice to speak in; the model's own if left out")
    response_format: Format = "wav"
    seed: int | None = None


@router.post("/v1/audio/conversions", responses={200: {"content": {"audio/*": {}}}}, response_class=Response)
async def convert(form: Annotated[Conversion, Form(media_type="multipart/form-data")], request: Request) -> Response:
    service = service_of(request)
    service.converter.check()
    if what := encoders.missing(form.response_format):
        raise ApiError(400, what, param="response_format", code="unsupported_format")
    voice = await service.voice(form.voice)
    if service.converter.waiting >= MOST_AT_ONCE:
        service.refused += 1
        raise busy(service.retry_after())
    data = await _converted(service, form, voice, request)
    return Response(data, media_type=encoders.MEDIA[form.response_format], headers={"cache-control": "no-store"})


async def _converted(service: Service, form: Conversion, voice: object, request: Request) -> bytes:
    """The file; the work ends within a step of the flow when the client leaves."""
    cancel = threading.Event()
    leaving = asyncio.ensure_future(gone(request.receive))
    leaving.add_done_callback(lambda _: cancel.set())
    converter = service.converter
    converter.waiting += 1
    try:
        with service.in_hand():
            wave = await service.in_thread(
                converter.pool, converter.convert, form.file.file, voice, form.seed, cancel
            )
            return await service.in_thread(
                converter.pool, encoders.encode, form.response_format, wave, service.model.sr
            )
    except Exception as error:
        if not leaving.done():
            raise told(error) from error
        service.left += 1
        return b""  # to nobody
    finally:
        converter.waiting -= 1
        leaving.cancel()
