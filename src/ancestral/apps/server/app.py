"""The application: routes, and every mistake as one line."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI, Header, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.routing import Match

from ancestral import __version__
from ancestral.apps.server import actions, data_uri, schemas
from ancestral.apps.server import events as stream
from ancestral.apps.server.compress import Compressor
from ancestral.apps.server.first_film import FirstFilm
from ancestral.apps.server.job import ENDINGS, Record
from ancestral.apps.server.job_queue import Full, JobQueue, Work
from ancestral.apps.server.nearest import NearestImages
from ancestral.apps.server.security import Rules, Security
from ancestral.apps.server.session import ServedRun
from ancestral.data import load
from ancestral.diffusion.samplers.solvers import DEFAULT_CALLS, SOLVERS
from ancestral.errors import UserError
from ancestral.runs import build
from ancestral.runs.report_links import PAGE, REPORT
from ancestral.runtime.text import quoted, shown

STATIC = Path(__file__).parent / "static"
# A report is a file of the run, perhaps from elsewhere: it brings all that it shows, and runs nothing.
REPORT_POLICY = "; ".join(
    (
        "default-src 'none'",
        "style-src 'unsafe-inline'",
        "img-src data:",
        "font-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
LABELS = {
    "euler": "DDIM: straight steps, no noise",
    "euler-ancestral": "Ancestral: new noise at each step, as in the paper",
    "euler-churn": "Euler with churn: a little new noise",
    "dpm++2s": "DPM-Solver++ 2S: two calls a step",
    "dpm++2m": "DPM-Solver++ 2M: remembers one step",
    "dpm++3m": "DPM-Solver++ 3M: remembers two steps",
    "dpm++2m-sde": "DPM-Solver++ 2M SDE: with new noise",
    "unipc2": "UniPC 2",
    "unipc3": "UniPC 3: for few steps",
    "deis3": "DEIS, order 3",
    "ipndm4": "iPNDM, order 4",
    "lms4": "Linear multistep, order 4",
    "heun": "Heun: two calls a step",
    "heun-churn": "Heun with churn: the sampler of EDM",
    "langevin": "Langevin dynamics (slow)",
    "pc": "Predictor and corrector (slow)",
}
EVENT = {  # as the document describes each one
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "event": {"enum": ["queued", "step", *ENDINGS]},
        "data": {"type": "string", "contentMediaType": "application/json"},
        "retry": {"type": ["integer", "string"]},
    },
}
_WHY = {
    400: "not what this server answers to, or not JSON",
    401: "the token is missing or wrong",
    403: "a page of another site asked",
    404: "no such job, or it is forgotten",
    408: "the body did not come in time",
    413: "the body is too large",
    422: "a field is wrong",
    429: "the queue is full, or the training images are just being read",
    500: "a fault of the server",
    503: "too many connections (said in plain text), the server is closing, or an answer took longer than a job may",
}


def responses(*more: int) -> dict[int | str, dict[str, Any]]:
    """What a route may answer besides what it is for."""
    return {code: {"model": schemas.Problem, "description": _WHY[code]} for code in (400, 401, 503, *more)}


def one_line(text: str) -> str:
    """Text that any client can read: no line breaks, nothing that is not printed."""
    return shown(" ".join(text.split()))[:500]


def create_app(served: ServedRun, jobs: JobQueue, rules: Rules) -> Security:
    """The page and its API, behind the security middleware."""
    app = FastAPI(title="ancestral serve", version=__version__, docs_url=None, redoc_url=None)
    compressor, nearest_images, first_film = Compressor(served), NearestImages(served), FirstFilm(served)
    checking = CapacityLimiter(data_uri.AT_ONCE)
    report = served.run / REPORT
    made_by = f"ancestral explain {quoted(str(served.run))} --out {quoted(str(report))}"
    features = schemas.Features(
        inpaint=served.unable_to_inpaint or True,
        morph=True,
        compress=compressor.unable or True,
        nearest=nearest_images.unable or True,
        film=nearest_images.unable or True,
    )
    model, scope = describe(served, jobs, features)
    _errors(app)

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(STATIC / "index.html")

    @app.get("/api/model", response_model=schemas.Model, responses=responses())
    async def about() -> schemas.Model:
        """The model that is served, and what may be asked of it."""
        return model.model_copy(update={"report": report.is_file() or made_by})

    @app.get("/report", include_in_schema=False)
    def explained() -> Response:
        if not report.is_file():
            raise HTTPException(404, f"there is no report in the run yet; make one: {made_by}")
        page = report.read_bytes().replace(f'href="{PAGE}"'.encode(), b'href="./"')  # wherever this server is
        return Response(page, media_type="text/html; charset=utf-8", headers={"content-security-policy": REPORT_POLICY})

    _jobs(app, jobs)
    of_model = (actions.draw, schemas.Draw), (actions.inpaint, schemas.Inpaint), (actions.morph, schemas.Morph)
    waiting: list[tuple[actions.Action, type[schemas.Body], str | None]] = [
        *((partial(action, served), kind, action.__doc__) for action, kind in of_model),
        (compressor.compress, schemas.Compress, compressor.compress.__doc__),
    ]
    for action, kind, description in waiting:
        check = partial(to_thread.run_sync, action, limiter=checking)
        _submit(app, jobs, kind.__name__.lower(), check, schemas.narrowed(kind, scope), description or "")
    short: list[tuple[str, Callable[[Any], Work], type[schemas.Body], type[BaseModel]]] = [
        ("noise", partial(actions.noise, served), schemas.narrowed(schemas.Noise, scope), schemas.Noised),
        ("nearest", nearest_images.nearest, schemas.Nearest, schemas.Neighbours),
        ("film", first_film.film, schemas.Film, schemas.Filmed),
    ]
    for name, action, kind, answer in short:
        check = partial(to_thread.run_sync, action, limiter=checking)
        _at_once(app, jobs, name, check, kind, answer)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    return Security(app, rules)


def _submit(
    app: FastAPI,
    jobs: JobQueue,
    name: str,
    check: Callable[[Any], Awaitable[actions.Task]],
    kind: type[schemas.Body],
    description: str,
) -> None:
    async def submit(body: schemas.Body, response: Response) -> schemas.Accepted:
        task = await check(body)
        record = jobs.submit(task.work, task.rows)
        response.headers["Location"] = f"/api/jobs/{record.id}"
        return schemas.Accepted(job=record.id, place=record.position)

    submit.__annotations__["body"] = kind
    submit.__doc__ = description.partition("\n")[0]
    answers = responses(403, 408, 413, 422, 429)
    app.post(
        f"/api/{name}", name=name, status_code=202, response_model=schemas.Accepted, responses=answers
    )(submit)  # fmt: skip


def _at_once(
    app: FastAPI,
    jobs: JobQueue,
    name: str,
    check: Callable[[Any], Awaitable[Work]],
    kind: type[schemas.Body],
    answer: type[BaseModel],
) -> None:
    async def ask(body: schemas.Body) -> dict[str, Any]:
        record = jobs.at_once(await check(body))
        await to_thread.run_sync(record.finished.wait)
        result = record.result() or {}
        if record.state != "done":
            raise HTTPException(record.status, result.get("detail", "the server is closing"))
        return result

    ask.__annotations__["body"] = kind
    ask.__doc__ = kind.__doc__
    answers = responses(403, 408, 413, 422, 429, 500)
    app.post(f"/api/{name}", name=name, response_model=answer, responses=answers)(ask)


def _jobs(app: FastAPI, jobs: JobQueue) -> None:
    def found(job: str) -> Record:
        record = jobs.find(job)
        if record is None:
            raise HTTPException(404, "job: not known here, or ended long ago and forgotten")
        return record

    @app.get("/api/jobs/{job}", response_model=schemas.State, responses=responses(404, 422))
    async def state(job: str) -> schemas.State:
        """How far a job is."""
        record = found(job)
        return schemas.State(state=record.state, place=record.position, step=record.step, of=record.of)

    @app.delete("/api/jobs/{job}", status_code=204, responses=responses(403, 404, 408, 413, 422))
    async def cancel(job: str) -> Response:
        """Stop a job and forget it; who looks at it already still sees it end."""
        jobs.remove(found(job))
        return Response(status_code=204)

    events = {**responses(404, 422, 429), 200: {"content": {"text/event-stream": {"schema": EVENT}}}}

    @app.get("/api/jobs/{job}/events", response_class=StreamingResponse, responses=events)
    async def follow(job: str, last_event_id: Annotated[str | None, Header()] = None) -> stream.EventStream:
        """What happens to a job, as server-sent events: queued, step, then done, error or cancelled."""
        record = found(job)
        if len(record.watchers) >= stream.MOST:
            raise HTTPException(429, f"job: {stream.MOST} streams look at it already", {"Retry-After": "5"})
        after = int(last_event_id) if last_event_id and last_event_id.isdecimal() and len(last_event_id) < 10 else 0
        return stream.EventStream(record, jobs, after)


def _errors(app: FastAPI) -> None:
    def answer(status: int, detail: str, headers: Any = None) -> JSONResponse:
        return JSONResponse({"detail": one_line(detail)}, status, headers)

    def add(kind: type[Exception], handler: Callable[[Request, Any], JSONResponse]) -> None:
        app.add_exception_handler(kind, handler)

    def other(request: Request, error: HTTPException) -> JSONResponse:
        headers = dict(error.headers or {})
        if error.status_code == 405:  # of one route; another one may have the same path
            matched = [route for route in app.routes if route.matches(dict(request.scope))[0] != Match.NONE]
            headers["Allow"] = ", ".join(sorted(set().union(*(getattr(route, "methods", ()) for route in matched))))
        return answer(error.status_code, str(error.detail), headers)

    add(UserError, lambda request, error: answer(422, str(error)))
    add(HTTPException, other)
    add(RequestValidationError, lambda request, error: answer(*first_problem(error.errors())))
    full = "the queue is full; try again in a moment"
    add(Full, lambda request, error: answer(429, full, {"Retry-After": str(error.seconds)}))


def first_problem(errors: Sequence[Any]) -> tuple[int, str]:
    """The status, and the first of pydantic's errors as one line that names the field."""
    first = errors[0]
    if first["type"] == "json_invalid":
        return 400, f"body: is not JSON, from character {first['loc'][-1]} on"
    if tuple(first["loc"]) == ("body",) and first["type"].endswith("_type"):
        return 422, "body: must be a JSON object, sent with Content-Type: application/json"
    location = [str(part) for part in first["loc"] if part not in ("body", "path", "query", "header")]
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return 422, f"{'.'.join(location[:3]) or 'body'}: {first['msg']}{more}"


