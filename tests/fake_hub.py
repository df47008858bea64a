"""The part of the Hugging Face hub's HTTP interface that publishing and downloading use, on loopback."""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "a" * 40
TOKEN = "hf_test"  # noqa: S105


class Hub(ThreadingHTTPServer):
    """Repositories in memory: `files` by path `ORG/NAME/FILE`; `private` ones need the token."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.private = {}, False

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def content(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def answer(self, code, content=b"", **headers):
        if not isinstance(content, bytes):
            content, headers["Content_Type"] = json.dumps(content).encode(), "application/json"
        self.send_response(code)
        for name, value in (headers | {"Content_Length": str(len(content))}).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    @property
    def known(self):
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def do_POST(self):
        content = self.content()
        if self.path == "/api/validate-yaml":
            return self.answer(200, {"warnings": [], "errors": []})
        if not self.known:
            return self.answer(401, {"error": "Invalid username or password."})
        if self.path == "/api/repos/create":
            name = "/".join(json.loads(content)[key] for key in ("organization", "name"))
            return self.answer(200, {"url": f"{self.server.address}/{name}", "name": name, "id": "1"})
        _, _, _, organization, repository, action, _ = self.path.split("/")  # /api/models/ORG/NAME/ACTION/REVISION
        if action == "preupload":
            names = [file["path"] for file in json.loads(content)["files"]]
            files = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
            return self.answer(200, {"files": files})
        for line in map(json.loads, content.splitlines()):
            if line["key"] == "file":
                path = f"{organization}/{repository}/{line['value']['path']}"
                self.server.files[path] = base64.b64decode(line["value"]["content"])
        address = f"{self.server.address}/{organization}/{repository}/commit/{COMMIT}"
        return self.answer(200, {"success": True, "commitUrl": address, "commitOid": COMMIT, "hookOutput": ""})

    def do_GET(self):
        repository, _, name = self.path.strip("/").partition("/resolve/")
        if not any(path.startswith(f"{repository}/") for path in self.server.files) or (
            self.server.private and not self.known
        ):
            return self.answer(401, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        path = f"{repository}/{name.partition('/')[2]}"
        if path not in self.server.files:
            return self.answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound")
        content = self.server.files[path]
        digest = hashlib.sha256(content).hexdigest()
        return self.answer(200, content, ETag=f'"{digest}"', X_Repo_Commit=COMMIT)

    do_HEAD = do_GET  # noqa: N815


@contextmanager
def running_hub():
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
