"""A Hugging Face hub on the loopback address, with faults to order, and its real clients in a
process of their own."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

OLD, NEW = "a" * 40, "b" * 40
PAGE = b"<!DOCTYPE html><html><body>Sign in to this network</body></html>"
LARGE = (
    ".pth",
    ".safetensors",
    ".parquet",
)  # kept in large-file storage: known by sha256, served from another host
Content = bytes | Path


def read(content: Content) -> bytes:
    return content.read_bytes() if isinstance(content, Path) else content


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def folder_files(folder: Path) -> dict[str, Content]:
    """A folder as a commit: path below it -> file, read when it is asked for."""
    return {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}


def parquet(rows: dict) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.table(rows), buffer)
    return buffer.getvalue()


def table_repository(train: dict, test: dict) -> dict[str, Content]:
    """A data set's files: a card and two tables."""
    return {
        "README.md": b"---\nlicense: unknown\n---\n# A card\n",
        "data/train-00000-of-00001.parquet": parquet(train),
        "data/test-00000-of-00001.parquet": parquet(test),
    }


class Hub(ThreadingHTTPServer):
    """As much of the hub as its clients ask for: repository -> commit -> path -> content; the
    newest commit is the last."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.repositories: dict[str, dict[str, dict[str, Content]]] = {}  # data sets
        self.models: dict[str, dict[str, dict[str, Content]]] = {}
        self.pages: dict[str, int] = {}  # ids in whose place a page with this status comes
        self.gated: set[str] = (
            set()
        )  # ids refused in a message that repeats what the client sent as authorization
        self.cuts: dict[
            str, list[int]
        ] = {}  # path -> for each coming download the bytes after which the connection breaks
        self.swaps: dict[str, bytes] = {}  # path -> what is sent in its place, under its hash
        self.lost: set[str] = set()  # paths that are listed, but not there
        self.blobs: dict[str, tuple[str, Content]] = {}
        self.asked: list[str] = []
        self.ranges: list[str] = []
        self.authorized: list[str] = []  # addresses that were sent a token

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def reply(
        self,
        status: int,
        body: bytes = b"{}",
        kind: str = "application/json",
        *,
        cut: int | None = None,
        **headers: str,
    ) -> None:
        self.send_response(status)
        for key, value in {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            **headers,
        }.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:cut])
        if cut is not None:
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    def send_file(self, path: str, content: Content, **headers: str) -> None:
        body = (
            self.server.swaps.get(path, read(content)) if self.command == "GET" else read(content)
        )
        cuts = self.server.cuts.get(path, [])
        cut = cuts.pop(0) if cuts and self.command == "GET" else None
        if (asked := self.headers.get("Range")) and self.command == "GET":
            self.server.ranges.append(asked)
            start, end = re.match(r"bytes=(\d+)-(\d*)", asked).groups()
            start, end = int(start), min(int(end or len(body)), len(body) - 1)
            return self.reply(
                206,
                body[start : end + 1],
                "application/octet-stream",
                cut=cut,
                Content_Range=f"bytes {start}-{end}/{len(body)}",
                **headers,
            )
        self.reply(200, body, "application/octet-stream", cut=cut, **headers)

    def answer(self) -> None:
        path = self.path.split("?")[0]
        self.server.asked.append(path)
        if self.headers.get("Authorization"):
            self.server.authorized.append(path)
        if path.startswith("/storage/"):
            return self.send_file(*self.server.blobs[path.removeprefix("/storage/")])
        found = re.fullmatch(
            r"(?:/api/(datasets|models)|/(datasets))?/([^/]+(?:/[^/]+?)?)"
            r"(?:/(revision|tree|resolve)/([^/]+)(?:/(.*))?)?",
            path,
        )
        if not found:
            return self.reply(404)
        kind, name, verb, revision, rest = (
            found[1] or found[2] or "models",
            found[3],
            found[4],
            found[5],
            found[6] or "",
        )
        commits = (self.server.repositories if kind == "datasets" else self.server.models).get(name)
        if name in self.server.gated:
            return self.reply(
                403,
                X_Error_Code="GatedRepo",
                X_Error_Message=f"Refused to {self.headers.get('Authorization')}",
            )
        if commits is None:
            return self.reply(404, X_Error_Code="RepoNotFound")
        if name in self.server.pages:
            return self.reply(self.server.pages[name], PAGE, "text/html")
        commit = list(commits)[-1] if revision in (None, "main") else revision
        if commit not in commits:
            return self.reply(404, X_Error_Code="RevisionNotFound")
        files = commits[commit]

        def listed(path: str) -> dict:
            content = read(files[path])
            size = {"size": len(content)}
            large = {"lfs": {"oid": sha256(content), "pointerSize": 130, **size}}
            found = {"type": "file", "path": path, "oid": git_sha1(content), **size}
            return found | (large if path.endswith(LARGE) else {})

        if verb in (None, "revision"):
            info = {"id": name, "sha": commit, "private": False, "disabled": False}
            info |= {"gated": False, "downloads": 0, "likes": 0, "tags": [], "siblings": []}
            return self.reply(200, json.dumps(info).encode())
        if verb == "tree":
            below = [path for path in files if path.startswith(f"{rest}/" if rest else "")]
            return self.reply(200, json.dumps([listed(path) for path in below]).encode())
        if rest not in files or rest in self.server.lost:
            return self.reply(404, b"", X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        content = read(files[rest])
        if rest.endswith(LARGE):
            digest = sha256(content)
            self.server.blobs[digest] = rest, files[rest]
            return self.reply(
                302,
                b"",
                X_Repo_Commit=commit,
                X_Linked_ETag=f'"{digest}"',
                X_Linked_Size=str(len(content)),
                ETag='"of-the-redirect"',
                Location=f"http://localhost:{self.server.server_port}/storage/{digest}"
                "?Signature=planted",
            )
        self.send_file(rest, files[rest], X_Repo_Commit=commit, ETag=f'"{git_sha1(content)}"')

    def take(self) -> None:
        """What a client that uploads asks: a repository, which files are large, and a commit."""
        path, hub = self.path.split("?")[0], self.server
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", path)
        large = path.endswith(".git/info/lfs/objects/batch")
        if not (found or large or path in ("/api/repos/create", "/api/validate-yaml")):
            return self.reply(404)
        hub.asked.append(path)
        sent = self.sent()
        if path.endswith("validate-yaml"):
            return self.reply(200)
        if large:
            objects = [
                o | {"actions": {"upload": {"href": f"{hub.url}/storage/{o['oid']}"}}}
                for o in json.loads(sent)["objects"]
            ]
            return self.reply(200, json.dumps({"objects": objects, "transfer": "basic"}).encode())
        if path.endswith("create"):
            asked = json.loads(sent)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            if name in hub.gated:
                return self.reply(403)
            status = 409 if name in hub.models else 200
            hub.models.setdefault(name, {OLD: {".gitattributes": b""}})
            return self.reply(status, json.dumps({"url": f"{hub.url}/{name}"}).encode())
        if found[2] == "preupload":
            files = [
                {
                    "path": f["path"],
                    "uploadMode": "lfs" if f["path"].endswith(LARGE) else "regular",
                    "shouldIgnore": False,
                }
                for f in json.loads(sent)["files"]
            ]
            return self.reply(200, json.dumps({"files": files}).encode())
        commits = hub.models[found[1]]
        files = dict(commits[list(commits)[-1]])
        for entry in map(json.loads, sent.splitlines()):
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = hub.blobs[value["oid"]][1]
        commit = f"{len(commits):040x}"
        commits[commit] = files
        url = f"{hub.url}/{found[1]}/commit/{commit}"
        self.reply(200, json.dumps({"commitUrl": url, "commitOid": commit}).encode())

    def sent(self) -> bytes:
        if length := self.headers.get("Content-Length"):
            return self.rfile.read(int(length))
        parts = []  # in chunks, each after its length
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def keep(self) -> None:
        digest = self.path.removeprefix("/storage/")
        content = self.sent()
        assert sha256(content) == digest
        self.server.blobs[digest] = digest, content
        self.reply(200)

    do_GET = do_HEAD = answer
    do_POST, do_PUT = take, keep


@contextmanager
def serving() -> Iterator[Hub]:
    with Hub() as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        yield hub
        hub.shutdown()


def closed_endpoint() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{s.getsockname()[1]}"


# The client's endpoint and mode are settled at import, hence a process of its own.
DRIVER = """
import contextlib, importlib, io, json, os, pathlib, sys, time
for line in sys.stdin:
    asked, start = json.loads(line), time.perf_counter()
    if asked["lock"]:
        os.environ["MERGELIB_HUB_LOCK"] = asked["lock"]
    for module, file in asked["registries"].items():
        importlib.import_module(module).REGISTRY = pathlib.Path(file)
    module, _, name = asked["call"].rpartition(".")
    out, err = io.StringIO(), io.StringIO()
    answer = {}
    try:
        function = getattr(importlib.import_module(module), name)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            value = function(*asked["args"], **asked["kwargs"])
        if name == "hub_splits":
            names, train, test = value
            value = {"names": names, "train": train.inputs, "labels": train.labels.tolist(), \
"test": test.inputs}
        answer = {"value": value}
        json.dumps(value, default=str)
    except Exception as error:
        answer = {"error": type(error).__name__, "message": str(error)}
    answer |= {"out": out.getvalue(), "err": err.getvalue(), "seconds": time.perf_counter() - start}
    print("ANSWER" + json.dumps(answer, default=str), flush=True)
