"""A model of Google Cloud Storage for tests: what OpenDAL's service asks of it, in memory, as the documentation has it.

Not Google's, and no emulator for general use: it exists since the emulators that can be installed ignore conditions, or
lack what OpenDAL needs. JSON API: objects get, list, insert (media, multipart, resumable), delete, rewrite, batches of
deletions, generation conditions on all of them. XML API: multipart uploads. It checks no credentials.

Reference: https://cloud.google.com/storage/docs/json_api/v1, https://cloud.google.com/storage/docs/xml-api/overview.
"""

import argparse
import base64
import email.parser
import email.policy
import hashlib
import itertools
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

LOCK = threading.RLock()
OBJECTS = {}  # (bucket, name): Object
BUCKETS = set()
UPLOADS = {}  # id: Upload
NUMBERS = itertools.count(time.time_ns() // 1000)


class Refused(Exception):
    def __init__(self, status, reason):
        super().__init__(reason)
        self.status = status
        self.reason = reason


class Object:
    def __init__(self, bucket, name, data, metadata):
        self.bucket, self.name, self.data = bucket, name, data
        self.metadata = {k: v for k, v in metadata.items() if v is not None}
        self.generation = next(NUMBERS)
        self.updated = time.time()
        # Google's JSON API has ETags without quotes.
        self.etag = base64.b64encode(b"g%d" % self.generation).decode()

    def resource(self):
        return {
            "kind": "storage#object",
            "name": self.name,
            "bucket": self.bucket,
            "size": str(len(self.data)),
            "generation": str(self.generation),
            "metageneration": "1",
            "etag": self.etag,
            "md5Hash": base64.b64encode(hashlib.md5(self.data).digest()).decode(),
            "updated": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(self.updated))
            + ".%03dZ" % (self.updated % 1 * 1000),
            "contentType": "application/octet-stream",
            **self.metadata,
        }


class Upload:
    def __init__(self, bucket, name, metadata, query):
        self.bucket, self.name, self.metadata, self.query = bucket, name, metadata, query
        self.data = b""
        self.parts = {}


def check(obj, query):
    """The conditions of a request on the generation of `obj`, which may be None."""
    generation = obj.generation if obj else 0
    for key, wanted in (("ifGenerationMatch", True), ("ifGenerationNotMatch", False)):
        if key in query and (int(query[key]) == generation) != wanted:
            raise Refused(412, "conditionNotMet")


def find(bucket, name, query):
    obj = OBJECTS.get((bucket, name))
    if obj is None:
        raise Refused(404, "notFound")
    check(obj, query)
    return obj


def store(bucket, name, data, metadata, query):
    if bucket not in BUCKETS:
        raise Refused(404, "notFound")
    if not name or len(name.encode()) > 1024 or name in (".", "..") or "\n" in name or "\r" in name:
        raise Refused(400, "invalid")
    check(OBJECTS.get((bucket, name)), query)
    obj = OBJECTS[bucket, name] = Object(bucket, name, data, metadata)
    return obj


def delete(bucket, name, query):
    obj = find(bucket, name, query)
    if "generation" in query and int(query["generation"]) != obj.generation:
        raise Refused(404, "notFound")
    del OBJECTS[bucket, name]


