"""A network between a client and a server that can be made to be slow, to break and to lose."""

from __future__ import annotations

import random
import socket
import threading
import time
from contextlib import suppress


class Proxy:
    """Hands connections on to a server on this machine, each as the dice say.

    Args:
        port: of the server.
        seed: of the dice.

    Attributes:
        port: of this proxy.
        cuts: the share of requests whose answer is lost, after the server did what it was asked.
        refuses: the share of connections that reach nobody.
        delays_s: how long an answer may be held up.
    """

    def __init__(self, port: int, seed: int) -> None:
        self.cuts = 0.0
        self.refuses = 0.0
        self.delays_s = 0.0
        self.num_cut = 0
        self._server = port
        self._dice = random.Random(seed)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._dice.random() < self.refuses:
                client.close()
                continue
            try:
                server = socket.create_connection(("127.0.0.1", self._server), timeout=60)
            except OSError:
                client.close()
                continue
            threading.Thread(target=self._pump, args=(client, server), daemon=True).start()
            threading.Thread(target=self._answer, args=(server, client), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def _answer(self, server: socket.socket, client: socket.socket) -> None:
        with suppress(OSError):
            while data := server.recv(65536):
                time.sleep(self._dice.uniform(0, self.delays_s))
                if self._dice.random() < self.cuts:
                    self.num_cut += 1
                    break
                client.sendall(data)
        for one in (client, server):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
