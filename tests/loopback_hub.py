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
        commits = dict[str, dict[str, dict[str, Content]]]
        self.repositories: commits = {}  # data sets
        self.models: commits = {}
        self.pages: dict[str, int] = {}  # ids in whose place a page with this status comes
        # ids refused in a message that repeats what the client sent as authorization
        self.gated: set[str] = set()
        # path -> for each coming download the bytes after which the connection breaks
        self.cuts: dict[str, list[int]] = {}
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
        for key, value in {"Content_Type": kind, "Content_Length": len(body), **headers}.items():
            self.send_header(key.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:cut])
        if cut is not None:
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    def say(self, value: Any, status: int = 200) -> None:
        self.reply(status, json.dumps(value).encode())

    def send_file(self, path: str, content: Content, **headers: str) -> None:
        hub, body, status, cut = self.server, read(content), 200, None
        if self.command == "GET":
            body = hub.swaps.get(path, body)
            cut = hub.cuts[path].pop(0) if hub.cuts.get(path) else None
            if asked := self.headers.get("Range"):
                hub.ranges.append(asked)
                start, end = re.match(r"bytes=(\d+)-(\d*)", asked).groups()
                start, end = int(start), min(int(end or len(body)), len(body) - 1)
                headers["Content_Range"] = f"bytes {start}-{end}/{len(body)}"
                status, body = 206, body[start : end + 1]
        self.reply(status, body, "application/octet-stream", cut=cut, **headers)

    def answer(self) -> None:
        hub, path = self.server, self.path.split("?")[0]
        hub.asked.append(path)
        token = self.headers.get("Authorization")
        if token:
            hub.authorized.append(path)
        if path.startswith("/storage/"):
            return self.send_file(*hub.blobs[path.removeprefix("/storage/")])
        found = re.fullmatch(
            r"(?:/api/(?:datasets|models)|/datasets)?/([^/]+(?:/[^/]+?)?)"
            r"(?:/(revision|tree|resolve)/([^/]+)(?:/(.*))?)?",
            path,
        )
        if not found:
            return self.reply(404)
        name, verb, revision, rest = found.groups()
        is_data = path.startswith(("/api/datasets/", "/datasets/"))
        commits = (hub.repositories if is_data else hub.models).get(name)
        if name in hub.gated:
            said = f"Refused to {token}"
            return self.reply(403, X_Error_Code="GatedRepo", X_Error_Message=said)
        if commits is None:
            return self.reply(404, X_Error_Code="RepoNotFound")
        if name in hub.pages:
            return self.reply(hub.pages[name], PAGE, "text/html")
        commit = list(commits)[-1] if revision in (None, "main") else revision
        if commit not in commits:
            return self.reply(404, X_Error_Code="RevisionNotFound")
        files = commits[commit]
        if verb in (None, "revision"):
            info = {"id": name, "sha": commit, "private": False, "disabled": False}
            info |= {"gated": False, "downloads": 0, "likes": 0, "tags": [], "siblings": []}
            return self.say(info)
        if verb == "tree":
            below = f"{rest}/" if rest else ""
            return self.say([listed(p, read(files[p])) for p in files if p.startswith(below)])
        if rest not in files or rest in hub.lost:
            return self.reply(404, b"", X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        content = read(files[rest])
        if not rest.endswith(LARGE):
            tag = f'"{git_sha1(content)}"'
            return self.send_file(rest, files[rest], X_Repo_Commit=commit, ETag=tag)
        digest = sha256(content)
        hub.blobs[digest] = rest, files[rest]
        place = f"http://localhost:{hub.server_port}/storage/{digest}?Signature=planted"
        linked = {"X_Linked_ETag": f'"{digest}"', "X_Linked_Size": len(content)}
        linked |= {"ETag": '"of-the-redirect"', "Location": place}
        self.reply(302, b"", X_Repo_Commit=commit, **linked)

    def take(self) -> None:
        """What a client that uploads asks: a repository, which files are large, and a commit."""
        path, hub = self.path.split("?")[0], self.server
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", path)
        large = path.endswith(".git/info/lfs/objects/batch")
        if not (found or large or path in ("/api/repos/create", "/api/validate-yaml")):
            return self.reply(404)
        hub.asked.append(path)
        sent = [json.loads(line) for line in self.sent().splitlines()]
        if path.endswith("validate-yaml"):
            return self.reply(200)
        if large:
            objects = [
                o | {"actions": {"upload": {"href": f"{hub.url}/storage/{o['oid']}"}}}
                for o in sent[0]["objects"]
            ]
            return self.say({"objects": objects, "transfer": "basic"})
        if path.endswith("create"):
            name = f"{sent[0].get('organization') or 'me'}/{sent[0]['name']}"
            if name in hub.gated:
                return self.reply(403)
            status = 409 if name in hub.models else 200
            hub.models.setdefault(name, {OLD: {".gitattributes": b""}})
            return self.say({"url": f"{hub.url}/{name}"}, status)
        if found[2] == "preupload":
            names = [file["path"] for file in sent[0]["files"]]
            modes = {n: "lfs" if n.endswith(LARGE) else "regular" for n in names}
            files = [{"path": n, "uploadMode": m, "shouldIgnore": False} for n, m in modes.items()]
            return self.say({"files": files})
        commits = hub.models[found[1]]
        files = dict(commits[list(commits)[-1]])
        for entry in sent:
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = hub.blobs[value["oid"]][1]
        commit = f"{len(commits):040x}"
        commits[commit] = files
        self.say({"commitUrl": f"{hub.url}/{found[1]}/commit/{commit}", "commitOid": commit})

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
        digest, content = self.path.removeprefix("/storage/"), self.sent()
        assert sha256(content) == digest
        self.server.blobs[digest] = digest, content
        self.reply(200)

    do_GET = do_HEAD = answer
    do_POST, do_PUT = take, keep


def listed(path: str, content: bytes) -> dict[str, Any]:
    """A file as the hub lists it."""
    size = {"size": len(content)}
    found = {"type": "file", "path": path, "oid": git_sha1(content), **size}
    large = {"lfs": {"oid": sha256(content), "pointerSize": 130, **size}}
    return found | (large if path.endswith(LARGE) else {})


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
        private = ("HF_", "HUGGING", "MERGELIB_")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(private)}
        kept = {k: v for k, v in kept.items() if "proxy" not in k.lower()}
        own = {
            "NO_PROXY": "*",
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(folder / "home"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "MERGELIB_STORE": str(folder / "store"),
        }
        self.registries = {module: str(file) for module, file in (registries or {}).items()}
        self.process = subprocess.Popen(
            [sys.executable, "-c", DRIVER],
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=Path(__file__).parents[1],
            env=kept | own | environment,
        )

    def __call__(self, call: str, *args: Any, lock: Path | None = None, **kwargs: Any) -> dict:
        asked = {"call": call, "args": args, "kwargs": kwargs}
        asked |= {"lock": str(lock or ""), "registries": self.registries}
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("ANSWER"):
                return json.loads(line.removeprefix("ANSWER"))
        raise AssertionError("the client process died")

    def run(self, words: str, lock: Path | None = None) -> dict:
        """What ``mergelib`` returns and says to these words."""
        return self("mergelib.run.cli.main", words.split(), lock=lock)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.kill()  # it holds nothing that matters, and a whole torch takes seconds to go
        self.process.wait(60)
        self.process.stdout.close()
