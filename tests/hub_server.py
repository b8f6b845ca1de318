"""A small Hugging Face Hub on 127.0.0.1, for the real `huggingface_hub` client.

It keeps repositories in memory and speaks the part of the Hub's HTTP API that publishing and loading a model need:
repositories, branches, tags, commits, Git LFS (basic transfer), file listings and downloads. A Space is a repository
whose name begins with `spaces/`.

`HubServer.attach` points the client of this process at it, `HubServer.environment` that of a process to be started.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import threading
import time
import types
import urllib.parse
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import yaml

LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".png")


@dataclass
class Fault:
    """Something that goes wrong with requests whose "METHOD /path" matches `pattern`.

    Attributes:
        status: HTTP status of the answer; 0 cuts the connection in the middle of the request instead.
        times: requests it happens to before all is well again; `None` for all of them.
        headers: of the answer, such as Retry-After.
        after: do what was asked first, so that only the answer goes wrong.
    """

    pattern: str
    status: int
    times: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    after: bool = False


@dataclass(frozen=True)
class Commit:
    """A state of a repository."""

    oid: str
    message: str
    files: dict[str, bytes]


@dataclass
class Repository:
    """Commits by branch or tag; a branch's newest commit is its last."""

    private: bool = False
    branches: dict[str, list[Commit]] = field(default_factory=dict)
    tags: dict[str, Commit] = field(default_factory=dict)

    def at(self, revision: str) -> Commit | None:
        """Newest commit of a branch, a tagged one, or one by its id."""
        if revision in self.branches:
            return self.branches[revision][-1]
        if revision in self.tags:
            return self.tags[revision]
        return next((c for commits in self.branches.values() for c in commits if c.oid == revision), None)

    def add(self, branch: str, message: str, files: dict[str, bytes]) -> Commit:
        """Commit a new state of `branch`."""
        commits = self.branches.setdefault(branch, [])
        state = "".join(f"{name}{hashlib.sha1(data).hexdigest()}" for name, data in sorted(files.items()))
        parent = commits[-1].oid if commits else ""
        oid = hashlib.sha1(f"{parent}{branch}{message}{state}".encode()).hexdigest()
        commits.append(Commit(oid, message, dict(files)))
        return commits[-1]


