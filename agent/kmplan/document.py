"""Files with a schema: read and checked in one step, written so that a crash leaves the old or the new one."""

import re
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml

from kmplan.errors import UserError
from kmplan.files import write

__all__ = ["convert", "parse", "read", "schema", "write"]

T = TypeVar("T")


def read(path: Path, kind: type[T]) -> T:
    """Read a YAML (or JSON) file into `kind`, a msgspec type.

    Raises UserError in one line that names the file, the place in it and what was expected there.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    return parse(text, kind, str(path))


def parse(text: str, kind: type[T], source: str) -> T:
    """Parse YAML text into `kind`; `source` names it in errors."""
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{source}:{mark.line + 1}" if mark else source
        raise UserError(f"{where}: not YAML: {getattr(error, 'problem', None) or error}") from error
    return convert(data, kind, source)


def convert(data: object, kind: type[T], source: str) -> T:
    """Check plain data (dicts, lists, strings) against `kind`; `source` names it in errors."""
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        what, _, place = str(error).partition(" - at ")
        where = place.strip("`").removeprefix("key` in `").removeprefix("$").removeprefix(".")
        lead = f"{source}: {where}: " if where else f"{source}: "
        raise UserError(f"{lead}{what}{_expected(kind, where, what)}") from error


def _expected(kind: type[Any], where: str, what: str) -> str:
    """Say what the schema wants at a place where msgspec's message does not: known keys, allowed values, a meaning."""
    whole = schema(kind)
    part = _resolve(whole, whole)
    for name in re.findall(r"[A-Za-z_]\w*|\[[^]]*\]", where):
        inner = (
            part.get("items") or part.get("additionalProperties")
            if name.startswith("[")
            else part.get("properties", {}).get(name)
        )
        part = _resolve(inner or {}, whole)
    allowed = part.get("enum") or part.get("propertyNames", {}).get("enum") or []
    if "unknown field" in what:
        return f"; known here: {', '.join(part.get('properties', {}))}"
    if "Invalid enum value" in what and allowed:
        return f"; expected one of: {', '.join(map(str, allowed))}"
    return f"; expected: {part['description']}" if "matching regex" in what and "description" in part else ""


def _resolve(part: dict[str, Any], whole: dict[str, Any]) -> dict[str, Any]:
    """Follow a JSON Schema reference; of several possibilities take the one that is not null."""
    for choice in part.get("anyOf", []):
        if choice.get("type") != "null":
            part = {**choice, **{key: value for key, value in part.items() if key != "anyOf"}}
    name = part.get("$ref", "").rpartition("/")[2]
    return {**whole.get("$defs", {}).get(name, {}), **part} if name else part


def schema(kind: type[Any]) -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of a msgspec type."""
    return msgspec.json.schema(kind)
