"""The body of POST /v1/chat/completions: its fields are checked here, and nowhere else.

    {"model": "flamingo", "messages": [
        {"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}},
            {"type": "text", "text": "What is this?"}]}],
     "max_tokens": 30, "temperature": 0.7, "top_p": 0.9, "seed": 1, "stop": ["."], "stream": true}

A field that asks for more than the model can do (tools, n > 1, logprobs) is an error, and so is one
that the format does not have. A field with its neutral value (n = 1) is accepted.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from flamingo_jax.core import seeds
from flamingo_jax.inference.methods import Greedy, Sample
from flamingo_jax.serving.api_error import ApiError, unsupported

TOKENS = 64  # of an answer, if the request does not say
MOST_STOPS = 4
_READ = (
    *("model", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p"),
    *("stop", "seed", "stream", "stream_options"),
)
_IGNORED = ("user", "metadata", "store", "safety_identifier", "prompt_cache_key", "service_tier")
# name -> (values that ask for nothing, what is expected)
_NEUTRAL: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "n": ((1,), "expected n = 1. Send the request several times, with other seeds."),
    "logprobs": ((False,), "leave it out. Flamingo.score has log-likelihoods."),
    "top_logprobs": ((0,), "leave it out."),
    "presence_penalty": ((0,), "expected 0."),
    "frequency_penalty": ((0,), "expected 0."),
    "logit_bias": (({},), "leave it out."),
    "tools": (([],), "the model calls no tools; leave it out."),
    "tool_choice": (("none", "auto"), "the model calls no tools; leave it out."),
    "parallel_tool_calls": ((True, False), ""),
    "functions": (([],), "the model calls no functions; leave it out."),
    "function_call": (("none", "auto"), "the model calls no functions; leave it out."),
    "response_format": (({"type": "text"},), 'expected {"type": "text"}.'),
    "modalities": ((["text"],), 'expected ["text"].'),
    "audio": ((), "leave it out."),
    "prediction": ((), "leave it out."),
    "reasoning_effort": (("none",), "leave it out."),
    "web_search_options": ((), "leave it out."),
}


@dataclasses.dataclass(frozen=True)
class ChatRequest:
    """A request whose fields are right; the content of its messages is not looked at yet.

    Attributes:
        model: the name that was asked for.
        messages: as sent.
        method: how the answer is chosen, with its longest length.
        stop: texts that end the answer.
        stream: whether the answer is sent in pieces.
        with_usage: whether a last piece counts the tokens.
    """

    model: str
    messages: Sequence[Mapping[str, Any]]
    method: Greedy | Sample
    stop: tuple[str, ...] = ()
    stream: bool = False
    with_usage: bool = False


def read(body: Any, *, longest: int) -> ChatRequest:
    """Returns the request of a JSON body.

    Args:
        body: the decoded JSON.
        longest: the most tokens that a request may ask for.

    Raises:
        ApiError: a field is missing, has a wrong value, or is not supported.
    """
    if not isinstance(body, Mapping):
        raise ApiError(f"The body is {_named(body)}; expected a JSON object with messages.")
    given = {name: value for name, value in body.items() if value is not None}
    for name, value in given.items():
        if name in _NEUTRAL:
            neutral, expected = _NEUTRAL[name]
            if not any(value == each and type(value) is type(each) for each in neutral):
                raise unsupported(name, expected)
        elif name not in (*_READ, *_IGNORED):
            raise ApiError(
                f"The field {name!r:.60} is unknown. Leave it out.",
                param=name,
                code="unknown_field",
            )
    model = _text(given, "model")
    messages = given.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ApiError(
            f"messages is {_named(messages)}; expected a list with a message of the user.",
            param="messages",
        )
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise ApiError(
                f"messages[{number}] is {_named(message)}; expected an object.",
                param=f"messages[{number}]",
            )
    stream, options = _flag(given, "stream"), given.get("stream_options", {})
    if not isinstance(options, Mapping) or set(options) - {"include_usage", "include_obfuscation"}:
        raise ApiError(
            f"stream_options is {options!r:.60}; expected {{'include_usage': true}}.",
            param="stream_options",
        )
    if options and not stream:
        raise ApiError("stream_options is for stream = true alone.", param="stream_options")
    return ChatRequest(
        model=model,
        messages=messages,
        method=_method(given, longest),
        stop=_stop(given.get("stop")),
        stream=stream,
        with_usage=stream and options.get("include_usage") is True,
    )


def _method(given: Mapping[str, Any], longest: int) -> Greedy | Sample:
    name = "max_completion_tokens" if "max_completion_tokens" in given else "max_tokens"
    tokens = _number(given, name, min(TOKENS, longest), 1, longest, whole=True)
    temperature = _number(given, "temperature", 1.0 if "top_p" in given else 0.0, 0.0, 2.0)
    top_p = _number(given, "top_p", 1.0, 0.0, 1.0)
    most = (1 << 32) - 1
    seed = _number(given, "seed", secrets.randbits(32), 0, most, whole=True)
    assert seeds.RANGE.holds(int(seed))
    if temperature == 0 or top_p == 0:
        return Greedy(max_new_tokens=int(tokens))
    return Sample(float(temperature), float(top_p), int(seed), int(tokens))


def _number(
    given: Mapping[str, Any],
    name: str,
    default: int | float,
    least: int | float,
    most: int | float,
    *,
    whole: bool = False,
) -> int | float:
    value = given.get(name, default)
    kinds = (int,) if whole else (int, float)
    is_number = isinstance(value, kinds) and not isinstance(value, bool)
    if not is_number or not least <= value <= most:  # no NaN either
        kind = "a whole number" if whole else "a number"
        raise ApiError(
            f"{name} is {value!r:.60}; expected {kind} from {least:g} to {most:.10g}.", param=name
        )
    return value


def _stop(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value or []
    if (
        not isinstance(stops, list)
        or len(stops) > MOST_STOPS
        or not all(isinstance(each, str) and each for each in stops)
    ):
        raise ApiError(
            f"stop is {value!r:.60}; expected a text, or a list of at most {MOST_STOPS} texts.",
            param="stop",
        )
    return tuple(stops)


def _text(given: Mapping[str, Any], name: str) -> str:
    value = given.get(name)
    if not isinstance(value, str) or not value:
        raise ApiError(f"{name} is {_named(value)}; expected a text.", param=name)
    return value


def _flag(given: Mapping[str, Any], name: str) -> bool:
    value = given.get(name, False)
    if not isinstance(value, bool):
        raise ApiError(f"{name} is {value!r:.60}; expected true or false.", param=name)
    return value


def _named(value: Any) -> str:
    return "missing" if value is None else f"{type(value).__name__} {value!r:.40}"
