"""Building blocks of the schema: sections, and components, which are registered entries with their options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator


@dataclass(frozen=True)
class Registered:
    """Marks a place of the schema that names a registered entry: `loss: Annotated[Component, Registered("loss")]`."""

    kind: str


class Strict(BaseModel):
    """A section whose unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Component(BaseModel):
    """Something registered, by name, with its options: `group_relative` or `{name: group_relative, eps: 1.0e-6}`.

    Options are checked against what the entry declares when the config is read.
    """

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    name: str = Field(description="id of a registered entry, or path/to/file.py:function")

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @property
    def options(self) -> dict[str, Any]:
        """The keys that the schema does not have."""
        return dict(self.model_extra or {})
