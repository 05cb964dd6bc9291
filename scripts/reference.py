"""Write the pages of docs/reference in PAGES from the code: scripts/reference.py; a test holds them current."""

from __future__ import annotations

import inspect
import json
import re
import types
import typing
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import click
import msgspec

from ancestral.apps.cli.examples import EXAMPLES
from ancestral.apps.cli.main import main
from ancestral.diffusion.denoisers.denoiser import CLIPS, CLOCKS
from ancestral.diffusion.denoisers.targets import TARGETS
from ancestral.diffusion.objectives.losses import OBJECTIVES
from ancestral.diffusion.objectives.time_sampling import TIME_SAMPLERS
from ancestral.diffusion.processes.levels import VALUES
from ancestral.diffusion.processes.schedules import SCHEDULES
from ancestral.diffusion.samplers.transitions import VARIANCES
from ancestral.runs.build import OPTIMIZERS
from ancestral.runs.config import IMPORTED, PRESETS, Config
from ancestral.runs.process_kinds import CHAINS

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "docs" / "reference"
GENERATED = "<!-- written by scripts/reference.py: change the code, not this page -->\n"
NAMES = {
    "diffusion.chain": CHAINS,
    "diffusion.schedule": SCHEDULES,
    "diffusion.target": TARGETS,
    "diffusion.objective": OBJECTIVES,
    "diffusion.times": TIME_SAMPLERS,
    "diffusion.variance": VARIANCES,
    "diffusion.clip": CLIPS,
    "diffusion.clock": CLOCKS,
    "diffusion.values": VALUES,
    "train.optimizer": OPTIMIZERS,
}  # tables that a setting chooses from


def row(*cells: object) -> str:
    """Of a table in Markdown."""
    return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |\n"


def table(*headings: str) -> str:
    """Its first two lines."""
    return row(*headings) + row(*["---"] * len(headings))


