"""A vhost-user relay between User Mode Linux and a daemon.

User Mode Linux up to 6.12 sends SET_MEM_TABLE with room for two regions whatever their number, and daemons built on
the vhost crate refuse a message whose length is not exactly 8 + 32 * regions (fixed in Linux 6.13 by fcbd26d33dfa).
The relay cuts that one message to its true length. Everything else, descriptors included, passes unchanged, and the
data plane does not pass at all: guest memory is shared and the rings are kicked through eventfds.
"""

import array
import os
import socket
import struct
import threading

HEADER = struct.Struct("<III")  # request, flags, payload length
SET_MEM_TABLE = 5
TABLE_HEADER_LEN = 8
REGION_LEN = 32
FDS_MAX = 32


class Relay:
    """Listens on `listen_path` and joins the one connection it takes to the daemon on `daemon_path`."""

    def __init__(self, listen_path, daemon_path):
        self.daemon_path = daemon_path
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(listen_path)
        self.listener.listen(1)
        self.trimmed = 0
        self.thread = threading.Thread(target=self._serve, name="relay", daemon=True)
        self.thread.start()

    def close(self):
        self.listener.close()

    def _serve(self):
        try:
            guest, _ = self.listener.accept()
        except OSError:
            return
        daemon = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with guest, daemon:
            daemon.connect(self.daemon_path)
            back = threading.Thread(target=self._copy_replies, args=(daemon, guest), name="relay-replies", daemon=True)
            back.start()
            self._copy_requests(guest, daemon)
            try:
                daemon.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # the daemon went first
            back.join(30)

    def _copy_requests(self, guest, daemon):
        """Guest to daemon, message by message, because one kind is rewritten."""
        while True:
            head, fds = receive_exact(guest, HEADER.size)
            if len(head) < HEADER.size:
                close_all(fds)
                return
            request, flags, length = HEADER.unpack(head)
            body, more_fds = receive_exact(guest, length)
            fds += more_fds
            if len(body) < length:
                close_all(fds)
                return
            if request == SET_MEM_TABLE and length >= TABLE_HEADER_LEN:
                (regions,) = struct.unpack_from("<I", body)
                true_len = TABLE_HEADER_LEN + REGION_LEN * regions
                if true_len < length:
                    body = body[:true_len]
                    self.trimmed += 1
            message = HEADER.pack(request, flags, len(body)) + body
            try:
                send_all(daemon, message, fds)
            except OSError:
                return
            finally:
                close_all(fds)

    @staticmethod
    def _copy_replies(daemon, guest):
        """Daemon to guest, as a stream."""
        while True:
            try:
                data, fds = receive(daemon, 65536)
                if not data:
                    guest.shutdown(socket.SHUT_RDWR)
                    return
                send_all(guest, data, fds)
                close_all(fds)
            except OSError:
                return


def receive(sock, length):
    """At most `length` bytes, and the descriptors that came with them. No bytes means the peer closed."""
    fds = array.array("i")
    data, ancillary, _, _ = sock.recvmsg(length, socket.CMSG_SPACE(FDS_MAX * fds.itemsize))
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    return data, list(fds)


def receive_exact(sock, length):
    """`length` bytes and the descriptors that came with them; fewer bytes when the peer closed."""
    data, fds = b"", []
    while len(data) < length:
        try:
            part, part_fds = receive(sock, length - len(data))
        except OSError:
            break
        if not part:
            break
        data += part
        fds += part_fds
    return data, fds


def send_all(sock, data, fds):
    """Sends all of `data`, the descriptors with its first byte."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sent = sock.sendmsg([data], rights)
    if sent < len(data):
        sock.sendall(data[sent:])


def close_all(fds):
    for fd in fds:
        os.close(fd)
