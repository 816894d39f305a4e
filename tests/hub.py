"""A stand-in for the Hugging Face Hub on the loopback, with the parts that downloads need.

GET  /api/models/ORG/NAME/revision/REV     commit and list of files
GET  /api/models/ORG/NAME/tree/COMMIT      sizes
HEAD, GET  /ORG/NAME/resolve/REV/FILE      ETag, X-Repo-Commit, ranges
"""

import contextlib
import dataclasses
import hashlib
import http.server
import json
import threading
import urllib.parse


@dataclasses.dataclass
class Repository:
    """Files by name; `revisions` besides its commit; what is wrong with it."""

    files: dict[str, bytes]
    revisions: tuple[str, ...] = ("main", "v1")
    is_gated: bool = False
    status: int = 0  # answers everything with it
    breaks_after: int = 0  # bytes of the next file of more than so many: the connection ends there
    withheld: tuple[str, ...] = ()  # listed, but 404

    @property
    def commit(self) -> str:
        """Another one for other files."""
        return _etag(repr(sorted(self.files.items())).encode())


class Hub:
    """Repositories that are served; `asked` has the requests."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.asked: list[str] = []
        hub = self

        class Handler(_Handler):
            served = hub

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def fetched(self) -> list[str]:
        """The files whose content was asked for, with the range if there was one."""
        return sorted(line[4:] for line in self.asked if line.startswith("GOT "))

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    served: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        path = urllib.parse.unquote(urllib.parse.urlparse(self.path).path)
        self.served.asked.append(f"{self.command} {path}")
        parts = path.strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        parts = parts[2:] if api else parts
        repository = self.served.repositories.get("/".join(parts[:2]))
        if repository is None:
            return self._send(404, b"{}", error="RepoNotFound")
        if repository.status:
            return self._send(repository.status, b"{}")
        if repository.is_gated and not api:
            return self._send(403, b"{}", error="GatedRepo")
        revision, _, file = "/".join(parts[3:]).partition("/")
        if revision not in (*repository.revisions, repository.commit):
            return self._send(404, b"{}", error="RevisionNotFound")
        if api:
            return self._send(200, json.dumps(self._listed(parts, repository)).encode())
        if file not in repository.files or file in repository.withheld:
            return self._send(404, b"{}", error="EntryNotFound")
        return self._file(repository, file, with_body=with_body)

    def _listed(self, parts: list[str], repository: Repository) -> object:
        if parts[2] == "tree":
            return [
                {"type": "file", "path": name, "size": len(content), "oid": _etag(content)}
                for name, content in repository.files.items()
            ]
        files = [{"rfilename": name} for name in repository.files]
        return {"id": "/".join(parts[:2]), "sha": repository.commit, "siblings": files}

    def _file(self, repository: Repository, file: str, *, with_body: bool) -> None:
        content = repository.files[file]
        start = 0
        if given := self.headers.get("Range"):
            start = int(given.removeprefix("bytes=").partition("-")[0])
        if with_body:
            self.served.asked.append(f"GOT {file}" + (f" from {start}" if start else ""))
        headers = {
            "ETag": f'"{_etag(content)}"',
            "X-Repo-Commit": repository.commit,
            "Accept-Ranges": "bytes",
        }
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        cut = repository.breaks_after if with_body and len(content) > repository.breaks_after else 0
        self._send(206 if start else 200, content[start:], headers=headers, cut=cut)
        if cut:
            repository.breaks_after = 0

    def _send(
        self,
        status: int,
        body: bytes,
        *,
        error: str = "",
        headers: dict[str, str] | None = None,
        cut: int = 0,
    ) -> None:
        self.send_response(status)
        for name, value in {"X-Error-Code": error, **(headers or {})}.items():
            if value:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:cut] if cut else body)
        if cut:
            self.wfile.flush()
            self.close_connection = True


def _etag(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


@contextlib.contextmanager
def served(monkeypatch, cache):
    """A hub that huggingface_hub of this process asks, with an empty cache."""
    from huggingface_hub import constants

    hub = Hub()
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        yield hub
    finally:
        hub.close()