def listing(bucket, query):
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    limit = min(int(query.get("maxResults", 1000)), 1000)
    after = base64.b64decode(query["pageToken"]).decode() if query.get("pageToken") else None
    items, prefixes, token = [], [], None
    for name in sorted(n for b, n in OBJECTS if b == bucket and n.startswith(prefix)):
        if name < query.get("startOffset", ""):
            continue
        rest = name[len(prefix):]
        group = prefix + rest.split(delimiter)[0] + delimiter if delimiter and delimiter in rest else None
        place = group or name
        if (after is not None and place <= after) or (prefixes and group == prefixes[-1]):
            continue
        if len(items) + len(prefixes) == limit:
            token = base64.b64encode(last.encode()).decode()
            break
        if group:
            prefixes.append(group)
        else:
            items.append(OBJECTS[bucket, name].resource())
        last = place
    answer = {"kind": "storage#objects", "items": items, "prefixes": prefixes}
    return answer | ({"nextPageToken": token} if token else {})


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # A header and its body in two small writes would wait for each other's acknowledgement.
    disable_nagle_algorithm = True
    wbufsize = 1 << 16

    def log_message(self, *_):
        pass

    def answer(self, status, body=b"", headers=()):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def json(self, value):
        self.answer(200, json.dumps(value).encode(), [("Content-Type", "application/json")])

    def handle_any(self):
        url = urlsplit(self.path)
        self.query = {k: v[0] for k, v in parse_qs(url.query, keep_blank_values=True).items()}
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            with LOCK:
                for method, pattern, action in ROUTES:
                    match = re.fullmatch(pattern, url.path)
                    if match and method == self.command:
                        return action(self, *map(unquote, match.groups()))
            raise Refused(501, "notImplemented")
        except Refused as refused:
            error = {"error": {"code": refused.status, "message": refused.reason,
                               "errors": [{"domain": "global", "reason": refused.reason, "message": refused.reason}]}}
            self.answer(refused.status, json.dumps(error).encode(), [("Content-Type", "application/json")])

    do_GET = do_PUT = do_POST = do_DELETE = handle_any

    def make_bucket(self):
        BUCKETS.add(json.loads(self.body)["name"])
        self.json({"kind": "storage#bucket"})

    def list(self, bucket):
        if bucket not in BUCKETS:
            raise Refused(404, "notFound")
        self.json(listing(bucket, self.query))

    def get(self, bucket, name):
        obj = find(bucket, name, self.query)
        wanted = self.headers.get("If-Match")
        if wanted and wanted.strip('"') != obj.etag:
            raise Refused(412, "conditionNotMet")
        if self.query.get("alt") != "media":
            return self.json(obj.resource())
        headers = [("ETag", obj.etag), ("X-Goog-Generation", str(obj.generation)),
                   ("Content-Type", obj.resource()["contentType"])]
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not span:
            return self.answer(200, obj.data, headers)
        first, last = int(span[1]), min(int(span[2] or len(obj.data)), len(obj.data) - 1)
        if first > last:
            raise Refused(416, "requestedRangeNotSatisfiable")
        headers.append(("Content-Range", f"bytes {first}-{last}/{len(obj.data)}"))
        return self.answer(206, obj.data[first:last + 1], headers)

    def delete(self, bucket, name):
        delete(bucket, name, self.query)
        self.answer(204)

    def rewrite(self, bucket, name, to_bucket, to_name):
        source = OBJECTS.get((bucket, name))
        if source is None or self.query.get("sourceGeneration", str(source.generation)) != str(source.generation):
            raise Refused(404, "notFound")
        obj = store(to_bucket, to_name, source.data, source.metadata, self.query)
        size = str(len(obj.data))
        self.json({"kind": "storage#rewriteResponse", "totalBytesRewritten": size, "objectSize": size, "done": True,
                   "resource": obj.resource()})

    def insert(self, bucket):
        kind = self.query.get("uploadType")
        if kind == "media":
            metadata = {"contentType": self.headers.get("Content-Type")}
            return self.json(store(bucket, self.query["name"], self.body, metadata, self.query).resource())
        if kind == "multipart":
            boundary = re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])[1].encode()
            parts = self.body.split(b"--" + boundary)[1:-1]
            # An empty part may share its last line break with the boundary.
            metadata, data = (part[2:].partition(b"\r\n\r\n")[2].removesuffix(b"\r\n") for part in parts)
            return self.json(store(bucket, self.query["name"], data, json.loads(metadata), self.query).resource())
        if kind == "resumable":
            check(OBJECTS.get((bucket, self.query["name"])), self.query)
            number = str(next(NUMBERS))
            UPLOADS[number] = Upload(bucket, self.query["name"], json.loads(self.body or b"{}"), self.query)
            place = f"http://{self.headers['Host']}/upload/storage/v1/b/{bucket}/o?uploadType=resumable&upload_id={number}"
            return self.answer(200, b"", [("Location", place)])
        raise Refused(400, "invalid")

    def resume(self, bucket):
        upload = self.upload("upload_id")
        span = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", self.headers.get("Content-Range", "bytes */*"))
        if span is None:
            raise Refused(400, "invalid")
        if span[1]:
            # What is there already is not taken twice.
            upload.data += self.body[max(0, len(upload.data) - int(span[1])):]
        if span[2] == "*" or len(upload.data) < int(span[2]):
            return self.answer(308, b"", [("Range", f"bytes=0-{len(upload.data) - 1}")] if upload.data else [])
        del UPLOADS[self.query["upload_id"]]
        return self.json(store(bucket, upload.name, upload.data, upload.metadata, upload.query).resource())

    def cancel(self, _bucket):
        UPLOADS.pop(self.query.get("upload_id"), None)
        self.answer(499)

    def upload(self, key):
        if self.query.get(key) not in UPLOADS:
            raise Refused(404, "notFound")
        return UPLOADS[self.query[key]]

    def batch(self):
        head = b"Content-Type: " + self.headers["Content-Type"].encode() + b"\r\n\r\n"
        parts = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + self.body).get_payload()
        out = b""
        for part in parts:
            line = part.get_payload(decode=True).decode().lstrip().splitlines()[0]
            method, target = line.split(" ")[:2]
            url = urlsplit(target)
            match = re.fullmatch(OBJECT, url.path)
            status = 204
            try:
                if method != "DELETE" or not match:
                    raise Refused(501, "notImplemented")
                delete(*map(unquote, match.groups()), {k: v[0] for k, v in parse_qs(url.query).items()})
            except Refused as refused:
                status = refused.status
            out += (f"--batch\r\nContent-Type: application/http\r\nContent-ID: <response-{part['Content-ID']}>\r\n\r\n"
                    f"HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n\r\n").encode()
        self.answer(200, out + b"--batch--\r\n", [("Content-Type", "multipart/mixed; boundary=batch")])

    def xml_post(self, bucket, name):
        if "uploads" in self.query:
            number = str(next(NUMBERS))
            metadata = {"contentType": self.headers.get("Content-Type")}
            UPLOADS[number] = Upload(bucket, name, metadata, {})
            body = f"<InitiateMultipartUploadResult><UploadId>{number}</UploadId></InitiateMultipartUploadResult>"
            return self.answer(200, body.encode(), [("Content-Type", "application/xml")])
        upload = self.upload("uploadId")
        numbers = [int(n) for n in re.findall(r"<PartNumber>(\d+)</PartNumber>", self.body.decode())]
        if not numbers or any(n not in upload.parts for n in numbers):
            raise Refused(400, "InvalidPart")
        if any(len(upload.parts[n]) < 5 << 20 for n in numbers[:-1]):
            raise Refused(400, "EntityTooSmall")
        del UPLOADS[self.query["uploadId"]]
        obj = store(bucket, name, b"".join(upload.parts[n] for n in numbers), upload.metadata, {})
        body = f"<CompleteMultipartUploadResult><Key>{name}</Key></CompleteMultipartUploadResult>".encode()
        return self.answer(200, body, [("X-Goog-Generation", str(obj.generation)), ("Content-Type", "application/xml")])

    def xml_part(self, _bucket, _name):
        self.upload("uploadId").parts[int(self.query["partNumber"])] = self.body
        self.answer(200, b"", [("ETag", f'"{hashlib.md5(self.body).hexdigest()}"')])

    def xml_abort(self, _bucket, _name):
        self.upload("uploadId")
        del UPLOADS[self.query["uploadId"]]
        self.answer(204)


OBJECT = r"/storage/v1/b/([^/]+)/o/([^/]+)"
INSERT = r"/upload/storage/v1/b/([^/]+)/o"
XML = r"/([^/]+)/(.+)"
ROUTES = [
    ("POST", r"/storage/v1/b", Handler.make_bucket),
    ("GET", r"/storage/v1/b/([^/]+)/o", Handler.list),
    ("GET", OBJECT, Handler.get),
    ("DELETE", OBJECT, Handler.delete),
    ("POST", OBJECT + r"/rewriteTo/b/([^/]+)/o/([^/]+)", Handler.rewrite),
    ("POST", INSERT, Handler.insert),
    ("PUT", INSERT, Handler.resume),
    ("DELETE", INSERT, Handler.cancel),
    ("POST", r"/batch/storage/v1", Handler.batch),
    ("POST", XML, Handler.xml_post),
    ("PUT", XML, Handler.xml_part),
    ("DELETE", XML, Handler.xml_abort),
]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, required=True)
    server = ThreadingHTTPServer(("127.0.0.1", parser.parse_args().port), Handler)
    server.daemon_threads = True
    server.serve_forever()


if __name__ == "__main__":
    main()
