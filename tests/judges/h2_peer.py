"""Both ends of HTTP/2 with hyper-h2, which takes no frame that RFC 9113 forbids: whatever it refuses is told and ends the program's
connection.

    h2_peer.py server                                 echoes bodies, with trailers, on a free port until it is killed
    h2_peer.py client ADDRESS AUTHORITY STREAMS SIZE  STREAMS requests at once with bodies of SIZE bytes; the bodies must come back

Each prints lines of JSON; the server's first one is {"port": PORT}.
"""

import asyncio
import hashlib
import json
import random
import sys

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings


def say(**fields):
    print(json.dumps(fields), flush=True)


class Endpoint(asyncio.Protocol):
    """One side of a connection. Subclasses have `on_EVENT` methods, such as `on_DataReceived`."""

    is_client = False
    settings = {}

    def __init__(self):
        config = h2.config.H2Configuration(client_side=self.is_client, header_encoding="utf-8")
        self.h2 = h2.connection.H2Connection(config)
        self.out = {}
        self.transport = None

    def connection_made(self, transport):
        self.transport = transport
        if self.settings:
            self.h2.local_settings = h2.settings.Settings(client=self.is_client, initial_values=self.settings)
        self.h2.initiate_connection()
        self.begun()
        self.flush()

    def begun(self):
        pass

    def flush(self):
        self.transport.write(self.h2.data_to_send())

    def data_received(self, data):
        try:
            events = self.h2.receive_data(data)
        except h2.exceptions.ProtocolError as error:
            say(violation=f"{type(error).__name__}: {error}")
            self.flush()
            self.transport.close()
            return
        for event in events:
            handler = getattr(self, f"on_{type(event).__name__}", None)
            if handler:
                handler(event)
            if isinstance(event, h2.events.DataReceived) and event.flow_controlled_length:
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        for stream in list(self.out):
            self.push(stream)
        self.flush()

    def put(self, stream, data, end=None):
        """Data to be sent as windows allow; `end`: then trailers, or a mere end where there are none."""
        buffer, _ = self.out.setdefault(stream, [bytearray(), None])
        buffer += data
        if end is not None:
            self.out[stream][1] = end
        self.push(stream)

    def push(self, stream):
        buffer, end = self.out[stream]
        while buffer:
            room = min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size, len(buffer))
            if room <= 0:
                return
            self.h2.send_data(stream, bytes(buffer[:room]))
            del buffer[:room]
        if end is not None:
            del self.out[stream]
            if end:
                self.h2.send_headers(stream, end, end_stream=True)
            else:
                self.h2.end_stream(stream)


class Server(Endpoint):
    def __init__(self):
        super().__init__()
        self.digests = {}

    def on_RequestReceived(self, event):
        fields = dict(event.headers)
        self.digests[event.stream_id] = hashlib.sha256()
        response = [(":status", "200"), ("x-path", fields[":path"]), ("x-scheme", fields[":scheme"])]
        self.h2.send_headers(event.stream_id, response)

    def on_DataReceived(self, event):
        self.digests[event.stream_id].update(event.data)
        self.put(event.stream_id, event.data)

    def on_StreamEnded(self, event):
        trailers = [("x-sha256", self.digests.pop(event.stream_id).hexdigest())]
        self.put(event.stream_id, b"", trailers)

    def on_StreamReset(self, event):
        self.out.pop(event.stream_id, None)
        say(reset=event.stream_id, code=int(event.error_code))


class Client(Endpoint):
    is_client = True

    def __init__(self, authority, streams, size, done):
        super().__init__()
        self.authority, self.size, self.done = authority, size, done
        self.waiting = list(range(streams))
        self.sent, self.got, self.trailers = {}, {}, {}
        self.good = 0

    def on_RemoteSettingsChanged(self, _event):
        self.start()

    def start(self):
        while self.waiting and self.h2.open_outbound_streams < self.h2.remote_settings.max_concurrent_streams:
            number = self.waiting.pop()
            stream = self.h2.get_next_available_stream_id()
            body = random.Random(number).randbytes(self.size)
            self.sent[stream], self.got[stream] = body, bytearray()
            head = [(":method", "POST"), (":scheme", "http"), (":authority", self.authority), (":path", f"/{number}")]
            self.h2.send_headers(stream, head)
            self.put(stream, body, [])

    def on_ResponseReceived(self, event):
        if dict(event.headers)[":status"] != "200":
            say(stream=event.stream_id, headers=dict(event.headers))

    def on_DataReceived(self, event):
        self.got[event.stream_id] += event.data

    def on_TrailersReceived(self, event):
        self.trailers[event.stream_id] = dict(event.headers)

    def on_StreamEnded(self, event):
        sent, got = self.sent.pop(event.stream_id), self.got.pop(event.stream_id)
        digest = self.trailers.get(event.stream_id, {}).get("x-sha256")
        if sent == got and digest == hashlib.sha256(sent).hexdigest():
            self.good += 1
        else:
            say(stream=event.stream_id, sent=len(sent), got=len(got), digest=digest)
        self.start()
        if not self.sent:
            self.done.set_result(None)

    def on_StreamReset(self, event):
        say(reset=event.stream_id, code=int(event.error_code))
        self.done.set_result(None)

    def on_ConnectionTerminated(self, event):
        say(goaway=event.last_stream_id, code=int(event.error_code))

    def connection_lost(self, error):
        if not self.done.done():
            say(lost=str(error))
            self.done.set_result(None)


async def server():
    serving = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0)
    say(port=serving.sockets[0].getsockname()[1])
    await serving.serve_forever()


async def client(address, authority, streams, size):
    loop = asyncio.get_running_loop()
    host, port = address.rsplit(":", 1)
    done = loop.create_future()
    _, endpoint = await loop.create_connection(lambda: Client(authority, int(streams), int(size), done), host, int(port))
    await asyncio.wait_for(done, 60)
    say(good=endpoint.good)


def main(arguments):
    asyncio.run({"server": server, "client": client}[arguments[0]](*arguments[1:]))


if __name__ == "__main__":
    main(sys.argv[1:])
