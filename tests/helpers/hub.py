"""A small hub on this machine: enough of its HTTP interface for the real client to download from."""

from __future__ import annotations

import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit


class Hub:
    """`repos`: {repository, `datasets/` before a data set's: {path: content}}, each at one commit, which is also its
    "main". `files`: {path: content} behind plain URLs. `gated`: repositories that ask for a login. `served`: the files
    that were asked for, in order."""

    COMMIT = "c0ffee" * 6 + "c0ff"

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.files: dict[str, bytes] = {}
        self.gated: set[str] = set()
        self.served: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub._answer(self, body=True)

            def do_HEAD(self) -> None:
                hub._answer(self, body=False)

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()  # how soon it sees that it is over

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def _answer(self, request: BaseHTTPRequestHandler, body: bool) -> None:
        status, headers, content = self._find(unquote(urlsplit(request.path).path).strip("/"), body)
        request.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            request.send_header(name, value)
        request.end_headers()
        if body:
            request.wfile.write(content)

    def _find(self, path: str, body: bool) -> tuple[int, dict[str, str], bytes]:
        if path in self.files:
            self.served.append(path)
            return 200, {}, self.files[path]
        for marker in ("revision", "tree", "resolve"):
            repo, found, rest = path.removeprefix("api/").removeprefix("models/").partition(f"/{marker}/")
            if found:
                revision, _, name = rest.partition("/")
                return self._of_repo(marker, repo, revision, name, body)
        return 404, {}, b""

    def _of_repo(self, marker: str, repo: str, revision: str, name: str, body: bool) -> tuple[int, dict, bytes]:
        if repo in self.gated:
            return 403, {"X-Error-Code": "GatedRepo"}, b""
        if repo not in self.repos:
            return 401, {"X-Error-Code": "RepoNotFound"}, b""
        if revision not in ("main", self.COMMIT):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        files = self.repos[repo]
        if marker == "resolve":
            if body:
                self.served.append(name)
            return 200, {"ETag": f'"{_sha(files[name])}"', "X-Repo-Commit": self.COMMIT}, files[name]
        if marker == "tree":
            listing: object = [{"type": "file", "path": file, "size": len(files[file]), "oid": "0"} for file in files]
        else:
            siblings = [
                {
                    "rfilename": file,
                    "size": len(data),
                    "lfs": {"sha256": _sha(data), "size": len(data), "pointerSize": 1},
                }
                for file, data in files.items()
            ]
            listing = {"id": repo, "sha": self.COMMIT, "siblings": siblings, "private": False, "tags": []}
        return 200, {"Content-Type": "application/json"}, json.dumps(listing).encode()


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
