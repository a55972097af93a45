"""What a tower says of itself, and the registry that `clip` and `zoo` ask instead of the tower's type."""

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from convnext import closest

if TYPE_CHECKING:
    import keras

SIDES = ("image", "text")
Builder = TypeVar("Builder", bound="Callable[..., keras.Model]")


class Field(NamedTuple):
    """The values allowed for one field that is read from a file.

    Args:
        allows: whether a value, as JSON has it, is allowed.
        allowed: what is allowed, for error messages.
    """

    allows: Callable[[Any], bool]
    allowed: str

    @classmethod
    def integer(cls, low: int, high: int) -> "Field":
        return cls(lambda value: _is_integer(value) and low <= value <= high, f"an integer from {low:,} to {high:,}")

    @classmethod
    def number(cls, low: float = -math.inf, high: float = math.inf) -> "Field":
        """Allow finite numbers in [low, high)."""
        text = "a number" if math.isinf(high) else f"a number in [{low:g}, {high:g})"
        return cls(lambda value: _is_finite(value) and low <= value < high, text)

    @classmethod
    def flag(cls) -> "Field":
        return cls(lambda value: isinstance(value, bool), "true or false")

    @classmethod
    def name(cls) -> "Field":
        return cls(_is_name, "1 to 200 printable characters without '/'")

    @classmethod
    def one_of(cls, *values: Any) -> "Field":
        allowed = f"one of {', '.join(map(repr, values))}"
        return cls(lambda value: any(type(value) is type(known) and value == known for known in values), allowed)

    def or_null(self) -> "Field":
        return Field(lambda value: value is None or self.allows(value), f"null or {self.allowed}")

    def list(self, longest: int = 16) -> "Field":
        """Allow a list of 1 to `longest` such values."""

        def allows(values):
            return isinstance(values, list) and 1 <= len(values) <= longest and all(map(self.allows, values))

        return Field(allows, f"a list of 1 to {longest} items, each {self.allowed}")


def _is_integer(value):
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value):
    return (isinstance(value, float) and math.isfinite(value)) or (_is_integer(value) and abs(value) < 1 << 64)


def _is_name(value):
    return isinstance(value, str) and 0 < len(value) <= 200 and value.isprintable() and "/" not in value


SIZE = Field.integer(1, 1 << 20)  # pixels, channels; in a saved file the weights bound them further
DEPTH = Field.integer(1, 1024)  # layers
COUNT = Field.integer(0, 16)
RATIO = Field.number(0, 1024)
EPSILON = Field.number(0, 1)
FLAG = Field.flag()


@dataclass(frozen=True)
class Tower:
    """One kind of tower.

    Args:
        kind: its name in saved files, unique on its side.
        side: "image" or "text".
        config: frozen dataclass of what a tower of this kind is configured by; its `__post_init__` refuses
            combinations of fields that make no tower.
        build: (config, embed_dim, *, name, and options) → `keras.Model` to (B, D), not normalised. Its keyword
            arguments are its options: "image_size" (every image tower), "activation" and "stem_stride" where they
            apply.
        parameters: (config, embed_dim, image_size) → number of trainable parameters; without image_size for texts.
        flops: same arguments → floating-point operations of one input, two per multiply–add.
        schema: {field of the config: `Field`}, for validation of configs read from files.
        weights: {class name of a layer of the tower's own: attribute paths of its variables}, e.g.
            {"Gate": ("gamma", "proj.kernel")}, for saving. Layers of Keras, `convnext` and `clip` are known.
    """

    kind: str
    side: str
    config: type
    build: "Callable[..., keras.Model]"
    parameters: Callable[..., int]
    flops: Callable[..., int]
    schema: Mapping[str, Field]
    weights: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the options that `build` takes."""
        return _options(self.build)

    def to_dict(self, config: Any) -> dict:
        """Return a config's fields as JSON has them."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(config).items()}

    def from_dict(self, fields: Mapping[str, Any]) -> Any:
        """Return the config of what `to_dict` returned."""
        return self.config(**{key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()})


@functools.cache
def _options(build):
    parameters = inspect.signature(build).parameters.values()
    return tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "name")


def in_scope_of_name(build: Builder) -> Builder:
    """Decorate a tower's builder: the paths of the tower's variables start with its name, "image_encoder/…".

    The layers of two towers may have equal names. Layout maps, torch's parameters and the names of optimizer variables
    go by path.
    """
    default = inspect.signature(build).parameters["name"].default

    @functools.wraps(build)
    def build_in_scope(*args: Any, **kwargs: Any) -> "keras.Model":
        import keras

        with keras.name_scope(kwargs.get("name", default)):
            return build(*args, **kwargs)

    return build_in_scope  # type: ignore[return-value]


_TOWERS: dict[str, dict[str, Tower]] = {side: {} for side in SIDES}


def register_tower(tower: Tower) -> Tower:
    """Make a kind of tower known; registering a kind again replaces it.

    Raises:
        ValueError: an unknown side, or a schema that does not list exactly the config's fields.
    """
    if tower.side not in SIDES:
        raise ValueError(f"side must be one of {', '.join(SIDES)}, got {tower.side!r}.")
    names = {each.name for each in fields(tower.config)}
    if set(tower.schema) != names:
        raise ValueError(f"The schema of tower {tower.kind!r} must list {sorted(names)}, got {sorted(tower.schema)}.")
    _TOWERS[tower.side][tower.kind] = tower
    return tower


def list_towers(side: str) -> dict[str, Tower]:
    """Return {kind: tower} of one side, "image" or "text"."""
    return dict(_TOWERS[side])


def find_tower(side: str, kind: str) -> Tower:
    """Return the tower of a kind; ValueError for an unknown one."""
    if kind not in _TOWERS[side]:
        raise ValueError(f"Unknown {side} tower {kind!r}.{closest(str(kind), _TOWERS[side])}")
    return _TOWERS[side][kind]


def _every_tower() -> list[Tower]:
    return [tower for towers in _TOWERS.values() for tower in towers.values()]


def tower_of(config: Any) -> Tower:
    """Return the tower that a config belongs to; ValueError when its class is not registered."""
    for tower in _every_tower():
        if type(config) is tower.config:
            return tower
    known = ", ".join(tower.config.__name__ for tower in _every_tower())
    raise ValueError(f"{type(config).__name__} is not the config of a registered tower. Registered: {known}.")


def layer_weights(class_name: str) -> tuple[str, ...]:
    """Return `Tower.weights` of a layer class; () if no registered tower brings such a class."""
    return next((tower.weights[class_name] for tower in _every_tower() if class_name in tower.weights), ())
