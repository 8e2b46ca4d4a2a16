"""A Hugging Face hub on this machine: what `huggingface_hub` asks for to upload and download."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

TOKEN = "hf_of_someone"
OWNER = "someone"
"""The only owner whose repositories the token may write."""


class Hub:
    """Repositories in memory.

    Attributes:
        files: content by file name of each repository: `owner/name`, or `datasets/owner/name`.
        address: value of HF_ENDPOINT.
        stored: large files by SHA-256.
        cuts: number of bytes after which each next download is cut.
        damaged: number of downloads that get a changed byte.
        ranges: `Range` header of each download, empty without one.
        private: whether downloads need the token.
    """

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.stored: dict[str, bytes] = {}
        self.cuts: list[int] = []
        self.damaged = 0
        self.ranges: list[str] = []
        self.private = False
        self.address = ""

    def commit_of(self, repository: str) -> str:
        """Commit of the present content."""
        found = [(n, hashlib.sha1(c).hexdigest()) for n, c in self.files[repository].items()]
        return hashlib.sha1(repr(sorted(found)).encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *values: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        found = re.fullmatch(
            r"/(api/)?(datasets/|models/)?([^/]+/[^/]+)(?:/(\w+)/[^/]+)?/?(.*)", path
        )
        api, kind, repository, what, name = found.groups() if found else ("", "", "", "", "")
        repository = f"datasets/{repository}" if kind == "datasets/" else repository
        files = self.hub.files.get(repository)
        if path.startswith("/storage/"):
            self.send_stored(path.removeprefix("/storage/"))
        elif self.hub.private and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.answer({"error": "Invalid username or password."}, 401)
        elif files is None:
            self.answer({"error": "Repository not found"}, 404, "RepoNotFound")
        elif api and what in (None, "revision"):
            siblings = [{"rfilename": each} for each in files]
            commit = self.hub.commit_of(repository)
            self.answer({"id": repository, "sha": commit, "siblings": siblings})
        elif api and what == "tree":
            self.answer(
                [
                    {"type": "file", "path": n, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
                    for n, c in files.items()
                ]
            )
        elif what == "resolve" and name in files:
            self.resolve(name, files[name], self.hub.commit_of(repository))
        else:
            self.answer({"error": "Entry not found"}, 404, "EntryNotFound")

    def resolve(self, name: str, content: bytes, commit: str) -> None:
        """A small file; or the address of a large one, on a storage server with another name."""
        if not name.endswith("tensors"):
            self.answer(content, commit=commit)
            return
        digest = hashlib.sha256(content).hexdigest()
        self.hub.stored[digest] = content
        self.send_response(302)
        self.send_header(
            "Location", f"{self.hub.address}/storage/{digest}".replace("127.0.0.1", "localhost")
        )
        self.send_header("X-Linked-ETag", f'"{digest}"')
        self.send_header("X-Linked-Size", str(len(content)))
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def send_stored(self, digest: str) -> None:
        """The file or the asked rest of it, cut and damaged as the test wants."""
        if "Authorization" in self.headers:  # as signed addresses of storage servers
            self.answer({"error": "only one authentication is allowed"}, 400)
            return
        content = self.hub.stored[digest]
        asked = self.headers.get("Range") or ""
        self.hub.ranges.append(asked)
        first = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        part = bytearray(content[first:])
        if self.hub.damaged:
            self.hub.damaged -= 1
            part[-1] ^= 1
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(part)))
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        self.send_header("Connection", "close")
        self.send_header("ETag", '"mark-of-the-storage"')
        self.end_headers()
        self.wfile.write(part[: self.hub.cuts.pop(0)] if self.hub.cuts else part)

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.hub.stored[hashlib.sha256(content).hexdigest()] = content
        self.answer({})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.answer({"error": "Invalid username or password."}, 401)
        elif self.path == "/api/repos/create":
            self.create(json.loads(body))
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif self.path.endswith(".git/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            place = {"href": f"{self.hub.address}/store"}
            answers = [{**each, "actions": {"upload": place}} for each in objects]
            self.answer({"transfer": "basic", "objects": answers})
        elif "/preupload/" in self.path:
            names = [each["path"] for each in json.loads(body)["files"]]
            mode = {True: "lfs", False: "regular"}
            answers = [
                {"path": n, "uploadMode": mode[n.endswith("tensors")], "shouldIgnore": False}
                for n in names
            ]
            self.answer({"files": answers})
        elif "/commit/" in self.path:
            self.commit("/".join(self.path.split("/")[3:5]), body)
        else:
            self.answer({"error": "no such route"}, 404)

    def create(self, asked: dict[str, Any]) -> None:
        repository = f"{asked['organization']}/{asked['name']}"
        address = f"{self.hub.address}/{repository}"
        if asked["organization"] != OWNER:
            self.answer({"error": "You don't have the rights"}, 403)
        elif repository in self.hub.files:
            self.answer({"error": "You already created this model repo", "url": address}, 409)
        else:
            self.hub.files[repository] = {}
            self.answer({"url": address, "name": repository})

    def commit(self, repository: str, body: bytes) -> None:
        files = self.hub.files[repository]
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.stored[value["oid"]]
        commit = self.hub.commit_of(repository)
        address = f"{self.hub.address}/{repository}/commit/{commit}"
        self.answer({"success": True, "commitOid": commit, "commitUrl": address})

    def answer(
        self, value: Any, status: int = 200, error: str | None = None, commit: str | None = None
    ) -> None:
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        if error is not None:
            self.send_header("X-Error-Code", error)
        if commit is not None:
            self.send_header("X-Repo-Commit", commit)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextlib.contextmanager
def loopback_hub(cache: Path) -> Iterator[Hub]:
    """A hub that `huggingface_hub` uses in this process, with `TOKEN` and an empty cache.

    Args:
        cache: folder for downloads.
    """
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OneHub", (_Handler,), {"hub": hub}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.address = f"http://127.0.0.1:{server.server_port}"
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("huggingface_hub.constants.ENDPOINT", hub.address)
            patch.setattr(
                "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
                hub.address + "/{repo_id}/resolve/{revision}/{filename}",
            )
            patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
            patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
            # Large files take the LFS route: Xet, the default, needs a storage server.
            patch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
            for name, value in (("HF_TOKEN", TOKEN), ("HF_ENDPOINT", hub.address)):
                patch.setenv(name, value)  # for commands in processes of their own
            patch.setenv("HF_HUB_CACHE", str(cache))
            patch.delenv("HF_HUB_OFFLINE", raising=False)
            yield hub
    finally:
        server.shutdown()
        server.server_close()
