"""For whoever runs the server: is it alive, is it ready, how is it doing."""

from __future__ import annotations

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import JSONResponse, Response

router = APIRouter()


@router.head("/health/live", include_in_schema=False)
@router.get("/health/live")
async def live() -> dict[str, str]:
    return {"status": "alive"}


@router.head("/health", include_in_schema=False)  # how monitors ask
@router.head("/health/ready", include_in_schema=False)
@router.get("/health")  # where other speech servers have it, and checks look for it
@router.get("/health/ready")
async def ready(request: Request) -> Response:
    service = request.app.state.service
    state = "draining" if service.draining.is_set() else "loading" if service.model is None else "ready"
    headers = {} if state == "ready" else {"retry-after": "5"}
    return JSONResponse({"status": state}, 200 if state == "ready" else 503, headers)


@router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    return Response(generate_latest(request.app.state.registry), media_type=CONTENT_TYPE_LATEST)
