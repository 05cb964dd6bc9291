"""What comes in and what goes out, as the OpenAPI document has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, create_model, model_validator

from ancestral.apps.server import job
from ancestral.apps.server.data_uri import MOST_BYTES
from ancestral.compression.choices import Profile
from ancestral.runs.sampling_options import JUMP, OPTIONS, Option, one_way_to_step


def _whole(value: Any) -> Any:
    """2.0 is an integer in JSON."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE = BeforeValidator(_whole)
MOST_IMAGES = 64  # of a request: a batch of `ancestral sample`
_URI = 4 * (MOST_BYTES // 3 + 1) + 30
Seed = Annotated[
    int, Field(ge=OPTIONS["seed"].low, le=OPTIONS["seed"].high, strict=True, description=OPTIONS["seed"].help), WHOLE
]
Images = Annotated[int, Field(ge=1, le=MOST_IMAGES, strict=True, description="How many images."), WHOLE]
Steps = Annotated[
    int, Field(ge=1, strict=True, description="Steps from T to clean images, at most T."), WHOLE
]  # `narrowed`
Time = Annotated[int, Field(ge=1, strict=True, description="Noise level, at most T."), WHOLE]
Upload = Annotated[
    str,
    Field(
        max_length=_URI,
        json_schema_extra={"format": "image-uri"},
        description="A PNG, JPEG or WebP file as a data: URI.",
    ),
]


class Body(BaseModel):
    """What a job is asked for."""

    model_config = ConfigDict(extra="forbid")
    least_steps: ClassVar[int] = 1

    @property
    def options(self) -> dict[str, Any]:
        """Those of drawing, by name."""
        return {name: getattr(self, name) for name in OPTIONS if name in type(self).model_fields}


def _field(option: Option, most: float | None) -> Any:
    """Type and default of an option of drawing."""
    limits = Field(ge=option.low, le=most, allow_inf_nan=False, strict=True)
    kind: Any = option.type if option.type is str else Annotated[option.type, limits]
    return Annotated[kind | None, Field(description=option.help)], option.default


_fields = {name: _field(option, option.high) for name, option in OPTIONS.items() if option.page}


class Draw(create_model("Sampling", __base__=Body, **_fields)):
    """Images of a seed; a solver and an eta exclude each other, as each is a way to step."""

    model_config = ConfigDict(
        json_schema_extra={
            "not": {
                "required": ["solver", "eta"],
                "properties": {"solver": {"type": "string"}, "eta": {"type": "number"}},
            }
        }
    )
    seed: Seed
    images: Images
    steps: Steps

    @model_validator(mode="after")
    def _one_way_to_step(self) -> Draw:
        one_way_to_step(self.options)
        return self


class Inpaint(Body):
    """What is white in a mask, drawn anew."""

    least_steps: ClassVar[int] = JUMP + 1
    image: Upload
    mask: Annotated[
        str,
        Field(max_length=_URI, json_schema_extra={"format": "mask-uri"}, description="The same: white is drawn anew."),
    ]
    seed: Seed
    images: Images
    steps: Annotated[
        int,
        Field(
            ge=JUMP + 1, strict=True, description=f"As of a drawing, and more than {JUMP}: it goes up so many again."
        ),
        WHOLE,
    ]
    label: str | None = None


class Morph(Body):
    """From image a to image b, through mixed states at t."""

    a: Upload
    b: Upload
    t: Time
    frames: Annotated[
        int, Field(ge=2, le=MOST_IMAGES, strict=True, description="Images from a to b, both included."), WHOLE
    ]
    steps: Steps
    seed: Seed
    label: str | None = None


class Compress(Body):
    """A file of an image."""

    image: Upload
    profile: Annotated[
        Profile,
        Field(description="From quick to smallest more network calls, mostly for fewer bytes."),
    ] = "quick"


class Film(Body):
    """An image that was held out goes to noise, and another comes back from there: what the report begins with."""


class Noise(Body):
    """An image, noised up to t."""

    image: Upload
    t: Time
    seed: Seed
    label: str | None = None


class Nearest(Body):
    """The training images that are most like an image."""

    image: Upload
    count: Annotated[int, Field(ge=1, le=32, strict=True, description="How many training images."), WHOLE]


class Noised(BaseModel):
    """x_t = signal x0 + noise eps, and what the model makes of it; mse of the predicted x0 on the scale [-1, 1]."""

    image: str = Field(description="As the model sees it: the middle square, scaled.")
    x_t: str
    x0: str
    signal: float
    noise: float
    log_snr: float | None
    mse: float


class Frame(BaseModel):
    """A state of the film: of q, on the way to noise, or of p, on the way back."""

    image: str
    way: Literal["q", "p"]
    t: int


class Filmed(BaseModel):
    """The frames as they follow each other; the ends stay a while."""

    frames: list[Frame]


class Neighbour(BaseModel):
    """A training image."""

    image: str
    index: int
    distance: float


class Neighbours(BaseModel):
    """The nearest first."""

    neighbours: list[Neighbour]
    metric: str


class Accepted(BaseModel):
    """A job that waits or runs."""

    job: str
    place: int = Field(description="In the queue; 0 when it runs.")


class State(BaseModel):
    """How far a job is."""

    state: job.State
    place: int
    step: int
    of: int


class Problem(BaseModel):
    """What is wrong, and what to mend, in one line."""

    detail: str


class Solver(BaseModel):
    """A way to take steps."""

    name: str
    label: str


class Default(BaseModel):
    """What is taken when nothing is said."""

    steps: int


class Schedule(BaseModel):
    """The forward process at each t: x_t = signal x0 + noise eps; log_snr = 2 log(signal / noise), null if infinite."""

    t: list[int]
    signal: list[float]
    noise: list[float]
    log_snr: list[float | None]


class Limits(BaseModel):
    """What is taken: the most, where nothing else is said."""

    images: int
    steps: int
    least_inpaint_steps: int = Field(description="The fewest that inpainting takes, as it goes up again between them.")
    upload_bytes: int
    upload_pixels: int
    queue: int
    seconds: float


class Features(BaseModel):
    """True, or why not."""

    inpaint: Literal[True] | str
    morph: Literal[True] | str
    compress: Literal[True] | str
    nearest: Literal[True] | str
    film: Literal[True] | str


class Model(BaseModel):
    """The model that is served."""

    name: str
    shape: Annotated[list[int], Field(min_length=3, max_length=3, description="C, H, W")]
    T: int
    classes: list[str]
    solvers: list[Solver]
    default: Default
    guidance: bool
    schedule: Schedule
    limits: Limits
    features: Features
    local: bool = Field(description="Whether the training images are read from this machine alone.")
    report: Literal[True] | str = Field(description="True if `/report` answers, else the command that makes it.")


@dataclass(frozen=True)
class Scope:
    """What a model allows."""

    steps: int  # the most
    T: int  # the last time
    classes: tuple[str, ...]  # names, none for a model without labels
    solvers: tuple[str, ...]  # names
    guidance: bool  # whether it can be guided


def narrowed(kind: type[Body], scope: Scope) -> type[Body]:
    """The body with the limits of this model, so that the document tells them and what is beyond is refused early."""
    names: Any = Literal[scope.solvers]
    classes: Any = Literal[scope.classes] if scope.classes else None
    fields: dict[str, Any] = {
        "steps": (
            Annotated[int, Field(ge=kind.least_steps, le=max(kind.least_steps, scope.steps), strict=True), WHOLE],
            ...,
        ),
        "t": (Annotated[int, Field(ge=1, le=scope.T, strict=True), WHOLE], ...),
        "solver": (names | None, None),
        "label": (classes | None if scope.classes else None, None),
    }
    if not scope.guidance:
        fields["guidance"] = (None, None)
    own = {name: field for name, field in fields.items() if name in kind.model_fields}
    return create_model(kind.__name__, __base__=kind, __doc__=kind.__doc__, **own)
