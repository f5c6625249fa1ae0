# SPDX-License-Identifier: Apache-2.0
"""A local stand-in for the Hub: the endpoints that huggingface-hub 2.4 calls to make, fill, list and read a repository.

It keeps repositories with their history in memory, and is as strict as the Hub where that matters here: what is uploaded must
have the size and checksum that were announced, metadata of a card must be valid, private repositories are hidden, and errors
have the Hub's `X-Error-Code`. It knows no Xet, so clients have to set `HF_HUB_DISABLE_XET`.
"""

import base64
import hashlib
import json
import re
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml
from huggingface_hub import ModelCard
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id


# Those that the Hub's documentation lists and that this project could be taken for
LICENSES = {"apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "llama2", "llama3", "other", "unknown"}  # fmt: skip
PIPELINE_TAGS = {"text-generation", "image-text-to-text", "video-text-to-text", "audio-text-to-text", "any-to-any"}
LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".mp4", ".zip", ".npz")
MAX_REGULAR_SIZE = 10 * 1024**2
# 2026-01-01, and a second more for each commit: the same pushes give the same history
DATE = "2026-01-01T00:00:{:02d}.000Z"


class Refusal(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str, code: str | None = None, body: dict | None = None):
        super().__init__(message)
        self.status, self.message, self.code = status, message, code
        self.body = {"error": message} if body is None else body


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass(frozen=True)
class Blob:
    content: bytes
    is_lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def oid(self) -> str:
        """Of a file in LFS, that of the pointer that git holds."""
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n"
        return git_hash(pointer.encode() if self.is_lfs else self.content)

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_lfs else self.oid

    def entry(self, path: str) -> dict:
        entry = {"type": "file", "path": path, "size": len(self.content), "oid": self.oid}
        if self.is_lfs:
            entry["lfs"] = {"oid": self.sha256, "size": len(self.content), "pointerSize": 134}
        return entry


@dataclass(frozen=True)
class Commit:
    title: str
    description: str
    author: str
    files: dict[str, Blob]
    parent: "Commit | None" = None

    @property
    def oid(self) -> str:
        listing = "".join(f"{path}\0{blob.oid}\n" for path, blob in sorted(self.files.items()))
        parent = "" if self.parent is None else self.parent.oid
        return hashlib.sha1(f"{parent}\n{self.title}\n{self.description}\n{listing}".encode()).hexdigest()

    def history(self) -> list["Commit"]:
        """Newest first."""
        return [self] + (self.parent.history() if self.parent is not None else [])


@dataclass
class Repo:
    private: bool
    refs: dict[str, Commit]
    lfs: dict[str, bytes] = field(default_factory=dict)

    def resolve(self, revision: str) -> Commit:
        if revision in self.refs:
            return self.refs[revision]
        for tip in self.refs.values():
            for commit in tip.history():
                if commit.oid == revision:
                    return commit
        raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")


def problems_of_card(content: str) -> tuple[list[str], list[str]]:
    """Errors and warnings about the metadata of a card, as far as the Hub's rules are documented."""
    block = re.match(r"---\r?\n(.*?)\r?\n---\r?\n", content, flags=re.DOTALL)
    if block is None:
        return [], ["empty or missing yaml metadata in repo card"]
    try:
        fields = yaml.safe_load(block[1])
        # Results are read as the client reads them
        ModelCard(content)
    except (yaml.YAMLError, ValueError) as error:
        return [f"Invalid metadata: {error}"], []
    errors = []

    def strings(name: str) -> list:
        value = fields.get(name)
        return [] if value is None else value if isinstance(value, list) else [value]

    for name, pattern, hint in (
        ("base_model", r"[\w.-]+(/[\w.-]+)?", "Use a model id from https://hf.co/models."),
        ("language", r"[a-z]{2,3}|multilingual|code", "It must be an ISO 639 code."),
        ("tags", r".+", "It must be text."),
        ("library_name", r"[\w.-]+", "It must be a name."),
        ("license_name", r"[a-z0-9.-]+", "It must be lower case, without blanks."),
        ("license_link", r"LICENSE|LICENSE\.md|https?://\S+", "It must be LICENSE, LICENSE.md or a URL."),
    ):
        for value in strings(name):
            if not isinstance(value, str) or not re.fullmatch(pattern, value):
                errors.append(f'"{name}" with value "{value}" is not valid. {hint}')
    for name, allowed in (("license", LICENSES), ("pipeline_tag", PIPELINE_TAGS)):
        for value in strings(name):
            if value not in allowed:
                errors.append(f'"{name}" must be one of [{", ".join(sorted(allowed))}]')
    if fields.get("license") == "other" and not fields.get("license_name"):
        errors.append('"license_name" is required with "license: other"')
    return errors, []


