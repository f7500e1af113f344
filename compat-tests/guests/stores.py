"""Stores for the tests, seen from outside: a directory, or an S3 bucket on a server that the test starts and stops."""

import hashlib
import os
import random
import re
import shutil
import socket
import stat
import sys

import process

ACCESS_KEY = "ovfstestkey"
SECRET_KEY = "ovfstestsecret"
REGION = "us-east-1"
BUCKET = "guests"
PART_BYTES = 1 << 20
# What an ETag of an object that came in one piece looks like: its MD5.
WHOLE_ETAG = re.compile("[0-9a-f]{32}")


SPECIAL = {stat.S_IFIFO: "fifo", stat.S_IFSOCK: "socket"}


class Directory:
    """A host directory: a passthrough share, or the root of an fs backend."""

    def __init__(self, path):
        self.path = path
        os.makedirs(path, exist_ok=True)

    def backend_url(self):
        return f"fs://{self.path}"

    def configuration(self):
        """The same as keys of a configuration file."""
        return {"type": "fs", "root": self.path}

    def environment(self):
        return {}

    def put(self, name, data):
        path = os.path.join(self.path, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        # In place of the old file at once, as an object is.
        temporary = f"{path}.new"
        with open(temporary, "wb") as file:
            file.write(data)
        os.replace(temporary, path)

    def get(self, name):
        with open(os.path.join(self.path, name), "rb") as file:
            return file.read()

    def md5(self, name):
        try:
            with open(os.path.join(self.path, name), "rb") as file:
                return hashlib.file_digest(file, "md5").hexdigest()
        except FileNotFoundError:
            return None

    def sums(self):
        """Every regular file below the root, with its checksum."""
        return {name: self.md5(name) for name in self._walk(files=True)}

    def dirs(self):
        return set(self._walk(files=False))

    def _walk(self, files):
        for directory, dir_names, file_names in os.walk(self.path):
            for name in file_names if files else dir_names:
                path = os.path.join(directory, name)
                if not files or (os.path.isfile(path) and not os.path.islink(path)):
                    yield os.path.relpath(path, self.path)

    def special(self, name):
        """What `name` is that is no regular file: `link TARGET`, `fifo` or `socket`. None for anything else."""
        try:
            path = os.path.join(self.path, name)
            mode = os.lstat(path).st_mode
            return f"link {os.readlink(path)}" if stat.S_ISLNK(mode) else SPECIAL.get(stat.S_IFMT(mode))
        except FileNotFoundError:
            return None

    def attributes(self, name, is_dir):
        """Permissions, owner, group and time of last change in whole seconds."""
        try:
            info = os.lstat(os.path.join(self.path, name))
        except FileNotFoundError:
            return None
        return stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid, int(info.st_mtime)

    def describe(self):
        """One line per entry: what a passthrough share must have in common with another."""
        lines = []
        for directory, dir_names, file_names in os.walk(self.path):
            for name in dir_names + file_names:
                path = os.path.join(directory, name)
                info = os.lstat(path)
                size = "" if os.path.isdir(path) else info.st_size
                target = os.readlink(path) if os.path.islink(path) else ""
                lines.append(f"{os.path.relpath(path, self.path)} {info.st_mode:o} {info.st_uid}:{info.st_gid} "
                             f"{info.st_nlink} {size} {target}")
        return sorted(lines)

    def close(self):
        pass


class Bucket:
    """A bucket on an S3 server of our own, looked at through boto3."""

    def __init__(self, server, name=BUCKET):
        import boto3
        from botocore.config import Config

        self.server = server
        self.name = name
        self.client = boto3.client(
            "s3",
            endpoint_url=server.endpoint,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            region_name=REGION,
            config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 3}, proxies={}),
        )
        self.client.create_bucket(Bucket=name)

    def backend_url(self):
        return f"s3://{self.name}?endpoint={self.server.endpoint}&region={REGION}"

    def configuration(self):
        """The same as keys of a configuration file, with the credentials."""
        return {
            "type": "s3", "bucket": self.name, "region": REGION, "endpoint": self.server.endpoint,
            "access_key_id": ACCESS_KEY, "secret_access_key": SECRET_KEY,
        }

    def environment(self):
        """Credentials for the daemon: in its environment, never on its command line."""
        return {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def put(self, name, data):
        self.client.put_object(Bucket=self.name, Key=name, Body=data)

    def get(self, name):
        return self.client.get_object(Bucket=self.name, Key=name)["Body"].read()

    def md5(self, name):
        try:
            body = self.client.get_object(Bucket=self.name, Key=name)["Body"]
        except self.client.exceptions.NoSuchKey:
            return None
        digest = hashlib.md5()
        for part in body.iter_chunks(PART_BYTES):
            digest.update(part)
        return digest.hexdigest()

    def metadata(self, key):
        """An object's user metadata; None when there is no such object."""
        try:
            return self.client.head_object(Bucket=self.name, Key=key)["Metadata"]
        except self.client.exceptions.ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                return None
            raise

    def special(self, name):
        """What `name` is that is no regular file: `link TARGET`, `fifo` or `socket`. None for anything else."""
        mode = int((self.metadata(name) or {}).get("mode", 0))
        return f"link {self.get(name).decode()}" if stat.S_ISLNK(mode) else SPECIAL.get(stat.S_IFMT(mode))

    def attributes(self, name, is_dir):
        """Permissions, owner, group and time of last change in whole seconds, as s3fs keeps them.

        None for a directory without an object of its own: it has nothing to keep them in.
        """
        metadata = self.metadata(f"{name}/" if is_dir else name)
        if metadata is None:
            return None
        try:
            owner, group, mtime = (int(metadata[key].partition(".")[0]) for key in ("uid", "gid", "mtime"))
            return stat.S_IMODE(int(metadata["mode"])), owner, group, mtime
        except KeyError as missing:
            return f"no {missing} in {metadata}"

    def entries(self):
        """Key and ETag (None where the server lists none) of every object."""
        for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name):
            for entry in page.get("Contents", ()):
                yield entry["Key"], entry.get("ETag", "").strip('"') or None

    def keys(self):
        return [key for key, _ in self.entries()]

    def sums(self):
        """Every object that is not a directory's marker, with its checksum: what the server says of an object that came
        in one piece, what we read of any other."""
        return {
            key: etag if etag and WHOLE_ETAG.fullmatch(etag) else self.md5(key)
            for key, etag in self.entries() if not key.endswith("/")
        }

    def dirs(self):
        """Every directory: a marker `name/`, or a prefix of some key."""
        found = set()
        for key in self.keys():
            parts = key.split("/")[:-1]
            found.update("/".join(parts[:n]) for n in range(1, len(parts) + 1))
        return found

    def unfinished_uploads(self):
        return len(self.client.list_multipart_uploads(Bucket=self.name).get("Uploads", ()))

    def close(self):
        self.server.close()


