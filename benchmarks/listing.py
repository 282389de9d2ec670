"""What the listing of an output's parts on S3 costs: page by page by boto3, and whole by Arrow.

    python benchmarks/listing.py 200000 2400000 --out benchmarks/results/listing.json

A server on this machine sends the pages of a folder that it makes up, as S3 sends them. Each listing is a process of
its own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from pipelines import storage
from pipelines.output.parts import list_parts
from pipelines.output.record import PARTS

FOLDER = f"out/{PARTS}/"
PAGE = 1000
ENTRY = (
    "<Contents><Key>{key}</Key><LastModified>2026-11-30T16:23:29.000Z</LastModified>"
    "<ETag>&quot;d41d8cd98f00b204e9800998ecf8427e&quot;</ETag><Size>123456</Size>"
    "<StorageClass>STANDARD</StorageClass></Contents>"
)


def page(first: int, names: int) -> str:
    """Return the answer to a request for the names from `first` on, of so many."""
    stop = min(first + PAGE, names)
    xml = '<?xml version="1.0" encoding="UTF-8"?>'
    xml += '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>bucket</Name>'
    xml += f"<Prefix>{FOLDER}</Prefix><MaxKeys>{PAGE}</MaxKeys><Delimiter>/</Delimiter>"
    xml += f"<KeyCount>{stop - first}</KeyCount>"
    xml += f"<IsTruncated>{'true' if stop < names else 'false'}</IsTruncated>"
    if stop < names:
        xml += f"<NextContinuationToken>{stop}</NextContinuationToken>"
    for number in range(first, stop):
        file, shard = divmod(number, 1000)
        rows = f"{shard * 4096:09d}-{shard * 4096 + 4096:09d}"
        xml += ENTRY.format(key=f"{FOLDER}{file:05d}.parquet-0123abcd-{rows}.parquet")
    return xml + "</ListBucketResult>"


def serve(names: int, port: Any) -> None:
    """Answer listings, and tell the port."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            query = parse_qs(urlsplit(self.path).query)
            body = page(int(query.get("continuation-token", ["0"])[0]), names).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    port.put(server.server_port)
    server.serve_forever()


def listing(how: str, port: int) -> dict[str, Any]:
    """List the folder in this process; its largest memory is that of the listing and libraries."""
    if how == "arrow":
        storage.has_s3_client = lambda: False  # type: ignore[assignment]
    query = f"endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
    folder = storage.Folder(f"s3://some-key:some-secret@bucket/out?{query}")
    before = peak_rss_mb()
    started, cpu = time.monotonic(), time.process_time()
    names = len(list_parts(folder, PARTS))
    return {
        "names": names,
        "how": how,
        "seconds": time.monotonic() - started,
        "cpu_s": time.process_time() - cpu,
        "rss_mb_before": before,
        "peak_rss_mb": peak_rss_mb(),
    }


def peak_rss_mb() -> float:
    """Return the largest memory of this process so far."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6


def main() -> None:
    """Measure each number of names in both ways, print the figures, and write them to `--out`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", type=int, nargs="*", default=[200_000])
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    parser.add_argument("--list", nargs=2, metavar=("HOW", "PORT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.list:
        how, port = options.list
        print(json.dumps(listing(how, int(port))))
        return
    runs = []
    for names in options.names:
        ports = multiprocessing.Queue()
        server = multiprocessing.Process(target=serve, args=(names, ports), daemon=True)
        server.start()
        port = str(ports.get())
        for how in ("boto3", "arrow"):
            command = [sys.executable, __file__, "--list", how, port]
            runs.append(json.loads(subprocess.check_output(command)))
        server.terminate()
    figures = {"machine": f"{os.cpu_count()} cores of {platform.machine()}", "runs": runs}
    rounded = json.loads(json.dumps(figures), parse_float=lambda text: round(float(text), 2))
    print(json.dumps(rounded, indent=2))
    if options.out:
        options.out.write_text(json.dumps(rounded, indent=2) + "\n")


if __name__ == "__main__":
    main()
