"""A stand-in for the Hugging Face hub: the part of its interface that uploads and downloads use, on this machine."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "c" * 40


class Hub(ThreadingHTTPServer):
    """Repositories by name, as files; one user, whose token is ``good``, may write to those of ``me``."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Answers)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.address = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Answers(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_):
        """Says nothing."""

    def _answer(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, value, status: int = 200) -> None:
        self._answer(status, json.dumps(value).encode(), Content_Type="application/json")

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_POST(self):
        body, path = self._body(), self.path.partition("?")[0]
        if self.headers.get("Authorization") != "Bearer good":
            return self._json({"error": "Invalid username or password."}, 401)
        if path == "/api/repos/create":
            asked = json.loads(body)
            owner = asked.get("organization") or "me"
            if owner != "me":
                return self._json({"error": f"You don't have the rights to create a model under {owner}"}, 403)
            name = f"{owner}/{asked['name']}"
            self.server.repositories.setdefault(name, {})
            hidden = asked.get("private") or asked.get("visibility") == "private"  # older and newer clients
            self.server.private |= {name} if hidden else set()
            return self._json({"url": f"{self.server.address}/{name}"})
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", path)
        if match and match[2] == "preupload":
            known = {"uploadMode": "regular", "shouldIgnore": False}
            return self._json({"files": [{"path": file["path"], **known} for file in json.loads(body)["files"]]})
        if match:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.server.repositories[match[1]][line["value"]["path"]] = content
            url = f"{self.server.address}/{match[1]}/commit/{COMMIT}"
            return self._json({"commitUrl": url, "commitOid": COMMIT, "pullRequestUrl": None})
        return self._json({"error": f"no {path} here"}, 404)

    def do_GET(self):
        path = self.path.partition("?")[0]
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(revision|tree)/([^/]+)", path)
        if match and match[1] in self.server.repositories and match[3] in ("main", COMMIT):
            files = self.server.repositories[match[1]]
            if match[2] == "tree":
                oid = {name: hashlib.sha1(content).hexdigest() for name, content in files.items()}
                entries = [{"type": "file", "path": n, "size": len(files[n]), "oid": oid[n]} for n in files]
                return self._json(entries)
            names = [{"rfilename": name} for name in files]
            return self._json({"id": match[1], "sha": COMMIT, "private": False, "tags": [], "siblings": names})
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path)
        content = self.server.repositories.get(match[1], {}).get(match[2]) if match else None
        if content is None:
            return self._answer(404, b"", X_Error_Code="RepoNotFound")
        etag = hashlib.sha1(content).hexdigest()
        return self._answer(200, content, ETag=f'"{etag}"', X_Repo_Commit=COMMIT)

    do_HEAD = do_GET
