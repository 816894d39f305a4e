"""The images of a request: data: URLs, uploaded files, and remote URLs where they are allowed.

    {"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}}
    {"type": "image_url", "image_url": {"url": "https://..."}}      needs --fetcher
    {"type": "file", "file": {"file_id": "file-..."}}               from POST /v1/files
    {"type": "file", "file": {"file_data": "data:image/png;base64,..."}}

An image is decoded when its request is read, so that one that is none fails its own request alone.
"""

from __future__ import annotations

import base64
import binascii
import collections
import dataclasses
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from flamingo_jax.inference.prompt import PromptError, load_frames
from flamingo_jax.serving.api_error import ApiError

# A function that fetches a URL: it returns the bytes, or anything else that says why not. It
# decides which hosts may be asked (data_pipelines.web.image_fetcher refuses private addresses).
Fetch = Callable[[str], Any]


@dataclasses.dataclass(frozen=True)
class Upload:
    """A file that was uploaded."""

    name: str
    content: bytes
    created: int

    def described(self, number: str) -> dict[str, Any]:
        """Returns the file object of the API."""
        return {
            "id": number,
            "object": "file",
            "bytes": len(self.content),
            "created_at": self.created,
            "filename": self.name,
            "purpose": "vision",
            "status": "processed",
        }


class Uploads:
    """Uploaded files in memory; the oldest are dropped when there are too many bytes."""

    def __init__(self, megabytes: int) -> None:
        """Takes the memory for all files."""
        self._room, self._size = megabytes << 20, 0
        self._files: collections.OrderedDict[str, Upload] = collections.OrderedDict()
        self._lock = threading.Lock()

    def add(self, name: str, content: bytes) -> tuple[str, Upload]:
        """Keeps a file; returns its id, and what is kept."""
        number, upload = f"file-{secrets.token_hex(12)}", Upload(name, content, int(time.time()))
        with self._lock:
            self._files[number] = upload
            self._size += len(content)
            while self._size > self._room:
                self._size -= len(self._files.popitem(last=False)[1].content)
        return number, upload

    def get(self, number: str) -> Upload | None:
        """Returns a file; None if there is none, or it was dropped."""
        with self._lock:
            return self._files.get(number)

    def delete(self, number: str) -> bool:
        """Drops a file; returns False if there is none."""
        with self._lock:
            upload = self._files.pop(number, None)
            self._size -= len(upload.content) if upload else 0
            return upload is not None


class RequestImages:
    """Reads the images of content parts."""

    def __init__(
        self,
        *,
        size: int | None,
        settings: Mapping[str, Any],
        uploads: Uploads,
        fetch: Fetch | None,
    ) -> None:
        """Takes what images become.

        Args:
            size: side in pixels; None = the model reads text alone.
            settings: image_fit, background and max_tiles, as in training.
            uploads: the uploaded files.
            fetch: of remote URLs; None = they are refused.
        """
        self._size, self._settings = size, dict(settings)
        self._uploads, self._fetch = uploads, fetch

    def __call__(self, part: Mapping[str, Any], where: str) -> np.ndarray:
        """Returns the pixels uint8[H, W, 3] of a content part: a square, or the canvas of tiles.

        Raises:
            ApiError: it has no image, or one that cannot be had.
        """
        if self._size is None:
            raise ApiError("This model reads text alone: leave the images out.", param=where)
        kind, value = part.get("type"), {}
        if kind in ("image_url", "file") and isinstance(part.get(kind), Mapping):
            value = part[kind]
        if isinstance(url := value.get("url", value.get("file_data")), str) and kind:
            content = self._of_url(url, where)
        elif isinstance(number := value.get("file_id"), str) and kind == "file":
            upload = self._uploads.get(number)
            if upload is None:
                raise ApiError(
                    f"There is no file {number!r:.60}: it was not uploaded here, or was dropped. "
                    "Upload it again to /v1/files.",
                    param=where,
                    code="file_not_found",
                )
            content = upload.content
        else:
            raise ApiError(
                f"{where} is of type {kind!r:.40}; expected text, image_url with a url, or file "
                "with a file_id.",
                param=where,
                code="unsupported",
            )
        return self.decoded(content, where)

    def decoded(self, content: bytes, where: str) -> np.ndarray:
        """Returns the pixels of an encoded image.

        Raises:
            ApiError: the bytes are no image.
        """
        try:
            return load_frames(content, self._size or 1, **self._settings)[0]
        except PromptError as error:
            message = str(error).removeprefix("prompt: ")
            raise ApiError(f"{where}: {message}", param=where, code="invalid_image") from error

    def _of_url(self, url: str, where: str) -> bytes:
        if url.startswith("data:"):
            head, comma, data = url.partition(",")
            try:
                if not comma or not head.endswith(";base64"):
                    raise binascii.Error("no ;base64,")
                return base64.b64decode(data, validate=True)
            except (binascii.Error, ValueError) as error:
                raise ApiError(
                    f"{where}: the data: URL cannot be read ({error}); expected "
                    "data:image/png;base64,... .",
                    param=where,
                    code="invalid_image",
                ) from error
        if not url.startswith(("http://", "https://")):
            raise ApiError(
                f"{where}: the URL {url[:40]!r} is none of data:, http: and https:.", param=where
            )
        if self._fetch is None:
            raise ApiError(
                f"{where}: this server fetches no remote images. Send the image as a data: URL, or "
                "upload it to /v1/files.",
                param=where,
                code="remote_images_off",
            )
        found = self._fetch(url)
        if isinstance(found, bytes):
            return found
        why = ": ".join(
            str(value) for name in ("reason", "detail") if (value := getattr(found, name, None))
        )
        raise ApiError(
            f"{where}: {url[:80]!r} cannot be fetched ({why or 'refused'}).",
            param=where,
            code="image_not_fetched",
        )
