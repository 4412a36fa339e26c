"""What every part of the configuration is: a checked section whose faults are told by file, key and what fits."""

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from noisebox.errors import UserError, what_fits

Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
AboveZero = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Section(BaseModel):
    """A part of the configuration: unknown keys are errors, values never change after validation. No number is
    infinite, and none is given as true or false, which YAML has for yes and no as well."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _numbers_are_numbers(cls, values: Any) -> Any:
        for key, value in values.items() if isinstance(values, dict) else ():
            if _holds_truth(value) and (field := cls.model_fields.get(key)):
                kinds = _kinds(field.annotation)
                if kinds & {int, float} and bool not in kinds:
                    raise ValueError(f"{key} must be a number, not {value!r}")
        return values


def _kinds(annotation: Any) -> set[Any]:
    """What an annotation is made of, such as of list[int] | None: list, int and None's type."""
    if get_origin(annotation) is Literal:
        return {type(value) for value in get_args(annotation)}
    return {get_origin(annotation) or annotation}.union(*map(_kinds, get_args(annotation)))


def _holds_truth(value: Any) -> bool:
    """Whether it is true or false, or holds one of them, however deep."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return isinstance(value, bool) or any(map(_holds_truth, inside))


SectionT = TypeVar("SectionT", bound=Section)


def check_section(section: type[SectionT], values: dict[str, Any], path: Path, within: str = "") -> SectionT:
    """`values` as a `section`; `path` and `within`, the keys above, tell where they were read.

    Raises UserError naming file, key and what fits.
    """
    try:
        return section(**values)
    except ValidationError as error:
        key, complaint = first_complaint(section, error, within)
        if complaint.startswith(ABOUT_KEYS):
            raise UserError(f"{path}: key {key!r} {complaint}") from None
        raise UserError(f"{path}: {key + ': ' if key else ''}{complaint}") from None
    except TypeError:
        raise UserError(f"{path}: the keys{' of ' + within if within else ''} must be words") from None


def check_overrides(section: type[SectionT], values: dict[str, Any], within: str = "") -> SectionT:
    """`values` as a `section`, after overrides of it that a user gave; `values` were sound without them.

    Raises UserError naming the override and what fits.
    """
    try:
        return section(**values)
    except ValidationError as error:
        key, complaint = first_complaint(section, error, within)
        named = f"override {key!r}" if key else "overrides"
        raise UserError(f"{named}{' ' if complaint.startswith(ABOUT_KEYS) else ': '}{complaint}") from None
    except TypeError:
        raise UserError(f"overrides{' of ' + within if within else ''}: their keys must be words") from None


ABOUT_KEYS = ("does not exist", "is missing")


def first_complaint(section: type[BaseModel], error: ValidationError, within: str) -> tuple[str, str]:
    """The first complaint of pydantic, in our words: the key, after those `within`; what is wrong, and what fits."""
    first = error.errors()[0]
    location = [str(part) for part in first["loc"]]
    key = ".".join(filter(None, [within, *location]))
    if first["type"] == "extra_forbidden":
        known = _keys(section, location[:-1])
        return key, f"{ABOUT_KEYS[0]}; {what_fits(location[-1], known, 'known keys')}"
    if first["type"] == "missing":
        return key, ABOUT_KEYS[1]
    if first["type"] == "model_type":
        own = ", ".join(_keys(section, location))
        return key, f"must be a section{f' of {own}' if own else ''}, not {first['input']!r}"
    message = first["msg"].removeprefix("Value error, ")
    given = first["input"]
    shown = f", not {given!r}" if first["type"] != "value_error" and not isinstance(given, dict) else ""
    return key, f"{message[0].lower() + message[1:]}{shown}"


def _keys(section: type[BaseModel], location: list[str]) -> list[str]:
    """The keys that fit at `location` below a section."""
    for part in location:
        field = section.model_fields.get(part)
        candidates = [field.annotation, *get_args(field.annotation)] if field else []
        nested = [kind for kind in candidates if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not nested:
            return []
        section = nested[0]
    return list(section.model_fields)


def which_exist(path: Path) -> str:
    """The end of a sentence about a missing YAML file: its nearest neighbour, or all that lie where it should be."""
    return what_fits(
        path.stem, sorted(file.stem for file in path.parent.glob("*.yaml") if file.exists()), "these exist"
    )


def merged(base: dict[str, Any], override: dict[str, Any]) -> dict[str, Any]:
    """`base` with the keys of `override` in place of its own, mappings merged key by key."""
    result = dict(base)
    for key, value in override.items():
        nested = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if nested else value
    return result
