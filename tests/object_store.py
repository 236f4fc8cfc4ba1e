"""An object store on loopback that speaks as much of S3 as a job takes: listing, objects and parts of them, writing."""

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape, unescape


class Bucket:
    """Objects by key, and what was asked of them."""

    def __init__(self):
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, str]] = []  # method, key or prefix, range
        self.failing: set[str] = set()  # keys that are answered with status 403
        self.page = 1000  # keys a listing

    def put_folder(self, folder, prefix):
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.objects[f"{prefix}/{path.relative_to(folder).as_posix()}"] = path.read_bytes()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    bucket: Bucket

    def log_message(self, *arguments):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_PUT(self):
        key, content = self._key(), self._body()
        if source := self.headers.get("x-amz-copy-source"):
            content = self.bucket.objects[unquote(source).strip("/").partition("/")[2]]
        self.bucket.requests.append(("PUT", key, ""))
        self.bucket.objects[key] = content
        tag = f'"{hashlib.md5(content).hexdigest()}"'
        copied = f"<CopyObjectResult><ETag>{tag}</ETag></CopyObjectResult>" if source else ""
        self._answer(200, copied.encode(), {"ETag": tag})

    def do_DELETE(self):
        self.bucket.objects.pop(self._key(), None)
        self._answer(204, b"")

    def do_POST(self):  # several to be deleted
        for key in re.findall(r"<Key>(.*?)</Key>", self._body().decode()):
            self.bucket.objects.pop(unescape(key), None)
        self._answer(200, b"<DeleteResult></DeleteResult>")

    def _key(self):
        return unquote(urlsplit(self.path).path).strip("/").partition("/")[2]

    def _body(self):
        return self.rfile.read(int(self.headers.get("Content-Length", "0")))

    def do_GET(self):
        address = urlsplit(self.path)
        key = self._key()
        query = {name: values[0] for name, values in parse_qs(address.query, keep_blank_values=True).items()}
        self.bucket.requests.append((self.command, key or query.get("prefix", ""), self.headers.get("Range", "")))
        if not key:
            self._answer(200, self._listing(query).encode(), {"Content-Type": "application/xml"})
        elif key in self.bucket.failing:
            self._answer(403, b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>")
        elif key not in self.bucket.objects:
            self._answer(404, b"<Error><Code>NoSuchKey</Code><Message>no such key</Message></Error>")
        else:
            content, status = self.bucket.objects[key], 200
            tag = {"ETag": f'"{hashlib.md5(content).hexdigest()}"', "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}
            if span := self.headers.get("Range"):
                first, last = span.removeprefix("bytes=").split("-")
                stop = min(int(last) + 1 if last else len(content), len(content))
                tag["Content-Range"] = f"bytes {first}-{stop - 1}/{len(content)}"
                content, status = content[int(first) : stop], 206
            self._answer(status, content, tag)

    def _listing(self, query):
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        entries: dict[str, bytes | None] = {}
        for key in sorted(self.bucket.objects, key=str.encode):
            if key.startswith(prefix):
                rest, found, _ = key[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
                entries[prefix + rest + found if found else key] = None if found else self.bucket.objects[key]
        after = query.get("continuation-token", "")
        names = [name for name in entries if name.encode() > after.encode()]
        page, more = names[: self.bucket.page], len(names) > self.bucket.page
        body = "".join(
            f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" if entries[name] is None else
            f"<Contents><Key>{escape(name)}</Key><Size>{len(entries[name])}</Size><ETag>"
            f'"{hashlib.md5(entries[name]).hexdigest()}"</ETag><LastModified>2026-01-01T00:00:00Z</LastModified></Contents>'
            for name in page
        )  # fmt: skip
        token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else ""
        truncated = str(more).lower()
        return f"<ListBucketResult><IsTruncated>{truncated}</IsTruncated>{token}{body}</ListBucketResult>"

    def _answer(self, status, content, headers=None):
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextmanager
def serving(bucket: Bucket) -> Iterator[str]:
    """Serve a bucket; give the address of the store."""
    handler = type("Handler", (_Handler,), {"bucket": bucket})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
