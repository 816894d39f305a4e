"""The fields of a request, and the prompt of its messages."""

import base64
import io

import numpy as np
import PIL.Image
import pytest

from data_pipelines.page import Reject
from flamingo_jax.inference.chat import EXAMPLES, INTRODUCTION, Chat
from flamingo_jax.inference.methods import Greedy, Sample
from flamingo_jax.serving import chat_request, dialogue
from flamingo_jax.serving.api_error import ApiError
from flamingo_jax.serving.request_images import RequestImages, Uploads
from flamingo_jax.tokenizers.chat_template import LLAMA, PAPER, TURNS
from tests.inference import tiny

HELLO = [{"role": "user", "content": "hello"}]


def png(seed=0):
    file = io.BytesIO()
    PIL.Image.fromarray(tiny.image(seed)).save(file, "PNG")
    return file.getvalue()


def read(**fields):
    return chat_request.read({"model": "m", "messages": HELLO, **fields}, longest=100)


def test_settings_become_a_method():
    assert read().method == Greedy(max_new_tokens=64)
    assert read(max_tokens=5, temperature=0, seed=3).method == Greedy(max_new_tokens=5)
    assert read(max_completion_tokens=7, max_tokens=5).method == Greedy(max_new_tokens=7)
    assert read(temperature=0.5, seed=3).method == Sample(0.5, 1.0, 3, 64)
    assert read(top_p=0.9, seed=3, max_tokens=2).method == Sample(1.0, 0.9, 3, 2)
    assert read(temperature=1).method != read(temperature=1).method  # two seeds
    assert read(stop="x").stop == ("x",) and read(stop=["x", "y"]).stop == ("x", "y")
    streamed = read(stream=True, stream_options={"include_usage": True})
    assert streamed.stream and streamed.with_usage and not read(stream=True).with_usage
    assert read(n=1, logprobs=False, tools=None, user="me", presence_penalty=0) == read()


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"tools": [{"type": "function"}]}, "tools", "not supported .* calls no tools"),
        ({"n": 2}, "n", "not supported .* expected n = 1"),
        ({"n": True}, "n", "not supported"),
        ({"logprobs": True}, "logprobs", "not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format", "not supported"),
        ({"frequency_penalty": 0.5}, "frequency_penalty", "expected 0"),
        ({"beams": 3}, "beams", "the field 'beams' is unknown|The field 'beams' is unknown"),
        ({"max_tokens": 101}, "max_tokens", "is 101; expected a whole number from 1 to 100"),
        ({"max_tokens": 0}, "max_tokens", "expected a whole number"),
        ({"max_tokens": 10**400}, "max_tokens", "expected a whole number from 1 to 100"),
        ({"temperature": 10**400}, "temperature", "expected a number from 0 to 2"),
        ({"max_tokens": "5"}, "max_tokens", "is '5'; expected a whole number"),
        ({"temperature": -1}, "temperature", "expected a number from 0 to 2"),
        ({"temperature": float("nan")}, "temperature", "is nan; expected a number"),
        ({"top_p": 1.5}, "top_p", "expected a number from 0 to 1"),
        ({"seed": 1 << 32}, "seed", "expected a whole number from 0 to 4294967295"),
        ({"stop": ["a"] * 5}, "stop", "a list of at most 4 texts"),
        ({"stop": [""]}, "stop", "a list of at most 4 texts"),
        ({"stream": "yes"}, "stream", "expected true or false"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "for stream = true"),
        ({"model": 3}, "model", "model is int 3; expected a text"),
        ({"messages": []}, "messages", "expected a list with a message"),
        ({"messages": ["hello"]}, r"messages[0]", "expected an object"),
    ],
)
def test_what_is_refused(fields, param, message):
    with pytest.raises(ApiError, match=message) as error:
        read(**fields)
    assert (error.value.status, error.value.param) == (400, param)
    assert set(error.value.body["error"]) == {"message", "type", "param", "code"}
    with pytest.raises(ApiError, match="expected a JSON object"):
        chat_request.read([], longest=5)


def test_the_prompt_is_that_of_the_dialogue():
    """Word by word the prompt that Flamingo.chat has after the same turns."""
    prompts = []

    def answer(parts):
        prompts.append(list(parts))
        return " a dog.\n"

    picture = tiny.image(1)
    chat = Chat(answer)
    chat.say([picture, "What is this?"])
    chat.say("Which breed?")
    image = {"type": "image_url", "image_url": {"url": "..."}}
    messages = [
        {"role": "user", "content": [image, {"type": "text", "text": "What is this?"}]},
        {"role": "assistant", "content": "a dog."},
        {"role": "user", "content": "Which breed?"},
    ]
    found = dialogue.prompt_of(messages, lambda part, where: picture, PAPER)
    texts = [part if isinstance(part, str) else "<image>" for part in found]
    assert "".join(texts) == "".join(p if isinstance(p, str) else "<image>" for p in prompts[1])
    assert texts[0] == INTRODUCTION and len(EXAMPLES) == 4


def test_a_model_of_conversations_has_their_template():
    messages = [*HELLO, {"role": "assistant", "content": "hi"}, *HELLO]
    found = "".join(dialogue.prompt_of(messages, images(), TURNS))
    assert found == "User: hello\nFlamingo: hi<EOC>User: hello\nFlamingo:"