"""


class Client:
    """Calls of the library in a process that knows only ``endpoint``; its caches and its store lie
    in ``folder``."""

    def __init__(
        self,
        folder: Path,
        endpoint: str,
        registries: dict[str, Path] | None = None,
        **environment: str,
    ):
        kept = {
            k: v
            for k, v in os.environ.items()
            if "proxy" not in k.lower() and not k.startswith(("HF_", "HUGGING", "MERGELIB_"))
        }
        self.registries = {module: str(file) for module, file in (registries or {}).items()}
        self.process = subprocess.Popen(
            [sys.executable, "-c", DRIVER],
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=Path(__file__).parents[1],
            env={
                **kept,
                "NO_PROXY": "*",
                "HF_ENDPOINT": endpoint,
                "HF_HOME": str(folder / "home"),
                "HF_HUB_DISABLE_TELEMETRY": "1",
                "MERGELIB_STORE": str(folder / "store"),
                **environment,
            },
        )

    def __call__(self, call: str, *args: Any, lock: Path | None = None, **kwargs: Any) -> dict:
        asked = {
            "call": call,
            "args": args,
            "kwargs": kwargs,
            "lock": str(lock or ""),
            "registries": self.registries,
        }
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("ANSWER"):
                return json.loads(line.removeprefix("ANSWER"))
        raise AssertionError("the client process died")

    def close(self) -> None:
        self.process.stdin.close()
        self.process.kill()  # it holds nothing that matters, and a whole torch takes seconds to go
        self.process.wait(60)
        self.process.stdout.close()
