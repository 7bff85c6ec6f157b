"""A tap: a TCP port in front of a server that keeps every byte a client sends."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from urllib.parse import urlsplit


class Tap:
    """Listens on `host`, forwards to `behind` (a URL) or to nobody, and remembers what came in."""

    def __init__(self, behind: str | None = None, host: str = "127.0.0.1") -> None:
        self._behind = urlsplit(behind) if behind else None
        self._listener = socket.create_server((host, 0))
        self._taken: list[bytes] = []
        self.url = f"http://{host}:{self._listener.getsockname()[1]}"
        self.connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def taken(self) -> bytes:
        """Every byte that came in, of all connections."""
        return b"".join(self._taken)

    def close(self) -> None:
        """Listen no more."""
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.connections += 1
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError):
            if self._behind is None:
                while part := client.recv(65536):
                    self._taken.append(part)
                return
            with socket.create_connection((self._behind.hostname, self._behind.port or 80)) as server:
                threading.Thread(target=_pump, args=(server, client), daemon=True).start()
                while part := client.recv(65536):
                    self._taken.append(part)
                    server.sendall(part)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while part := source.recv(65536):
            sink.sendall(part)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_RDWR)


class Redirector:
    """A server that answers every request with a redirect to another one, as a hostile or confused proxy would."""

    def __init__(self, to: str) -> None:
        self._to = to
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Listen no more."""
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError):
            head = client.recv(65536).partition(b"\r\n")[0].split(b" ")
            path = head[1].decode() if len(head) > 1 else "/"
            if path in ("/api/tags", "/api/ps", "/v1/models"):  # whole enough to be sent jobs
                body = b'{"models":[{"name":"gemma3:4b"}],"object":"list","data":[{"id":"m","object":"model"}]}'
                client.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n")
            else:
                body = b""
                client.sendall(f"HTTP/1.1 307 Temporary Redirect\r\nLocation: {self._to}{path}\r\n".encode())
            client.sendall(f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
