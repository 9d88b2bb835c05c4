"""A WebSocket server and client of the library `websockets`.

    websocket.py serve             prints its port; sends back every message until its standard input ends
    websocket.py talk HOST PORT    talks to ws://HOST/chat over the proxy at 127.0.0.1:PORT, prints `done`
"""

import hashlib
import os
import socket
import sys
import threading

from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect
from websockets.sync.server import serve


def echo(connection):
    for message in connection:
        if message == "close":
            connection.close(4000, "as you wish")
            return
        connection.send(message)


def refuse(connection, request):
    if request.path == "/refused":
        return connection.respond(403, "not you\n")
    return None


def listen():
    with serve(echo, "127.0.0.1", 0, process_request=refuse, max_size=None) as server:
        print(server.socket.getsockname()[1], flush=True)
        threading.Thread(target=lambda: (sys.stdin.read(), server.shutdown()), daemon=True).start()
        server.serve_forever()


def opened(host, port, path="/chat"):
    way = socket.create_connection(("127.0.0.1", port), timeout=20)
    return connect(f"ws://{host}{path}", sock=way, proxy=None, max_size=None)


def talk(host, port):
    with opened(host, port) as connection:
        for message in ["hello", "", "\u00e4\u4e2d", b"\x00\xff", os.urandom(1 << 20), "x" * 70_000]:
            connection.send(message)
            assert connection.recv(timeout=20) == message, message[:20]
        # In fragments, with a ping between them.
        connection.send(["one ", "two ", "three"])
        assert connection.ping().wait(20), "no pong"
        assert connection.recv(timeout=20) == "one two three"
        # Both ways at once.
        sent, received = hashlib.sha256(), hashlib.sha256()

        def send():
            for _ in range(64):
                piece = os.urandom(32 << 10)
                sent.update(piece)
                connection.send(piece)

        sender = threading.Thread(target=send)
        sender.start()
        for _ in range(64):
            received.update(connection.recv(timeout=20))
        sender.join()
        assert sent.digest() == received.digest(), "what came back is something else"
        connection.send("close")
        try:
            raise AssertionError(f"behind the end: {connection.recv(timeout=20)!r}")
        except ConnectionClosed as end:
            assert (end.rcvd.code, end.rcvd.reason) == (4000, "as you wish"), end
    try:
        raise AssertionError(f"a refused handshake: {opened(host, port, '/refused')}")
    except InvalidStatus as refused:
        assert (refused.response.status_code, refused.response.body) == (403, b"not you\n"), refused.response
    print("done", flush=True)


if sys.argv[1] == "serve":
    listen()
else:
    talk(sys.argv[2], int(sys.argv[3]))