class HubStandIn:
    """A Hub at `endpoint`, from entering to leaving the context.

    Args:
        tokens: The user of each token.
        organizations: The organizations that each user may write in, beside their own name.

    Attributes:
        requests: Method and path of every request, in order.
        broken_paths: Paths that answer 400, which clients do not try again.
    """

    def __init__(self, tokens: dict[str, str], organizations: dict[str, list[str]] | None = None):
        self.tokens = tokens
        self.organizations = organizations or {}
        self.repos: dict[str, Repo] = {}
        self.requests: list[tuple[str, str]] = []
        self.broken_paths: set[str] = set()
        self.lock = threading.RLock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        self.storage = f"http://localhost:{self.server.server_port}"

    def __enter__(self) -> "HubStandIn":
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        self.server.shutdown()
        self.server.server_close()

    # What tests look at

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        return {path: blob.content for path, blob in self.repos[repo_id].resolve(revision).files.items()}

    def titles(self, repo_id: str, revision: str = "main") -> list[str]:
        """Of the commits, oldest first, without the one that made the repository."""
        return [commit.title for commit in self.repos[repo_id].resolve(revision).history()][-2::-1]

    # Who may what

    def user(self, request: "Handler") -> str | None:
        header = request.headers.get("Authorization")
        if header is None:
            return None
        user = self.tokens.get(header.removeprefix("Bearer "))
        if user is None:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return user

    def may_write(self, user: str | None, namespace: str) -> bool:
        return user is not None and namespace in (user, *self.organizations.get(user, []))

    def readable(self, request: "Handler", repo_id: str) -> Repo:
        user, repo = self.user(request), self.repos.get(repo_id)
        if repo is None or (repo.private and not self.may_write(user, repo_id.split("/")[0])):
            status = 401 if user is None else 404
            raise Refusal(
                status, "Invalid username or password." if user is None else "Repository not found", "RepoNotFound"
            )
        return repo

    def writable(self, request: "Handler", repo_id: str, is_proposal: bool = False) -> Repo:
        repo = self.readable(request, repo_id)
        user = self.user(request)
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        if not is_proposal and not self.may_write(user, repo_id.split("/")[0]):
            raise Refusal(403, f"Forbidden: you don't have write access to {repo_id}")
        return repo

    # What is asked for

    def create_repo(self, request: "Handler", query: dict) -> dict:
        user, payload = self.user(request), request.json()
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        namespace = payload.get("organization") or user
        repo_id = f"{namespace}/{payload['name']}"
        try:
            validate_repo_id(repo_id)
        except HFValidationError as error:
            raise Refusal(400, str(error)) from error
        if not self.may_write(user, namespace):
            raise Refusal(403, f'You don\'t have the rights to create a model under the namespace "{namespace}"')
        url = {"url": f"{self.endpoint}/{repo_id}", "name": repo_id}
        if repo_id in self.repos:
            raise Refusal(409, "You already created this model repo", body={**url, "error": "exists"})
        is_private = payload.get("private") or payload.get("visibility") == "private"
        attributes = Blob(b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n", is_lfs=False)
        self.repos[repo_id] = Repo(
            bool(is_private), {"main": Commit("initial commit", "", user, {".gitattributes": attributes})}
        )
        return url

    def create_branch(self, request: "Handler", query: dict, repo_id: str, branch: str) -> dict:
        repo, payload = self.writable(request, repo_id), request.json()
        if branch in repo.refs:
            raise Refusal(409, f"Reference already exists: {branch}")
        repo.refs[branch] = repo.resolve(payload.get("startingPoint", "main"))
        return {}

    def validate_card(self, request: "Handler", query: dict) -> dict:
        errors, warnings = problems_of_card(request.json()["content"])
        body = {"errors": [{"message": text} for text in errors], "warnings": [{"message": text} for text in warnings]}
        if errors:
            raise Refusal(400, "Invalid metadata", body=body)
        return body

    def preupload(self, request: "Handler", query: dict, repo_id: str, revision: str) -> dict:
        repo = self.writable(request, repo_id, is_proposal="create_pr" in query)
        existing = repo.resolve(revision).files
        files = []
        for file in request.json()["files"]:
            is_binary = b"\0" in base64.b64decode(file["sample"])
            is_lfs = file["path"].endswith(LFS_SUFFIXES) or file["size"] > MAX_REGULAR_SIZE or is_binary
            blob = existing.get(file["path"])
            files.append(
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if is_lfs else "regular",
                    "shouldIgnore": False,
                    "oid": None if blob is None else blob.etag,
                }
            )
        return {"files": files}

    def lfs_batch(self, request: "Handler", query: dict, repo_id: str) -> dict:
        payload = request.json()
        repo = self.readable(request, repo_id)
        if payload["operation"] != "upload" or payload["hash_algo"] != "sha256" or self.user(request) is None:
            raise Refusal(422, "Only uploads by sha256 are known here")
        objects = []
        for file in payload["objects"]:
            actions = {
                "upload": {"href": f"{self.endpoint}/lfs/{repo_id}/{file['oid']}/{file['size']}"},
                "verify": {"href": f"{self.endpoint}/lfs/{repo_id}/verify"},
            }
            objects.append(file if file["oid"] in repo.lfs else {**file, "actions": actions})
        return {"transfer": "basic", "objects": objects}

    def lfs_upload(self, request: "Handler", query: dict, repo_id: str, oid: str, size: str) -> dict:
        content = request.body()
        if len(content) != int(size) or hashlib.sha256(content).hexdigest() != oid:
            raise Refusal(400, f"What was sent is not the file of {size} bytes with the checksum {oid}")
        self.repos[repo_id].lfs[oid] = content
        return {}

    def lfs_verify(self, request: "Handler", query: dict, repo_id: str) -> dict:
        payload = request.json()
        content = self.readable(request, repo_id).lfs.get(payload["oid"])
        if content is None or len(content) != payload["size"]:
            raise Refusal(404, f"There is no upload with the checksum {payload['oid']} and {payload['size']} bytes")
        return {}

    def commit(self, request: "Handler", query: dict, repo_id: str, revision: str) -> dict:
        is_proposal = "create_pr" in query
        repo = self.writable(request, repo_id, is_proposal)
        lines = [json.loads(line) for line in request.body().splitlines()]
        if not lines or lines[0]["key"] != "header" or not lines[0]["value"].get("summary"):
            raise Refusal(400, "A commit begins with a header with a summary")
        header, parent = lines[0]["value"], repo.resolve(revision)
        if header.get("parentCommit") not in (None, parent.oid):
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        files = dict(parent.files)
        for line in lines[1:]:
            value = line["value"]
            path = value["path"]
            if path.startswith("/") or {"..", ".git", ""} & set(path.split("/")):
                raise Refusal(400, f"Invalid path: {path}")
            if line["key"] == "file":
                content = base64.b64decode(value["content"], validate=True)
                if len(content) > MAX_REGULAR_SIZE or path.endswith(LFS_SUFFIXES):
                    raise Refusal(400, f"{path} must be uploaded to LFS")
                files[path] = Blob(content, is_lfs=False)
            elif line["key"] == "lfsFile":
                content = repo.lfs.get(value["oid"])
                if content is None or len(content) != value["size"]:
                    raise Refusal(400, f"LFS pointer pointed to a file that does not exist: {path}")
                files[path] = Blob(content, is_lfs=True)
            elif line["key"] == "deletedFile" and path in files:
                del files[path]
            else:
                raise Refusal(400, f"Can't do {line['key']} with {path}")
        if "README.md" in files:
            errors, _ = problems_of_card(files["README.md"].content.decode())
            if errors:
                raise Refusal(400, "; ".join(errors))
        commit = Commit(header["summary"], header.get("description", ""), self.user(request), files, parent)
        if is_proposal:
            revision = f"refs/pr/{1 + sum(name.startswith('refs/pr/') for name in repo.refs)}"
        elif revision not in repo.refs:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        repo.refs[revision] = commit
        pull_request = f"{self.endpoint}/{repo_id}/discussions/{revision.split('/')[-1]}" if is_proposal else None
        url = f"{self.endpoint}/{repo_id}/commit/{commit.oid}"
        return {"success": True, "commitOid": commit.oid, "commitUrl": url, "pullRequestUrl": pull_request}

    def info(self, request: "Handler", query: dict, repo_id: str, revision: str = "main") -> dict:
        repo = self.readable(request, repo_id)
        commit = repo.resolve(revision)
        card_data = {}
        if "README.md" in commit.files:
            card_data = ModelCard(commit.files["README.md"].content.decode()).data.to_dict()
        return {
            "id": repo_id,
            "author": repo_id.split("/")[0],
            "sha": commit.oid,
            "private": repo.private,
            "siblings": [{"rfilename": path} for path in sorted(commit.files)],
            "tags": card_data.get("tags", []),
            "pipeline_tag": card_data.get("pipeline_tag"),
            "library_name": card_data.get("library_name"),
            "cardData": card_data,
        }

    def tree(self, request: "Handler", query: dict, repo_id: str, revision: str, folder: str = "") -> list:
        files = self.readable(request, repo_id).resolve(revision).files
        prefix = f"{folder}/" if folder else ""
        inside = {path: blob for path, blob in sorted(files.items()) if path.startswith(prefix)}
        if folder and not inside:
            raise Refusal(404, f"{folder} does not exist on {revision}", "EntryNotFound")
        is_recursive = query.get("recursive", ["false"])[0].lower() == "true"
        entries, folders = [], set()
        for path, blob in inside.items():
            parts = path.removeprefix(prefix).split("/")
            if len(parts) > 1:
                folders.add(prefix + parts[0])
            if len(parts) == 1 or is_recursive:
                entries.append(blob.entry(path))
        entries += [{"type": "directory", "path": path, "oid": git_hash(path.encode())} for path in sorted(folders)]
        return entries

    def commits(self, request: "Handler", query: dict, repo_id: str, revision: str) -> list:
        history = self.readable(request, repo_id).resolve(revision).history()
        return [
            {
                "id": commit.oid,
                "title": commit.title,
                "message": commit.description,
                "authors": [{"user": commit.author}],
                "date": DATE.format(len(history) - index),
            }
            for index, commit in enumerate(history)
        ]

    def refs(self, request: "Handler", query: dict, repo_id: str) -> dict:
        refs = {"branches": [], "pullRequests": [], "tags": [], "converts": []}
        for name, commit in self.readable(request, repo_id).refs.items():
            is_proposal = name.startswith("refs/pr/")
            ref = name if is_proposal else f"refs/heads/{name}"
            entry = {"name": name.split("/")[-1], "ref": ref, "targetCommit": commit.oid}
            refs["pullRequests" if is_proposal else "branches"].append(entry)
        return refs

    def resolve(self, request: "Handler", query: dict, repo_id: str, revision: str, path: str) -> None:
        commit = self.readable(request, repo_id).resolve(revision)
        headers = {"X-Repo-Commit": commit.oid}
        blob = commit.files.get(path)
        if blob is None:
            refusal = Refusal(404, "Entry not found", "EntryNotFound")
            refusal.headers = headers
            raise refusal
        headers["ETag"] = f'"{blob.etag}"'
        if blob.is_lfs:
            # Large files lie on another host, as those of the Hub do: clients ask only the Hub itself for metadata
            size = str(len(blob.content))
            headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": size}
            request.answer(302, b"", {**headers, "Location": f"{self.storage}/cdn/{repo_id}/{blob.sha256}"})
        else:
            request.answer_content(blob.content, headers)

    def cdn(self, request: "Handler", query: dict, repo_id: str, oid: str) -> None:
        request.answer_content(self.repos[repo_id].lfs[oid], {"ETag": f'"{oid}"'})


