"""Reads HTTP/1.1 messages with parsers that others wrote: h11, and llhttp (of Node.js) by way of httptools.

Standard input: a line `PARSER KIND METHOD LENGTH`, then so many bytes, again and again. KIND is `request` or `response`; METHOD is
that of the request which a response answers. Standard output: a line of JSON for each. Text is Latin-1, so that each byte is
a character.
"""

import json
import sys

import h11
import httptools

# Above every bound of ours: what is refused for its size alone says nothing about its meaning.
BYTES_MAX = 1 << 20


def text(value):
    return bytes(value).decode("latin-1")


def fields(headers):
    return [[text(name).lower(), text(value)] for name, value in headers]


def by_h11(kind, method, wire):
    """One message, and what is left of the bytes."""
    if kind == "request":
        parser = h11.Connection(h11.SERVER, max_incomplete_event_size=BYTES_MAX)
    else:
        parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=BYTES_MAX)
        parser.send(h11.Request(method=method, target="/", headers=[("Host", "judge")]))
        parser.send(h11.EndOfMessage())
    parser.receive_data(wire)
    said = {"body": "", "trailers": [], "interim": 0}
    closed = False
    while True:
        event = parser.next_event()
        if event is h11.NEED_DATA:
            if closed or kind == "request":
                return {"incomplete": True}
            # A body may last until the end of the connection.
            said["until_close"] = True
            parser.receive_data(b"")
            closed = True
        elif isinstance(event, h11.Request):
            said.update(method=text(event.method), target=text(event.target), version=text(event.http_version))
            said["fields"] = fields(event.headers)
        elif isinstance(event, h11.InformationalResponse):
            said["interim"] += 1
        elif isinstance(event, h11.Response):
            said.update(status=event.status_code, version=text(event.http_version))
            said["fields"] = fields(event.headers)
        elif isinstance(event, h11.Data):
            said["body"] += text(event.data)
        elif isinstance(event, h11.EndOfMessage):
            said["trailers"] = fields(event.headers)
            said["rest"] = text(parser.trailing_data[0])
            return said
        elif isinstance(event, h11.ConnectionClosed):
            return {"incomplete": True}
        else:
            return {"error": f"{event!r}"}


class Listener:
    """What llhttp calls back; it begins a next message by itself."""

    def __init__(self):
        self.messages = []
        self.current = None

    def on_message_begin(self):
        self.current = {"target": b"", "fields": [], "trailers": [], "body": b"", "in_body": False, "whole": False}
        self.messages.append(self.current)

    def on_url(self, url):
        self.current["target"] += url

    def on_header(self, name, value):
        self.current["trailers" if self.current["in_body"] else "fields"].append((name, value or b""))

    def on_headers_complete(self):
        self.current["in_body"] = True

    def on_body(self, body):
        self.current["body"] += body

    def on_message_complete(self):
        self.current["whole"] = True


def by_llhttp(kind, _method, wire):
    """The same; the rest cannot be told, but whether another message begins in it."""
    listener = Listener()
    parser = (httptools.HttpRequestParser if kind == "request" else httptools.HttpResponseParser)(listener)
    try:
        parser.feed_data(wire)
    except httptools.HttpParserUpgrade:
        pass
    if not listener.messages or not listener.messages[0]["in_body"]:
        return {"incomplete": True}
    first = listener.messages[0]
    said = {"version": parser.get_http_version(), "interim": 0, "rest": "" if len(listener.messages) == 1 else "another"}
    if kind == "request":
        said.update(method=text(parser.get_method()), target=text(first["target"]))
        if not first["whole"]:
            return {"incomplete": True}
    else:
        said["status"] = parser.get_status_code()
    said.update(fields=fields(first["fields"]), trailers=fields(first["trailers"]), body=text(first["body"]))
    return said


def main():
    stdin, stdout = sys.stdin.buffer, sys.stdout
    while line := stdin.readline():
        name, kind, method, length = line.decode("latin-1").split(" ")
        wire = stdin.read(int(length))
        try:
            said = {"h11": by_h11, "llhttp": by_llhttp}[name](kind, method, wire)
        except (h11.RemoteProtocolError, httptools.HttpParserError) as error:
            said = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(said), file=stdout, flush=True)


main()
