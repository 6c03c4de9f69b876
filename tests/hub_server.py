"""A local server that answers as the Hugging Face hub does: downloads, listings, and commits with their large files.

    with hub_server(tmp_path / "cache") as hub:     # or the fixture `hub` of conftest.py
        hub.files["owner/name"] = {"config.json": b"..."}

Each repository has one branch, main; until something is pushed its commit is `REVISION`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import unquote

import huggingface_hub.hf_api
import yaml

REVISION = "0123456789" * 4
LARGE = (".safetensors", ".pt", ".bin")
"""Suffixes of what lies in the large storage, by its sha256; everything else lies in git."""

TOKEN = "hf_of_the_tests"


def git_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def etag(name: str, content: bytes) -> str:
    """What the hub calls a file: weights lie in its large storage, by their sha256; texts in git."""
    return hashlib.sha256(content).hexdigest() if name.endswith(LARGE) else git_id(content)


def entry(name: str, content: bytes) -> dict[str, object]:
    """A file in the hub's listing of a repository."""
    row: dict[str, object] = {"type": "file", "path": name, "size": len(content), "oid": git_id(content)}
    if etag(name, content) != git_id(content):
        row["lfs"] = {"oid": etag(name, content), "size": len(content), "pointerSize": 130}
    return row


@dataclass
class Hub:
    """Repositories, and what was asked for."""

    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Of each repository the files at the head of main."""
    heads: dict[str, str] = field(default_factory=dict)
    """Commits that were pushed last."""
    past: dict[tuple[str, str], dict[str, bytes]] = field(default_factory=dict)
    """Files of (repository, commit) that were pushed over."""
    stored: dict[str, bytes] = field(default_factory=dict)
    """The large storage: contents by sha256."""
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    """(method, path, range) of every request."""
    cut: set[str] = field(default_factory=set)
    """Files of which the first answer breaks off in the middle."""
    url: str = ""

    def tree(self, repo: str, revision: str) -> dict[str, bytes] | None:
        """The files of a repository at a commit or at main."""
        if revision in ("main", self.heads.get(repo, REVISION)):
            return self.files.get(repo)
        return self.past.get((repo, revision))

    def commit(self, repo: str, operations: list[dict[str, Any]]) -> str:
        """Apply the lines of a commit; its id."""
        files = dict(self.files[repo])
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.stored[value["oid"]]
            elif operation["key"] == "deletedFile":
                files.pop(value["path"])
        self.past[repo, self.heads.get(repo, REVISION)] = self.files[repo]
        listing = json.dumps([self.heads.get(repo), sorted((name, git_id(content)) for name, content in files.items())])
        self.files[repo], self.heads[repo] = files, hashlib.sha1(listing.encode()).hexdigest()
        return self.heads[repo]


def invalid_metadata(card: str) -> list[str]:
    """What the hub has against the metadata of a card: the rules that are known of it and that cards were refused for."""
    block = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    values = yaml.safe_load(block[1]) if block else {}
    wrong = [f'"{key}" must not be null' for key, value in values.items() if value is None]
    for key in ("datasets", "tags"):
        if not all(isinstance(one, str) for one in values.get(key, [])):
            wrong.append(f'"{key}" must be a list of strings')
    bases = values.get("base_model", [])
    for base in [bases] if isinstance(bases, str) else bases:
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", base):
            wrong.append(f'"base_model" with value {base!r} is not valid')
    if values.get("license") == "other" and "license_name" not in values:
        wrong.append('"license_name" is required where the license is "other"')
    return wrong


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            hub.asked.append((self.command, self.path, self.headers.get("Range")))
            about = re.fullmatch(r"/api/models/([^/]+/[^/]+?)(?:/(tree|revision)/([^/]+)(?:/(.*))?)?", unquote(path))
            file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", unquote(path))
            if path == "/api/whoami-v2":
                self.json({"type": "user", "name": "tester", "orgs": []})
                return
            repo, revision = (about[1], about[3] or "main") if about else (file[1], file[2]) if file else ("", "")
            files = hub.tree(repo, revision)
            if files is None:
                self.answer(404, b"", {"X-Error-Code": "RevisionNotFound" if repo in hub.files else "RepoNotFound"})
            elif about and about[2] == "tree":
                below = f"{about[4]}/" if about[4] else ""
                rows = [entry(name, content) for name, content in files.items() if name.startswith(below)]
                if below and not rows:
                    self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
                else:
                    self.json(rows)
            elif about:
                commit = revision if revision != "main" else hub.heads.get(repo, REVISION)
                self.json({"id": repo, "sha": commit, "siblings": [{"rfilename": name} for name in files], "tags": []})
            elif file and file[3] in files:
                commit = revision if revision != "main" else hub.heads.get(repo, REVISION)
                self.file(file[3], files[file[3]], commit)
            else:
                self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})

        def file(self, name: str, content: bytes, commit: str) -> None:
            headers = {"ETag": f'"{etag(name, content)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
            start = int(re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "bytes=0-"))[1])  # type: ignore[index]
            if start:
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            broken = self.command == "GET" and name in hub.cut
            self.answer(206 if start else 200, content[start:], headers, broken=broken)
            hub.cut -= {name} if broken else set()

        def do_PUT(self) -> None:
            """A large file, at the address that the batch gave for it."""
            hub.asked.append((self.command, self.path, None))
            content = self.body()
            oid = self.path.rpartition("/")[2]
            if hashlib.sha256(content).hexdigest() != oid:
                self.answer(400, b"not the file of this hash", {})
                return
            hub.stored[oid] = content
            self.answer(200, b"", {})

        def do_POST(self) -> None:
            path = self.path.partition("?")[0]
            hub.asked.append((self.command, self.path, None))
            body = self.body()
            push = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", path)
            batch = re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path)
            if path == "/api/validate-yaml":
                wrong = invalid_metadata(json.loads(body)["content"])
                told = {"errors": [{"message": message} for message in wrong], "warnings": []}
                self.json(told, status=400 if wrong else 200)
            elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self.answer(401, b'{"error": "Invalid username or password."}', {})
            elif path == "/api/repos/create":
                given = json.loads(body)
                repo = f"{given.get('organization') or 'tester'}/{given['name']}"
                known = repo in hub.files
                hub.files.setdefault(repo, {})
                self.json({"url": f"{hub.url}/{repo}", "name": repo, "id": repo}, status=409 if known else 200)
            elif batch:
                self.json({"transfer": "basic", "objects": [self.upload(one) for one in json.loads(body)["objects"]]})
            elif push and push[1] in hub.files and push[2] == "preupload":
                modes = [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                        "shouldIgnore": False,
                        "oid": None,
                    }
                    for file in json.loads(body)["files"]
                ]
                self.json({"files": modes})
            elif push and push[1] in hub.files:
                commit = hub.commit(push[1], [json.loads(line) for line in body.splitlines()])
                where = f"{hub.url}/{push[1]}/commit/{commit}"
                self.json({"success": True, "commitOid": commit, "commitUrl": where, "hookOutput": ""})
            else:
                self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})

        def upload(self, one: dict[str, Any]) -> dict[str, Any]:
            known = one["oid"] in hub.stored
            return one | ({} if known else {"actions": {"upload": {"href": f"{hub.url}/store/{one['oid']}"}}})

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            content = b""
            while size := int(self.rfile.readline(), 16):
                content += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return content

        def json(self, value: object, *, status: int = 200) -> None:
            self.answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def answer(self, status: int, content: bytes, headers: dict[str, str], *, broken: bool = False) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content[: len(content) // 2] if broken else content)
            self.close_connection = broken

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@contextmanager
def hub_server(cache: Path) -> Iterator[Hub]:
    """A hub, which `huggingface_hub` in this process takes for the real one, with a cache of its own meanwhile.

    For another process: ``HF_ENDPOINT=hub.url HF_HUB_CACHE=cache HF_TOKEN=TOKEN HF_HUB_DISABLE_XET=1``.
    """
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    constants = {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_DISABLE_XET": True,
    }
    try:
        with (
            patch.multiple("huggingface_hub.constants", **constants),
            patch.dict(os.environ, HF_TOKEN=TOKEN),
            # Both are made once and keep the address that they were made with.
            patch.object(huggingface_hub.hf_api.api, "endpoint", hub.url),
            patch("transformers.utils.hub._hf_api", huggingface_hub.HfApi(endpoint=hub.url)),
        ):
            yield hub
    finally:
        server.shutdown()
        server.server_close()
