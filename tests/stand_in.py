"""A stand-in for the Hugging Face hub: the few endpoints of it that its library asks."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parent.parent


def sha(text: str) -> str:
    """The commit of a branch, or the hash of a file."""
    return hashlib.sha1(text.encode()).hexdigest()


class Hub(ThreadingHTTPServer):
    """Repositories in memory: name -> branch -> file -> content; names may begin with datasets/.

    `private` names those that nobody may see, `truncated` files that are cut while they are sent;
    `asked` has what was asked for.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.private: set[str] = set()
        self.truncated: set[str] = set()
        self.asked: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def files(self, name: str, revision: str) -> dict[str, bytes] | None:
        """Of a branch, or of the commit that it stands at."""
        branches = self.repositories[name]
        found = [files for branch, files in branches.items() if revision in (branch, sha(branch))]
        return found[0] if found else None


class Answer(BaseHTTPRequestHandler):
    """An answer of the hub."""

    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def send(self, code: int, content: bytes | Any = b"", **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        headers.setdefault("Content_Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
            self.close_connection = len(data) < int(headers["Content_Length"])

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(f"{self.command} {path}")
        if path == "/":
            return self.send(200)
        patterns = (r"/api/(?:models/)?((?:datasets/)?[^/]+/[^/]+)(?:/(revision|tree)/([^/]+).*)?",
                    r"/((?:datasets/)?[^/]+/[^/]+)/(resolve)/([^/]+)/(.+)")  # fmt: skip
        found = re.fullmatch(patterns["/resolve/" in path], path)
        assert found, path
        name, what, revision, *file = found.groups()
        if name not in self.server.repositories:  # which may as well be a private one
            return self.send(401, {"error": "Invalid credentials"}, X_Error_Code="RepoNotFound")
        if name in self.server.private:
            return self.send(403, {"error": "Forbidden"}, X_Error_Code="GatedRepo")
        revision = revision or "main"
        files = self.server.files(name, revision)
        if files is None:
            return self.send(404, {"error": "Not found"}, X_Error_Code="RevisionNotFound")
        if file:
            commit = revision if len(revision) == 40 else sha(revision)
            return self.send_file(commit, file[0], files)
        if what == "tree":
            return self.send(200, [self.entry(*pair) for pair in files.items()])
        return self.send(200, {"id": name, "sha": sha(revision), "siblings": []})

    def entry(self, path: str, content: bytes) -> dict[str, Any]:
        return {"type": "file", "path": path, "size": len(content), "oid": sha(path)}

    def send_file(self, commit: str, name: str, files: dict[str, bytes]) -> None:
        if name not in files:
            about = {"X_Error_Code": "EntryNotFound", "X_Repo_Commit": commit}
            return self.send(404, {"error": "Not found"}, **about)
        content = files[name]
        sent = content[: len(content) // 2] if name in self.server.truncated else content
        headers = {"X_Repo_Commit": commit, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
        self.send(200, sent, Content_Length=str(len(content)), **headers)

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(f"{self.command} {path}")
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if "Authorization" not in self.headers:
            return self.send(401, {"error": "Invalid username or password."})
        if path == "/api/repos/create":
            asked = json.loads(data)
            name = f"{asked['organization']}/{asked['name']}"
            self.server.repositories.setdefault(name, {"main": {}})
            if asked.get("private") or asked.get("visibility") == "private":
                self.server.private.add(name)
            return self.send(200, {"url": f"{self.server.address}/{name}"})
        if path == "/api/validate-yaml":
            return self.send(200, {"errors": [], "warnings": []})
        found = re.fullmatch(r"/api/models/(.+?/.+?)/(branch|preupload|commit)/(.+)", path)
        assert found, path
        name, what, revision = found.groups()
        if what == "branch":
            self.server.repositories[name].setdefault(revision, {})
            return self.send(200, {})
        if what == "preupload":
            files = [file["path"] for file in json.loads(data)["files"]]
            mode = {"uploadMode": "regular", "shouldIgnore": False}
            return self.send(200, {"files": [{"path": file, **mode} for file in files]})
        for line in map(json.loads, data.splitlines()):
            if line["key"] == "file":
                content = base64.b64decode(line["value"]["content"])
                self.server.repositories[name][revision][line["value"]["path"]] = content
        url = f"{self.server.address}/{name}/commit/{sha(revision)}"
        return self.send(200, {"commitUrl": url, "commitOid": sha(revision)})


@contextmanager
def stand_in() -> Iterator[Hub]:
    """The hub, for as long as it is needed."""
    with Hub() as hub:
        Thread(target=hub.serve_forever, daemon=True).start()
        yield hub
        hub.shutdown()


def run(folder: Path, address: str, *args: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Runs Python in a process of its own, as the library reads its settings when it is imported.

    Args:
        folder: where it works, and keeps what it downloads.
        address: of the hub.
        args: of Python.
        more: of its environment.
    """
    own = {"HF_HOME": str(folder / "home"), "HF_ENDPOINT": address, "HF_HUB_DISABLE_XET": "1"}
    own |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    clean = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    return subprocess.run(
        [sys.executable, *args], env={**clean, **own, **more}, cwd=folder, capture_output=True,
        text=True, timeout=120,
    )  # fmt: skip
