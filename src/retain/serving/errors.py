"""What goes wrong, in the shape that OpenAI's clients read, without a word about the machine."""

from __future__ import annotations

import errno
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from retain.data.errors import DataError
from retain.lm.model import LanguageModelError
from retain.workspace.errors import Conflict, DiskFull, InvalidName, Locked, NotFound, WorkspaceError
from retain.workspace.inbox import QueueFull

_KINDS = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error", 409: "conflict_error",
          413: "invalid_request_error", 429: "rate_limit_error"}  # fmt: skip
# the first that fits
_STATUS: tuple[tuple[type[Exception], int], ...] = (
    (NotFound, 404), (QueueFull, 429), (DiskFull, 507), (Locked, 503), (InvalidName, 400), (Conflict, 409), (WorkspaceError, 500),
    (DataError, 400), (LanguageModelError, 400),
)  # fmt: skip
_FULL = "the disk is full: nothing was taken or changed; free some space, then try again"
_BUSY = "another process is writing to the workspace: try again"


class ApiError(Exception):
    """A refusal with its status, its message, and the parameter that is at fault."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code


def error_body(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """``{"error": {"message", "type", "param", "code"}}``."""
    return {"error": {"message": message, "type": _KINDS.get(status, "server_error"), "param": param, "code": code}}


def error_response(status: int, message: str, param: str | None = None, code: str | None = None) -> JSONResponse:
    """A whole answer with an error."""
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {"Retry-After": "5"} if status in (429, 503) else None
    return JSONResponse(error_body(status, message, param, code), status, headers)


def install(app: FastAPI) -> None:
    """Answer every exception in this shape, except what nobody foresaw (see :class:`retain.serving.journal.Journaled`)."""

    @app.exception_handler(ApiError)
    async def refused(_: Request, error: ApiError) -> JSONResponse:
        return error_response(error.status, error.message, error.param, error.code)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        if first["type"] == "json_invalid":
            return error_response(400, "the body is not JSON", where or None)
        if first["loc"] == ("body",):  # also of JSON that is sent as something else
            return error_response(400, "the body has to be a JSON object, sent with Content-Type: application/json")
        return error_response(400, f"{where}: {first['msg']}", where)

    @app.exception_handler(HTTPException)
    async def known(request: Request, error: HTTPException) -> JSONResponse:
        said = {
            404: "there is nothing at this address: GET /openapi.json lists what there is",
            405: f"nothing here answers {request.method}",
        }
        response = error_response(error.status_code, said.get(error.status_code, str(error.detail)))
        response.headers.update(error.headers or {})
        return response

    async def ours(_: Request, error: Exception) -> JSONResponse:
        status = next(status for kind, status in _STATUS if isinstance(error, kind))
        if status == 500:
            raise error
        told = {503: _BUSY, 507: _FULL}.get(status) or " ".join(str(error).split())
        return error_response(status, told)

    for kind, _ in _STATUS:
        app.add_exception_handler(kind, ours)

    @app.exception_handler(OSError)
    async def disk(_: Request, error: OSError) -> JSONResponse:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise error
        return error_response(507, _FULL)