def test_a_dialogue_of_llama_has_headers_and_texts_are_as_they_are():
    system = {"role": "system", "content": "Be brief. "}
    messages = [system, *HELLO, {"role": "assistant", "content": "hi"}, *HELLO, *HELLO]
    found = "".join(dialogue.prompt_of(messages, images(), LLAMA))
    named = lambda role, text: (
        f"<|start_header_id|>{role}<|end_header_id|>\n\n{text}" + ("<|eot_id|>" if text else "")
    )
    written = [("system", "Be brief."), ("user", "hello"), ("assistant", "hi")]
    written += [("user", "hello\nhello"), ("assistant", "")]
    assert found == "".join(named(*each) for each in written)


def test_a_system_message_takes_the_place_of_the_introduction():
    messages = [{"role": "system", "content": "Be brief."}, *HELLO, *HELLO]
    found = "".join(dialogue.prompt_of(messages, images(), PAPER))
    assert found == "Be brief.\nUser: hello hello\nFlamingo:"


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([{"role": "tool", "content": "x"}], "role is 'tool'; expected one of system"),
        ([*HELLO, {"role": "assistant", "content": "x"}], "says nothing of the user"),
        ([{"role": "user", "content": "  "}], "says nothing of the user"),
        ([*HELLO, {"role": "system", "content": "x"}], "expected before all others"),
        ([{"role": "user", "content": None}], "content is NoneType; expected a text"),
        ([{"role": "user", "content": [{"type": "text"}]}], r"content\[0\].text is missing"),
        ([{"role": "assistant", "content": "", "tool_calls": [1]}], "tool_calls is not supported"),
        ([{"role": "user", "content": [{"type": "input_audio"}]}], "is of type 'input_audio'"),
        (
            [
                {
                    "role": "system",
                    "content": [{"type": "image_url", "image_url": {"url": "data:,"}}],
                }
            ],
            "data: URL cannot be read",
        ),
    ],
)
def test_messages_that_make_no_prompt(messages, message):
    with pytest.raises(ApiError, match=message):
        dialogue.prompt_of(messages, images(), PAPER)


def images(fetch=None, size=tiny.IMAGE_SIZE, uploads=None):
    return RequestImages(size=size, settings={}, uploads=uploads or Uploads(1), fetch=fetch)


def url(text):
    return {"type": "image_url", "image_url": {"url": text}}


def data_url(content=None):
    return "data:image/png;base64," + base64.b64encode(content or png()).decode()


def test_images_come_in_four_ways():
    uploads, expected = Uploads(1), tiny.image(0)
    number, _ = uploads.add("a.png", png())
    read_image = images(fetch=lambda address: png(), uploads=uploads)
    for part in (
        url(data_url()),
        url("https://example.com/a.png"),
        {"type": "file", "file": {"file_id": number}},
        {"type": "file", "file": {"file_data": data_url()}},
    ):
        np.testing.assert_array_equal(read_image(part, "here"), expected)


@pytest.mark.parametrize(
    ("part", "code", "message"),
    [
        (url(data_url(b"no image")), "invalid_image", "here: 8 bytes cannot be read as an image"),
        (url(data_url(png()[:-30])), "invalid_image", "cannot be read as an image"),
        (url("data:image/png;base64,@@"), "invalid_image", "data: URL cannot be read"),
        (url("data:image/png,abc"), "invalid_image", "expected data:image/png;base64"),
        (url("file:///etc/passwd"), None, "none of data:, http: and https:"),
        (url("/etc/passwd"), None, "none of data:, http: and https:"),
        (url("https://example.com/a.png"), "remote_images_off", "fetches no remote images"),
        (url(3), "unsupported", "expected text, image_url with a url"),
        ({"type": "file", "file": {"file_id": "file-1"}}, "file_not_found", "Upload it again"),
    ],
)
def test_what_is_no_image(part, code, message):
    with pytest.raises(ApiError, match=message) as error:
        images()(part, "here")
    assert error.value.code == code and error.value.status == 400


def test_remote_images_are_the_fetchers_affair():
    """The pipelines' fetcher refuses an address of this machine, and says so."""
    refused = Reject("fetch_refused", "localhost has the address 127.0.0.1, which is not public")
    with pytest.raises(ApiError, match="fetch_refused: localhost has the address") as error:
        images(fetch=lambda address: refused)(url("http://localhost/a.png"), "here")
    assert error.value.code == "image_not_fetched"
    from data_pipelines.web.image_fetcher import fetch

    with pytest.raises(ApiError, match=r"127.0.0.1, which is not public"):
        images(fetch=fetch)(url("http://127.0.0.1/a.png"), "here")


def test_a_language_model_sees_nothing():
    with pytest.raises(ApiError, match="reads text alone"):
        images(size=None)(url(data_url()), "here")


def test_uploads_are_bounded():
    uploads = Uploads(1)
    numbers = [uploads.add(f"{n}.png", bytes(400_000))[0] for n in range(3)]
    assert [uploads.get(number) is not None for number in numbers] == [False, True, True]
    assert uploads.delete(numbers[1]) and not uploads.delete(numbers[1])
    assert uploads.get(numbers[2]).described("file-1")["bytes"] == 400_000