REPO = r"([^/]+/[^/]+)"
ROUTES = [
    ("POST", r"/api/repos/create", HubStandIn.create_repo),
    ("POST", r"/api/validate-yaml", HubStandIn.validate_card),
    ("POST", rf"/api/models/{REPO}/branch/([^/]+)", HubStandIn.create_branch),
    ("POST", rf"/api/models/{REPO}/preupload/([^/]+)", HubStandIn.preupload),
    ("POST", rf"/api/models/{REPO}/commit/([^/]+)", HubStandIn.commit),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", HubStandIn.lfs_batch),
    ("PUT", rf"/lfs/{REPO}/([0-9a-f]{{64}})/(\d+)", HubStandIn.lfs_upload),
    ("POST", rf"/lfs/{REPO}/verify", HubStandIn.lfs_verify),
    ("GET", rf"/api/models/{REPO}", HubStandIn.info),
    ("GET", rf"/api/models/{REPO}/revision/([^/]+)", HubStandIn.info),
    ("GET", rf"/api/models/{REPO}/tree/([^/]+)", HubStandIn.tree),
    ("GET", rf"/api/models/{REPO}/tree/([^/]+)/(.+)", HubStandIn.tree),
    ("GET", rf"/api/models/{REPO}/commits/([^/]+)", HubStandIn.commits),
    ("GET", rf"/api/models/{REPO}/refs", HubStandIn.refs),
    ("GET", rf"/{REPO}/resolve/([^/]+)/(.+)", HubStandIn.resolve),
    ("GET", rf"/cdn/{REPO}/([0-9a-f]{{64}})", HubStandIn.cdn),
]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubStandIn

    def body(self) -> bytes:
        """Read once, and always: what is left unread would be taken for the next request."""
        if self._body is None:
            if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
                chunks = []
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    chunks.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                self._body = b"".join(chunks)
            else:
                self._body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return self._body

    def json(self) -> dict:
        return json.loads(self.body())

    def answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def answer_content(self, content: bytes, headers: dict[str, str]) -> None:
        """All of a file, or the range that was asked for."""
        headers = {"Accept-Ranges": "bytes", **headers}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            self.answer(200, content, headers)
            return
        first, last = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
        if first > last:
            self.answer(416, b"", {**headers, "Content-Range": f"bytes */{len(content)}"})
            return
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self.answer(206, content[first : last + 1], headers)

    def handle_request(self) -> None:
        self._body = None
        url = urlsplit(self.path)
        path, method = url.path, "GET" if self.command == "HEAD" else self.command
        self.hub.requests.append((self.command, path))
        try:
            self.body()
            if path in self.hub.broken_paths:
                raise Refusal(400, "Broken")
            for route_method, pattern, function in ROUTES:
                match = re.fullmatch(pattern, path)
                if match and method == route_method:
                    with self.hub.lock:
                        result = function(self.hub, self, parse_qs(url.query), *map(unquote, match.groups()))
                    if result is not None:
                        self.answer(200, json.dumps(result).encode(), {"Content-Type": "application/json"})
                    return
            raise Refusal(404, f"The stand-in has no {method} {path}")
        except Refusal as refusal:
            headers = {"Content-Type": "application/json", "X-Error-Message": refusal.message}
            if refusal.code is not None:
                headers["X-Error-Code"] = refusal.code
            headers |= getattr(refusal, "headers", {})
            self.answer(refusal.status, json.dumps(refusal.body).encode(), headers)

    def handle(self) -> None:
        with suppress(ConnectionError):
            super().handle()

    def log_message(self, *args) -> None:
        """Tests read `requests` instead."""

    do_GET = do_HEAD = do_POST = do_PUT = handle_request