def describe(served: ServedRun, jobs: JobQueue, features: schemas.Features) -> tuple[schemas.Model, schemas.Scope]:
    """What the page knows of the model, and the limits of what it may ask."""
    saved, schedule, limits = served.saved, served.model.schedule, jobs.limits
    config = saved.config
    steps = build.most_steps(config)
    classes = saved.facts.trained if config.model.labels else ()
    guidance = bool(config.model.labels and config.model.condition_dropout)
    t = torch.arange(schedule.T + 1)
    log_snr = [round(one, 5) if math.isfinite(one) else None for one in schedule.log_snr(t).tolist()]
    scale = {name: [round(one, 7) for one in getattr(schedule, name)(t).tolist()] for name in ("signal", "noise")}
    model = schemas.Model(
        name=shown(served.run.resolve().name),
        shape=list(served.shape),
        T=schedule.T,
        classes=list(classes),
        solvers=[schemas.Solver(name=name, label=LABELS.get(name, name)) for name in SOLVERS],
        default=schemas.Default(steps=min(DEFAULT_CALLS, steps)),
        guidance=guidance,
        schedule=schemas.Schedule(t=t.tolist(), log_snr=log_snr, **scale),
        limits=schemas.Limits(
            images=schemas.MOST_IMAGES,
            steps=steps,
            least_inpaint_steps=schemas.Inpaint.least_steps,
            upload_bytes=data_uri.MOST_BYTES,
            upload_pixels=data_uri.MOST_PIXELS,
            queue=limits.queue,
            seconds=limits.seconds,
        ),
        features=features,
        report=True,
        local=load.is_local(config.source),
    )
    return model, schemas.Scope(steps, schedule.T, classes, tuple(SOLVERS), guidance)
