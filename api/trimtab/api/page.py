"""The web page: static files, with `index.html` for every address that the page itself understands."""

from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import PlainTextResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

NOT_BUILT = "The page is not built: run `npm ci && npm run build` in dashboards/web. The REST API is at /api/v1.\n"


class Page:
    """The ASGI app behind all routes; what is unknown under /api is none of its business."""

    def __init__(self, folder: Path) -> None:
        self._index = folder / "index.html"
        self._files = StaticFiles(directory=folder, check_dir=False)
        self._zipped = GZipMiddleware(self._answer)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._zipped(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path == "/api" or path.startswith("/api/"):
            raise HTTPException(404, f"there is nothing at {path}")
        if not self._index.exists():
            await PlainTextResponse(NOT_BUILT, 503)(scope, receive, send)
            return
        response = await self._response(scope)
        # Names of built assets hold a digest of their content; index.html names them and must be asked for anew.
        lasting = path.startswith("/assets/") and response.status_code == 200
        response.headers["Cache-Control"] = "public, max-age=31536000, immutable" if lasting else "no-cache"
        await response(scope, receive, send)

    async def _response(self, scope: Scope) -> Response:
        try:
            return await self._files.get_response(self._files.get_path(scope), scope)
        except HTTPException as error:
            if error.status_code != 404 or scope["path"].startswith("/assets/"):
                raise
            return await self._files.get_response("index.html", scope)
