"""WebSocket from both ends: over HTTP/1.1 with the websockets library, over HTTP/2 (RFC 8441) with hyper-h2 beneath its frames.

    ws_peer.py server h1|h2                             echoes messages on a free port until it is killed
    ws_peer.py client h1|h2 ADDRESS AUTHORITY PATH      sends messages of many sizes, expects them back, and closes with code 4001

Each prints lines of JSON; the server's first one is {"port": PORT}.
"""

import asyncio
import random
import sys

import h2.settings
import websockets
from h2_peer import Endpoint, say
from websockets.frames import Opcode
from websockets.protocol import Protocol, Side

PROTOCOL = "judge.echo"
CODE = 4001


def messages():
    source = random.Random("ws")
    for size in (0, 1, 125, 126, 65_535, 65_536, 300_000):
        yield source.randbytes(size)
        yield "ä" * (size // 2)


# ---- HTTP/1.1 ----------------------------------------------------------------------------------------------------


async def echo(connection):
    try:
        async for message in connection:
            await connection.send(message)
    except websockets.ConnectionClosed:
        # Any code but 1000 and 1001.
        pass
    say(event="closed", code=connection.close_code)


async def server_h1():
    async with websockets.serve(echo, "127.0.0.1", 0, subprotocols=[PROTOCOL], max_size=None) as serving:
        say(port=serving.sockets[0].getsockname()[1])
        await serving.serve_forever()


async def client_h1(address, authority, path):
    uri = f"ws://{authority}{path}"
    host, port = address.rsplit(":", 1)
    try:
        opened = websockets.connect(
            uri, host=host, port=int(port), subprotocols=[PROTOCOL], max_size=None, proxy=None, open_timeout=20
        )
        async with opened as connection:
            same = 0
            for message in messages():
                await connection.send(message)
                same += await connection.recv() == message
            await connection.close(CODE)
            say(subprotocol=connection.subprotocol, same=same, of=len(list(messages())), code=connection.close_code)
    except websockets.InvalidStatus as error:
        say(status=error.response.status_code)


# ---- HTTP/2 ------------------------------------------------------------------------------------------------------


class Tunnel:
    """WebSocket frames within one stream."""

    def __init__(self, endpoint, stream, side):
        self.endpoint, self.stream = endpoint, stream
        self.protocol = Protocol(side, max_size=None)
        self.parts, self.is_text = [], False

    def receive(self, data):
        self.protocol.receive_data(data)
        whole = []
        for frame in self.protocol.events_received():
            if frame.opcode in (Opcode.TEXT, Opcode.BINARY):
                self.parts, self.is_text = [], frame.opcode is Opcode.TEXT
            if frame.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
                self.parts.append(bytes(frame.data))
                if frame.fin:
                    message = b"".join(self.parts)
                    whole.append(message.decode() if self.is_text else message)
        self.flush()
        return whole

    def send(self, message):
        if isinstance(message, str):
            self.protocol.send_text(message.encode())
        else:
            self.protocol.send_binary(message)
        self.flush()

    def flush(self):
        for piece in self.protocol.data_to_send():
            if piece:
                self.endpoint.put(self.stream, piece)
            else:
                # The end of what this side sends.
                self.endpoint.put(self.stream, b"", [])


class Server(Endpoint):
    settings = {h2.settings.SettingCodes.ENABLE_CONNECT_PROTOCOL: 1}

    def __init__(self):
        super().__init__()
        self.tunnels = {}

    def on_RequestReceived(self, event):
        fields = dict(event.headers)
        say(event="request", headers=fields)
        if fields[":method"] != "CONNECT" or fields.get(":protocol") != "websocket":
            self.h2.send_headers(event.stream_id, [(":status", "400")], end_stream=True)
            return
        self.h2.send_headers(event.stream_id, [(":status", "200"), ("sec-websocket-protocol", PROTOCOL)])
        self.tunnels[event.stream_id] = Tunnel(self, event.stream_id, Side.SERVER)

    def on_DataReceived(self, event):
        tunnel = self.tunnels[event.stream_id]
        for message in tunnel.receive(event.data):
            tunnel.send(message)

    def on_StreamEnded(self, event):
        tunnel = self.tunnels.pop(event.stream_id, None)
        if tunnel:
            tunnel.protocol.receive_eof()
            say(event="closed", code=tunnel.protocol.close_code)


class Client(Endpoint):
    is_client = True

    def __init__(self, authority, path, done):
        super().__init__()
        self.authority, self.path, self.done = authority, path, done
        self.tunnel = None
        self.waiting = list(messages())
        self.count, self.same = len(self.waiting), 0

    def on_RemoteSettingsChanged(self, _event):
        if self.tunnel:
            return
        if not self.h2.remote_settings.enable_connect_protocol:
            say(violation="no SETTINGS_ENABLE_CONNECT_PROTOCOL")
            self.done.set_result(None)
            return
        stream = self.h2.get_next_available_stream_id()
        head = [(":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "http"), (":path", self.path)]
        head += [(":authority", self.authority), ("sec-websocket-version", "13"), ("sec-websocket-protocol", PROTOCOL)]
        self.h2.send_headers(stream, head)
        self.tunnel = Tunnel(self, stream, Side.CLIENT)

    def on_ResponseReceived(self, event):
        fields = dict(event.headers)
        if fields[":status"] != "200":
            say(status=int(fields[":status"]))
            self.done.set_result(None)
            return
        self.subprotocol = fields.get("sec-websocket-protocol")
        self.tunnel.send(self.waiting[0])

    def on_DataReceived(self, event):
        for message in self.tunnel.receive(event.data):
            self.same += message == self.waiting.pop(0)
            if self.waiting:
                self.tunnel.send(self.waiting[0])
            else:
                self.tunnel.protocol.send_close(CODE)
                self.tunnel.flush()

    def on_StreamEnded(self, _event):
        self.tunnel.protocol.receive_eof()
        code = self.tunnel.protocol.close_code
        say(subprotocol=self.subprotocol, same=self.same, of=self.count, code=code)
        self.tunnel.flush()
        self.done.set_result(None)

    def on_StreamReset(self, event):
        say(reset=event.stream_id, code=int(event.error_code))
        self.done.set_result(None)

    def connection_lost(self, error):
        if not self.done.done():
            say(lost=str(error))
            self.done.set_result(None)


async def server_h2():
    serving = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0)
    say(port=serving.sockets[0].getsockname()[1])
    await serving.serve_forever()


async def client_h2(address, authority, path):
    loop = asyncio.get_running_loop()
    host, port = address.rsplit(":", 1)
    done = loop.create_future()
    transport, _ = await loop.create_connection(lambda: Client(authority, path, done), host, int(port))
    await asyncio.wait_for(done, 60)
    transport.close()


def main(arguments):
    role, version, *rest = arguments
    asyncio.run(globals()[f"{role}_{version}"](*rest))


main(sys.argv[1:])
