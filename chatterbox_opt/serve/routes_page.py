"""The page at `/`: three files, served as they are."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from starlette.responses import FileResponse, Response

router = APIRouter(include_in_schema=False)
FOLDER = Path(__file__).parent / "page"
SECURE = {
    "content-security-policy": "default-src 'self'; media-src 'self' blob:; img-src 'self' data:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "x-content-type-options": "nosniff", "referrer-policy": "no-referrer", "cache-control": "no-cache",
}


def _file(name: str) -> FileResponse:
    return FileResponse(FOLDER / name, headers=SECURE)


@router.head("/", include_in_schema=False)
@router.get("/")
async def page() -> FileResponse:
    return _file("page.html")


@router.get("/page.css")
async def style() -> FileResponse:
    return _file("page.css")


@router.get("/page.js")
async def script() -> FileResponse:
    return _file("page.js")


@router.get("/favicon.ico")
async def icon() -> Response:
    return Response(status_code=204)