class Server:
    """An S3 server on a free port of the loopback interface, stopped by its own id."""

    def __init__(self, directory, argv_for_port):
        for _ in range(5):
            port = free_port()
            self.endpoint = f"http://127.0.0.1:{port}"
            self.log_path = os.path.join(directory, "s3-server.log")
            self.child = process.start(argv_for_port(port), self.log_path, env={**os.environ, "RUST_LOG": "error"})
            process.wait_until(lambda: self.child.poll() is not None or accepts(port), 60, "the S3 server")
            if self.child.poll() is None:
                return
        raise RuntimeError(f"the S3 server does not start:\n{process.tail(self.log_path)}")

    def close(self):
        process.stop(self.child, 3)


def moto(directory):
    """moto_server: keeps everything in memory, checks no signature, otherwise the most faithful."""
    beside = os.path.join(os.path.dirname(sys.executable), "moto_server")
    program = beside if os.access(beside, os.X_OK) else shutil.which("moto_server")
    if not program:
        raise RuntimeError("moto_server is not installed (pip install 'moto[server]' boto3)")
    return Bucket(Server(directory, lambda port: [program, "-H", "127.0.0.1", "-p", port]))


def s3s_fs(directory):
    """s3s-fs: objects are files below a directory; checks signatures. `a` and `a/b` cannot both be objects there."""
    program = shutil.which("s3s-fs")
    if not program:
        raise RuntimeError("s3s-fs is not installed (cargo install s3s-fs --version 0.14.1 --features binary)")
    root = os.path.join(directory, "s3s-fs")
    os.makedirs(root)
    return Bucket(Server(directory, lambda port: [
        program, "--host", "127.0.0.1", "--port", port, "--access-key", ACCESS_KEY, "--secret-key", SECRET_KEY, root,
    ]))


def free_port():
    """Below the ports that the kernel gives to outgoing connections: asking again and again whether a server listens on
    one of those ends in a connection to oneself."""
    while True:
        port = random.randrange(12000, 32000)
        with socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port


def accepts(port):
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True