def _commands(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
    for name in group.list_commands(click.Context(group)):
        command = group.commands[name]
        if isinstance(command, click.Group):
            yield from _commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


def _values(option: click.Option) -> str:
    kind = option.type
    if option.is_flag:
        return ""
    if isinstance(kind, click.Choice):
        return ", ".join(map(str, kind.choices))
    if isinstance(kind, (click.IntRange, click.FloatRange)):
        shown = "{:d}" if isinstance(kind, click.IntRange) else "{:g}"
        low = "" if kind.min is None else shown.format(kind.min) + (" < " if kind.min_open else " ≤ ")
        high = "" if kind.max is None else (" < " if kind.max_open else " ≤ ") + shown.format(kind.max)
        return f"{low}{'n' if isinstance(kind, click.IntRange) else 'x'}{high}"
    return option.metavar or {"path": "path", "text": "text", "integer": "n", "float": "x"}.get(kind.name, kind.name)


def commands() -> str:
    """The page of the commands."""
    page = [
        f"{GENERATED}# Commands\n\nEvery command and option, as `ancestral COMMAND --help` says them. Times are "
        "written `90s`, `10m` or `2h`; bits are per dimension, that is per pixel and channel; "
        "T is the number of noise levels. Exit codes stand with the [promises](reliability.md#exit-codes).\n",
        "\n## Completion in a shell\n\n```sh\n"
        'eval "$(_ANCESTRAL_COMPLETE=bash_source ancestral)"     # in ~/.bashrc\n'
        'eval "$(_ANCESTRAL_COMPLETE=zsh_source ancestral)"      # in ~/.zshrc\n'
        "_ANCESTRAL_COMPLETE=fish_source ancestral | source      # in fish's config\n```\n",
    ]
    for name, command in _commands(main, "ancestral"):
        page.append(f"\n## {name}\n\n{inspect.cleandoc(command.help or '')}\n\n")
        page.append(f"```sh\n{EXAMPLES[str(command.name)]}\n```\n\n")
        arguments = [param for param in command.params if isinstance(param, click.Argument)]
        usage = " ".join(f"{argument.make_metavar(click.Context(command))}" for argument in arguments)
        page.append(f"Arguments: `{usage}`\n\n")
        page.append(table("option", "values", "default", "what it is"))
        for option in (param for param in command.params if isinstance(param, click.Option)):
            default = option.default if option.show_default and not option.is_flag else ""
            default = ", ".join(default) if option.multiple and default else default
            needed = "**required**" if option.required else "" if default == "" else f"`{default}`"
            page.append(row(f"`{'`, `'.join(option.opts)}`", _values(option), needed, option.help or ""))
    return "".join(page)


def _kind(hint: Any) -> tuple[str, str]:
    """Of a type: its name, and its limits."""
    if typing.get_origin(hint) is typing.Annotated:
        name, _ = _kind(typing.get_args(hint)[0])
        meta = next(one for one in typing.get_args(hint)[1:] if isinstance(one, msgspec.Meta))
        signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
        return name, ", ".join(
            f"{sign} {getattr(meta, key):g}" for key, sign in signs.items() if getattr(meta, key) is not None
        )
    if typing.get_origin(hint) is typing.Literal:
        return "one of", ", ".join(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        parts = [_kind(part) for part in typing.get_args(hint)]
        return " or ".join(dict.fromkeys(name for name, _ in parts)), "; ".join(
            filter(None, (more for _, more in parts))
        )
    if typing.get_origin(hint) is tuple:
        name, limits = _kind(typing.get_args(hint)[0])
        return f"list of {name}", limits
    return {int: "whole number", float: "number", str: "text", bool: "true or false", type(None): "null"}[hint], ""


def _comments(kind: type) -> dict[str, str]:
    """What stands behind each field, in its own line or in those that it runs over."""
    found, name = {}, ""
    for line in inspect.getsource(kind).splitlines():
        if begun := re.match(r"    (\w+): ", line):
            name = begun[1]
        if name and (said := re.search(r"  # (?!pyright)(.*)$", line)):
            found[name] = said[1]
    return found


def settings() -> str:
    """The page of the settings."""
    page = [
        f"{GENERATED}# Settings\n\nAny setting is a `--set KEY=VALUE` of `ancestral train`; `--dry-run` shows "
        "all of them with the values that a run would take. Shares are of the run's length; "
        "lists are written `[1,2,2]`.\n"
    ]
    for section in fields(Config):
        kind = typing.get_type_hints(Config)[section.name]
        if not is_dataclass(kind):
            continue
        page.append(f"\n## {section.name}\n\n{inspect.cleandoc(kind.__doc__ or '').splitlines()[0]}\n\n")
        page.append(table("key", "kind", "limits", "default", "what it is"))
        hints, comments = typing.get_type_hints(kind, include_extras=True), _comments(kind)
        for one in fields(kind):
            key = f"{section.name}.{one.name}"
            if key in IMPORTED:
                continue
            default = msgspec.json.encode(one.default).decode()
            name, limits = _kind(hints[one.name])
            limits = ", ".join(NAMES[key]) if key in NAMES else limits
            page.append(row(f"`{key}`", name, limits, f"`{default}`", comments[one.name]))
    page.append("\n## Presets\n\nA preset is a row of settings; what it does not name is as above.\n\n")
    page.append(table("preset", "settings"))
    for name, values in PRESETS.items():
        said = ", ".join(f"`{key}={msgspec.json.encode(value).decode()}`" for key, value in values.items())
        page.append(row(f"`{name}`", said))
    return "".join(page)


STREAM = """
## A draw from a script

```sh
server=localhost:8000/api
job=$(curl -s $server/draw --json '{"seed": 1, "images": 4, "steps": 20}' | sed 's/.*"job":"\\([^"]*\\).*/\\1/')
curl -N $server/jobs/$job/events           # queued, step, then done, error or cancelled
curl -X DELETE $server/jobs/$job           # stops it and forgets it
```

With a token ([who can reach it](../how-to/serve.md#who-can-reach-it)), programs send `Authorization: Bearer TOKEN`.

Each event has a rising number as its `id` and JSON as its `data`. Only the newest of each name is kept: who comes late,
or back with `Last-Event-ID`, gets what is new since. Images are PNG files as data URIs.

| event | data |
| --- | --- |
| `queued` | `place` in the queue, from 1 |
| `step` | `k` of `of` are done; the images `x_t` and `x0` at the time `t`, of compress a `note` instead |
| `done` | `images`, the `sha256` of their pixels, and the command that makes them `again`; of compress see below |
| `error` | `detail`: what was wrong |
| `cancelled` | nothing |

Of compress `done` has the `image`, the `file` as a data URI, its `bytes`, that it is `exact`, the command, `again`, and
`prefixes`: what its first `bytes` show, `uri`, and the `psnr` in dB, null where it is exact.
"""


def _json_kind(schema: dict[str, Any]) -> tuple[str, str]:
    """Of a field of the document: its kind, and its limits."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})", ""
    if "anyOf" in schema:
        kinds = [_json_kind(one) for one in schema["anyOf"]]
        return " or ".join(kind for kind, _ in kinds), ", ".join(filter(None, (limits for _, limits in kinds)))
    if "const" in schema:
        return json.dumps(schema["const"]), ""
    if "enum" in schema:
        return "one of", ", ".join(schema["enum"])
    signs = {"minimum": "≥ ", "maximum": "≤ ", "minItems": "≥ ", "maxItems": "≤ "}
    limits = [f"{sign}{schema[key]}" for key, sign in signs.items() if key in schema]
    if "maxLength" in schema:
        limits.append(f"≤ {schema['maxLength']:,} characters")
    if schema["type"] == "array":
        return f"list of {_json_kind(schema['items'])[0]}", ", ".join(limits)
    names = {
        "integer": "whole number",
        "number": "number",
        "string": "text",
        "null": "null",
        "boolean": "true or false",
    }
    return names[schema["type"]], ", ".join(limits)


def _asked(schema: dict[str, Any]) -> str:
    if not schema["properties"]:
        return "It has no fields: `{}`.\n"
    page = table("field", "kind", "limits", "default", "what it is")
    for name, field in schema["properties"].items():
        default = "**required**" if name in schema["required"] else f"`{json.dumps(field.get('default'))}`"
        page += row(f"`{name}`", *_json_kind(field), default, field.get("description", ""))
    return page


def _answered(schema: dict[str, Any]) -> str:
    page = table("field", "kind", "what it is")
    for name, field in schema["properties"].items():
        kind, limits = _json_kind(field)
        page += row(f"`{name}`", kind, field.get("description", limits))
    return page


def http() -> str:
    """The page of the server, from the document that it gives at /openapi.json."""
    from ancestral.apps.server import schemas
    from ancestral.apps.server.app import create_app
    from ancestral.apps.server.job_queue import JobQueue, Limits
    from ancestral.apps.server.security import Rules
    from ancestral.apps.server.session import open_served_run

    served = open_served_run(ROOT / "tests/golden/run", "cpu", None)
    jobs = JobQueue(served.calls, Limits())
    document = create_app(served, jobs, Rules()).app.openapi()
    jobs.close()
    page = [
        f"{GENERATED}# HTTP\n\nWhat `ancestral serve RUN` answers, as its `/openapi.json` has it; there limits are "
        "those of the model. Bodies and answers are JSON.\n\n",
        table("route", "asks for", "answers", "what it does"),
    ]
    asked, given, refusals = {}, {}, {}
    for path, methods in document["paths"].items():
        for method, route in methods.items():
            body = route.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
            good = next(code for code in route["responses"] if code.startswith("2"))
            answer = route["responses"][good].get("content", {})
            schema = answer.get("application/json", {}).get("schema")
            said = _json_kind(schema)[0] if schema else "server-sent events" if answer else ""
            asked |= {_json_kind(body)[0]: body["$ref"].rpartition("/")[2]} if body else {}
            given |= {said: schema["$ref"].rpartition("/")[2]} if schema else {}
            refusals |= {code: one["description"] for code, one in route["responses"].items() if code[0] in "45"}
            sent = _json_kind(body)[0] if body else ""
            page.append(row(f"`{method.upper()} {path}`", sent, f"{good} {said}".strip(), route["description"]))
    page.append(STREAM)
    page.append("\n## Refusals\n\nEach is a [Problem](#problem); 429 says in `Retry-After` when to ask again.\n\n")
    page += [table("status", "means"), *(row(code, refusals[code]) for code in sorted(refusals))]
    parts = document["components"]["schemas"]
    for name in asked.values():
        kind = getattr(schemas, name)  # without the limits of one model
        page.append(f"\n## {name}\n\n{inspect.cleandoc(kind.__doc__)}\n\n{_asked(kind.model_json_schema())}")
    for name in [*given.values(), *sorted(set(parts) - set(asked.values()) - set(given.values()))]:
        page.append(f"\n## {name}\n\n{parts[name]['description']}\n\n{_answered(parts[name])}")
    return "".join(page)


PAGES = {"commands.md": commands, "settings.md": settings, "http.md": http}

if __name__ == "__main__":
    for name, write in PAGES.items():
        (OUT / name).write_text(write())