class HubServer:
    """Serve as a context manager; look at `repositories` and `requests`, and set `failures`, from the test.

    Attributes:
        tokens: user name by token; whoever has one may write anywhere, other tokens are refused.
        failures: faults, or pairs of a pattern of "METHOD /path" and the HTTP status that such requests get.
        requests: "METHOD /path" of everything asked so far.
        collections: by slug, as the API gives them.
        role: of the tokens: write or read.
        races: by repository, files that somebody else commits just before the next commit arrives.
        slept: seconds that an attached client would have waited before repeating a request.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.collections: dict[str, dict] = {}
        self.role = "write"
        self.tokens = {"hf_test": "tester"}
        self.failures: list[Fault | tuple[str, int]] = []
        self.requests: list[str] = []
        self.races: dict[str, dict[str, bytes]] = {}
        self.slept: list[float] = []
        self.lock = threading.RLock()
        server = self

        class Handler(_Handler):
            hub = server

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def endpoint(self) -> str:
        """What `HF_ENDPOINT` must be."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def environment(self, home: Path, token: str | None = "hf_test") -> dict[str, str]:
        """Variables that point a process at this server, with caches and settings in `home`; add to `os.environ`."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_OFFLINE": "0",
            "HF_TOKEN": token or "",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    def attach(self, monkeypatch, home: Path, token: str | None = "hf_test") -> None:
        """Make this server the Hub of the client in this process, whose retries do not wait."""
        settings = {
            "ENDPOINT": self.endpoint,
            "HUGGINGFACE_CO_URL_TEMPLATE": f"{self.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_TOKEN_PATH": str(home / "token"),
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_DISABLE_TELEMETRY": True,
            "HF_HUB_OFFLINE": False,
        }
        for name, value in settings.items():
            monkeypatch.setattr(huggingface_hub.constants, name, value)
        for name, value in self.environment(home, token).items():
            monkeypatch.setenv(name, value)
        # Only the client's clock: whatever else sleeps in this process does so.
        clock = types.SimpleNamespace(time=time.time, sleep=self.slept.append)
        monkeypatch.setattr(huggingface_hub.utils._http, "time", clock)
        huggingface_hub.close_session()

    def create(self, repo_id: str, files: dict[str, bytes] | None = None, private: bool = False) -> Repository:
        """A repository with a first commit, as the Hub makes it."""
        repository = self.repositories[repo_id] = Repository(private)
        repository.add("main", "initial commit", {".gitattributes": b"*.safetensors filter=lfs\n", **(files or {})})
        return repository

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """What a repository holds."""
        return self.repositories[repo_id].at(revision).files

    def writes(self) -> list[str]:
        """Requests so far that could have changed something."""
        return [request for request in self.requests if not request.startswith(("GET ", "HEAD "))]


def _is_lfs(path: str) -> bool:
    return path.endswith(LFS_SUFFIXES)


def _blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class _Stop(Exception):
    """An answer has been given."""


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def do_GET(self) -> None:
        self._handle()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    # Answers.

    def _send(self, status: int, content: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(content)), **(headers or {})}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, value, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode())

    def _fail(self, status: int, message: str, code: str | None = None, headers: dict | None = None) -> None:
        headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **(headers or {})}
        self._send(status, json.dumps({"error": message}).encode(), headers)
        raise _Stop

    # Questions.

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _user(self, needed: bool = False) -> str | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ").strip()
        user = self.hub.tokens.get(token)
        if token and user is None:
            self._fail(401, "Invalid credentials in Authorization header")
        if needed and user is None:
            self._fail(401, "Invalid username or password.")
        return user

    def _repository(self, repo_id: str) -> Repository:
        user = self._user()
        repository = self.hub.repositories.get(repo_id)
        if repository is None or (repository.private and user is None):
            # The Hub does not tell strangers which private repositories exist.
            status = 404 if user else 401
            message = "Repository not found" if user else "Invalid username or password."
            self._fail(status, message, "RepoNotFound")
        return repository

    def _commit(self, repository: Repository, revision: str) -> Commit:
        commit = repository.at(revision)
        if commit is None:
            self._fail(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def _handle(self) -> None:
        path = urllib.parse.urlsplit(self.path).path
        request = f"{self.command} {urllib.parse.unquote(path)}"
        with self.hub.lock:
            self.hub.requests.append(request)
            fault = self._fault(request)
        if fault and not fault.status and not fault.after:
            self.rfile.read(int(self.headers.get("Content-Length", 0)) // 2)
            self._cut()
            return
        body = self._body()
        with self.hub.lock:
            try:
                if fault and fault.after:
                    self._send = lambda *_: None  # what was asked is done, but its answer is not sent
                elif fault:
                    self._fail(fault.status, f"made to fail with {fault.status}", headers=fault.headers)
                # Matched before unquoting: a branch like `a/b` arrives as `a%2Fb`.
                for method, pattern, answer in _ROUTES:
                    match = re.fullmatch(pattern, path)
                    if match and self.command in method.split():
                        answer(self, body, *(urllib.parse.unquote(part or "") for part in match.groups()))
                        return
                self._fail(404, f"no such address: {request}", "EntryNotFound")
            except _Stop:
                pass
            finally:
                if fault and fault.after:
                    del self._send
                    if fault.status:
                        self._send(fault.status, b"{}", fault.headers)
                    else:
                        self._cut()

    def _fault(self, request: str) -> Fault | None:
        for entry in self.hub.failures:
            fault = entry if isinstance(entry, Fault) else Fault(*entry)
            if fault.times != 0 and re.search(fault.pattern, request):
                if fault.times is not None:
                    fault.times -= 1
                return fault
        return None

    def _cut(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def whoami(self, _) -> None:
        auth = {"type": "access_token", "accessToken": {"displayName": "a token", "role": self.hub.role}}
        self._json({"type": "user", "name": self._user(needed=True), "orgs": [{"name": "org"}], "auth": auth})

    def create_collection(self, body: bytes) -> None:
        self._user(needed=True)
        asked = json.loads(body)
        slug = f"{asked['namespace']}/{asked['title'].lower().replace(' ', '-')}-{'0' * 24}"
        if slug in self.hub.collections:
            self._json({"error": "Collection already exists", "slug": slug}, 409)
            return
        owner = {"type": "org", "name": asked["namespace"], "fullname": asked["namespace"], "isHf": False}
        about = {
            "title": asked["title"],
            "private": bool(asked.get("private")),
            "lastUpdated": "2026-01-01T00:00:00.000Z",
        }
        made = {"slug": slug, "owner": owner, "items": [], "theme": "orange", "position": 0, "upvotes": 0, **about}
        self.hub.collections[slug] = made
        self._json(made)

    def collection(self, _, slug: str) -> None:
        self._json(self.hub.collections[slug])

    def add_collection_item(self, body: bytes, slug: str) -> None:
        self._user(needed=True)
        asked, made = json.loads(body)["item"], self.hub.collections[slug]
        if asked["id"] in [item["id"] for item in made["items"]]:
            self._fail(409, "the item is there already")
        made["items"].append({"_id": "1" * 24, "position": 0, **asked})
        self._json(made)

    def validate_yaml(self, body: bytes) -> None:
        content = json.loads(body)["content"]
        match = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
        try:
            metadata = yaml.safe_load(match.group(1)) if match else None
        except yaml.YAMLError as error:
            self._json({"errors": [{"message": str(error)}], "warnings": []}, 400)
            return
        warnings = [] if metadata else [{"message": "empty or missing yaml metadata in repo card"}]
        self._json({"errors": [], "warnings": warnings})

    def create_repository(self, body: bytes) -> None:
        user, asked = self._user(needed=True), json.loads(body)
        repo_id = f"{asked.get('organization') or user}/{asked['name']}"
        repo_id = f"spaces/{repo_id}" if asked.get("type") == "space" else repo_id
        url = f"{self.hub.endpoint}/{repo_id}"
        if repo_id in self.hub.repositories:
            self._json({"error": "You already created this model repo", "url": url}, 409)
            return
        self.hub.create(repo_id, private=asked.get("visibility") == "private" or bool(asked.get("private")))
        self._json({"url": url, "name": repo_id})

    def info(self, _, repo_id: str, revision: str = "") -> None:
        repository = self._repository(repo_id)
        commit = self._commit(repository, revision or "main")
        self._json(
            {
                "_id": hashlib.sha1(repo_id.encode()).hexdigest()[:24],
                "id": repo_id,
                "modelId": repo_id,
                "author": repo_id.split("/")[0],
                "sha": commit.oid,
                "private": repository.private,
                "gated": False,
                "disabled": False,
                "tags": [],
                "downloads": 0,
                "likes": 0,
                "siblings": [{"rfilename": name} for name in sorted(commit.files)],
            }
        )

    def refs(self, _, repo_id: str) -> None:
        repository = self._repository(repo_id)

        def listed(kind: str, commits: dict[str, Commit]):
            return [{"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": c.oid} for n, c in commits.items()]

        branches = {name: c for name, c in repository.branches.items() if not name.startswith("refs/pr/")}
        heads = {name: commits[-1] for name, commits in branches.items()}
        self._json({"branches": listed("heads", heads), "tags": listed("tags", repository.tags), "converts": []})

    def discussions(self, _, repo_id: str) -> None:
        pulls = [name for name in self._repository(repo_id).branches if name.startswith("refs/pr/")]
        about = {"author": {"name": "tester"}, "createdAt": "2026-01-01T00:00:00.000Z", "status": "open"}
        about |= {"repo": {"name": repo_id, "type": "model"}, "isPullRequest": True}
        found = [{**about, "num": int(name.rpartition("/")[2]), "title": "a pull request"} for name in pulls]
        self._json({"discussions": found, "count": len(found), "start": 0})

    def create_branch(self, body: bytes, repo_id: str, branch: str) -> None:
        self._user(needed=True)
        repository = self._repository(repo_id)
        if branch in repository.branches:
            self._fail(409, f"Reference already exists: {branch}")
        start = json.loads(body or b"{}").get("startingPoint") or "main"
        repository.branches[branch] = [self._commit(repository, start)]
        self._json({})

    def create_tag(self, body: bytes, repo_id: str, revision: str) -> None:
        self._user(needed=True)
        repository, name = self._repository(repo_id), json.loads(body)["tag"]
        if name in repository.tags:
            self._fail(409, f"Tag reference exists already: {name}")
        repository.tags[name] = self._commit(repository, revision)
        self._json({})

    def preupload(self, body: bytes, repo_id: str, revision: str) -> None:
        self._user(needed=True)
        files, answers = self._commit(self._repository(repo_id), revision).files, []
        for asked in json.loads(body)["files"]:
            name = asked["path"]
            answer = {"path": name, "uploadMode": "lfs" if _is_lfs(name) else "regular", "shouldIgnore": False}
            if name in files:
                data = files[name]
                answer["oid"] = hashlib.sha256(data).hexdigest() if _is_lfs(name) else _blob_id(data)
            answers.append(answer)
        self._json({"files": answers})

    def lfs_batch(self, body: bytes, repo_id: str) -> None:
        self._user(needed=True)
        self._repository(repo_id)
        objects = []
        for asked in json.loads(body)["objects"]:
            answer = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.hub.objects:
                base = f"{self.hub.endpoint}/lfs"
                answer["actions"] = {
                    "upload": {"href": f"{base}/{asked['oid']}"},
                    "verify": {"href": f"{base}/{asked['oid']}/verify"},
                }
            objects.append(answer)
        self._json({"transfer": "basic", "objects": objects})

    def lfs_put(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            self._fail(400, "the content does not have the hash that was announced")
        self.hub.objects[oid] = body
        self._send(200)

    def lfs_verify(self, body: bytes, oid: str) -> None:
        if len(self.hub.objects.get(oid, b"")) != json.loads(body)["size"]:
            self._fail(404, "no such object")
        self._json({})

    def commit(self, body: bytes, repo_id: str, branch: str) -> None:
        self._user(needed=True)
        repository = self._repository(repo_id)
        if branch not in repository.branches:
            self._fail(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        head = repository.at(branch)
        if theirs := self.hub.races.pop(repo_id, None):
            head = repository.add(branch, "somebody else's", {**head.files, **theirs})
        files, message = dict(head.files), ""
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                message = value["summary"]
                if value.get("parentCommit") not in (None, head.oid):
                    self._fail(412, "A commit has happened since. Please refresh and try again.")
            elif entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    self._fail(400, f"the object of {value['path']} was not uploaded")
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif entry["key"] == "deletedFile":
                if files.pop(value["path"], None) is None:
                    self._fail(404, "A file with this name doesn't exist", "EntryNotFound")
            else:
                self._fail(400, f"unknown operation {entry['key']}")
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
        answer = {"success": True, "hookOutput": ""}
        if query.get("create_pr") == ["1"]:
            number = 1 + sum(name.startswith("refs/pr/") for name in repository.branches)
            branch = f"refs/pr/{number}"
            repository.branches[branch] = [head]
            answer["pullRequestUrl"] = f"{self.hub.endpoint}/{repo_id}/discussions/{number}"
        made = repository.add(branch, message, files)
        url = f"{self.hub.endpoint}/{repo_id}/commit/{made.oid}"
        self._json({**answer, "commitOid": made.oid, "commitUrl": url})

    def tree(self, _, repo_id: str, revision: str, folder: str = "") -> None:
        commit = self._commit(self._repository(repo_id), revision)
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
        recursive = query.get("recursive", ["false"])[0].lower() == "true"
        prefix = f"{folder.strip('/')}/" if folder.strip("/") else ""
        entries, folders = [], set()
        for name, data in sorted(commit.files.items()):
            if not name.startswith(prefix):
                continue
            parents = name[len(prefix) :].split("/")[:-1]
            for depth in range(1, len(parents) + 1 if recursive else min(len(parents), 1) + 1):
                folders.add(prefix + "/".join(parents[:depth]))
            if recursive or not parents:
                entries.append(self._entry(name, data))
        if prefix and not entries and not folders:
            self._fail(404, f"{folder} does not exist", "EntryNotFound")
        entries += [{"type": "directory", "path": n, "size": 0, "oid": _blob_id(n.encode())} for n in sorted(folders)]
        self._json(entries)

    def paths_info(self, body: bytes, repo_id: str, revision: str) -> None:
        commit = self._commit(self._repository(repo_id), revision)
        if self.headers.get("Content-Type", "").startswith("application/json"):
            paths = json.loads(body)["paths"]
        else:
            paths = urllib.parse.parse_qs(body.decode()).get("paths", [])
        self._json([self._entry(name, commit.files[name]) for name in paths if name in commit.files])

    @staticmethod
    def _entry(name: str, data: bytes) -> dict:
        entry = {"type": "file", "path": name, "size": len(data), "oid": _blob_id(data)}
        if _is_lfs(name):
            entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
        return entry

    def resolve(self, _, repo_id: str, revision: str, name: str) -> None:
        commit = self._commit(self._repository(repo_id), revision)
        if name not in commit.files:
            # The client also wants the commit, to remember that the file is not there.
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit.oid})
            return
        data = commit.files[name]
        etag = hashlib.sha256(data).hexdigest() if _is_lfs(name) else _blob_id(data)
        headers = {"Content-Type": "application/octet-stream", "ETag": f'"{etag}"', "X-Repo-Commit": commit.oid}
        if _is_lfs(name):
            headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(data))}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not asked:
            self._send(200, data, headers)
            return
        start, stop = int(asked[1]), int(asked[2] or len(data) - 1) + 1
        headers["Content-Range"] = f"bytes {start}-{min(stop, len(data)) - 1}/{len(data)}"
        self._send(206, data[start:stop], headers)


_ID = r"((?:spaces/)?[\w.-]+/[\w.-]+)"
_API = rf"/api/(?:models/|(?=spaces/)){_ID}"
_ROUTES = [
    ("GET", r"/api/whoami-v2", _Handler.whoami),
    ("POST", r"/api/collections", _Handler.create_collection),
    ("GET", r"/api/collections/([^/]+/[^/]+)", _Handler.collection),
    ("POST", r"/api/collections/([^/]+/[^/]+)/items?", _Handler.add_collection_item),
    ("POST", r"/api/validate-yaml", _Handler.validate_yaml),
    ("POST", r"/api/repos/create", _Handler.create_repository),
    ("GET", rf"{_API}", _Handler.info),
    ("GET", rf"{_API}/revision/([^/]+)", _Handler.info),
    ("GET", rf"{_API}/refs", _Handler.refs),
    ("GET", rf"{_API}/discussions", _Handler.discussions),
    ("POST", rf"{_API}/branch/([^/]+)", _Handler.create_branch),
    ("POST", rf"{_API}/tag/([^/]+)", _Handler.create_tag),
    ("POST", rf"{_API}/preupload/([^/]+)", _Handler.preupload),
    ("POST", rf"/{_ID}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("PUT", r"/lfs/([0-9a-f]{64})", _Handler.lfs_put),
    ("POST", r"/lfs/([0-9a-f]{64})/verify", _Handler.lfs_verify),
    ("POST", rf"{_API}/commit/([^/]+)", _Handler.commit),
    ("GET", rf"{_API}/tree/([^/]+)(?:/(.*))?", _Handler.tree),
    ("POST", rf"{_API}/paths-info/([^/]+)", _Handler.paths_info),
    ("GET HEAD", rf"/{_ID}/resolve/([^/]+)/(.+)", _Handler.resolve),
]
