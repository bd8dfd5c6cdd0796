"""Servers of buckets that run here: S3 by moto.

    python tests/buckets.py --delay=0.05 COMMAND ...

runs a command that finds the empty bucket s3://bucket on a server that waits so long before each answer.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server


class Quiet(WSGIRequestHandler):
    """Says nothing of requests."""

    protocol_version = "HTTP/1.1"

    def log(self, *_):
        pass


@contextlib.contextmanager
def s3(delay: float = 0.0) -> Iterator[dict[str, str]]:
    """A server with one bucket, s3://bucket; gives the environment that leads to it."""
    app = DomainDispatcherApplication(create_backend_app)

    def slow(environment, start):
        time.sleep(delay)
        return app(environment, start)

    server = make_server("127.0.0.1", 0, slow, threaded=True, request_handler=Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    found = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
    }
    import boto3

    names = {"aws_access_key_id": "key", "aws_secret_access_key": "secret"}
    client = boto3.client(
        "s3", endpoint_url=found["AWS_ENDPOINT_URL"], region_name="us-east-1", **names
    )
    with contextlib.suppress(client.exceptions.BucketAlreadyOwnedByYou):
        client.create_bucket(Bucket="bucket")
    try:
        yield found
    finally:
        server.shutdown()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--delay", type=float, default=0.0, help="seconds")
    known, command = parser.parse_known_args()
    with s3(known.delay) as variables:
        sys.exit(subprocess.call(command, env=os.environ | variables))
