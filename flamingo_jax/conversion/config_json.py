"""Reads the fields of a publisher's config.json, and refuses values that are not supported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flamingo_jax.conversion.reading import ConversionError
from flamingo_jax.nn.feedforward import Activation

ACTIVATIONS: Mapping[str, Activation] = {
    "gelu": "gelu_exact",
    "gelu_new": "gelu",
    "gelu_fast": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "relu": "relu",
    "quick_gelu": "quick_gelu",
}
_REQUIRED = object()


class Fields:
    """The fields of a config.json, by dotted name."""

    def __init__(self, content: Mapping[str, Any]):
        self._content = content

    def with_defaults(self, defaults: Mapping[str, Any]) -> Fields:
        """Returns the fields with `defaults` for those that are missing; null is not missing."""
        return Fields({**defaults, **self._content})

    def with_values(self, values: Mapping[str, Any]) -> Fields:
        """Returns the fields with other values of some of them."""
        return Fields({**self._content, **values})

    def get(self, *names: str, default: Any = _REQUIRED) -> Any:
        """Returns the first of these fields that exists and is not null, else the default.

        Raises:
            ConversionError: if there is no such field and no default.
        """
        for name in names:
            value: Any = self._content
            for key in name.split("."):
                value = value.get(key) if isinstance(value, Mapping) else None
            if value is not None:
                return value
        if default is _REQUIRED:
            raise ConversionError(
                f"config.json has no {names[0]}: it is not the one of this model, or not whole."
            )
        return default

    def only(self, name: str, *supported: Any, default: Any) -> Any:
        """Returns a field that must have one of the supported values; `default` if it is missing.

        Raises:
            ConversionError: if it has another value.
        """
        value = self.get(name, default=default)
        if value not in supported:
            allowed = " or ".join(map(repr, supported))
            raise ConversionError(
                f"config.json: {name} is {value!r}; supported is {allowed}. This model cannot be "
                "converted."
            )
        return value

    def activation(self, name: str, default: str) -> Activation:
        """Returns the activation that a field names."""
        return ACTIVATIONS[self.only(name, *ACTIVATIONS, default=default)]
