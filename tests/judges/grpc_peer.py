"""Both ends of gRPC calls with the C core that most languages use (grpcio), without generated code.

    grpc_peer.py server                          serves judge.Echo and grpc.health.v1.Health on a free port until it is killed
    grpc_peer.py client ADDRESS AUTHORITY CASE   runs one case of `CASES` and prints what it saw

Each prints lines of JSON; the server's first one is {"port": PORT}. `hold` reads lines from standard input: each is one message of a
stream that stays open until the input ends.
"""

import hashlib
import json
import random
import sys
import threading
import time
from concurrent import futures

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
SERVICE = "judge.Echo"
BINARY = bytes(range(256))
LARGE = 4 * 1024 * 1024
MESSAGES = 300


def say(**fields):
    print(json.dumps(fields), flush=True)


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def messages(seed, count=MESSAGES):
    """Messages of every size from nothing to beyond two frames."""
    source = random.Random(seed)
    for number in range(count):
        yield source.randbytes((0, 1, 100, 16_384, 40_000)[number % 5])


# ---- server ------------------------------------------------------------------------------------------------------


def unary(request, context):
    metadata = dict(context.invocation_metadata())
    returned = tuple((name, value) for name, value in metadata.items() if name.startswith("x-judge"))
    context.send_initial_metadata(returned)
    context.set_trailing_metadata((("x-judge-end-bin", BINARY), ("x-judge-sha256", sha256(request))))
    if "x-judge-abort" in metadata:
        context.abort(grpc.StatusCode[metadata["x-judge-abort"]], "Größe: 100 % \n zu groß")
    return request


def upload(requests, _context):
    digest = hashlib.sha256()
    count = 0
    for request in requests:
        digest.update(request)
        count += 1
    return json.dumps([count, digest.hexdigest()]).encode()


def download(request, _context):
    yield from messages(request.decode())


def chat(requests, context):
    context.add_callback(lambda: say(event="chat ended"))
    for request in requests:
        yield request


def slow(_request, context):
    """Answers nothing, and tells when the caller has gone and what time it was given."""
    remaining = context.time_remaining()
    gone = threading.Event()
    context.add_callback(gone.set)
    say(event="slow began", remaining=remaining)
    gone.wait(60)
    say(event="slow ended", active=context.is_active())
    return b""


def server():
    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Upload": grpc.stream_unary_rpc_method_handler(upload),
        "Download": grpc.unary_stream_rpc_method_handler(download),
        "Chat": grpc.stream_stream_rpc_method_handler(chat),
        "Slow": grpc.unary_unary_rpc_method_handler(slow),
    }
    serving = grpc.server(futures.ThreadPoolExecutor(64), options=UNLIMITED)
    serving.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    state = health.HealthServicer()
    state.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
    state.set("judge.Ill", health_pb2.HealthCheckResponse.NOT_SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(state, serving)
    port = serving.add_insecure_port("127.0.0.1:0")
    serving.start()
    say(port=port)
    serving.wait_for_termination()


# ---- client ------------------------------------------------------------------------------------------------------


def failed(error):
    return {"code": error.code().name, "details": error.details()}


def case_unary(channel):
    call = channel.unary_unary(f"/{SERVICE}/Unary")
    for size in (0, 1, 16_384, 65_535, LARGE):
        data = random.Random(size).randbytes(size)
        metadata = (("x-judge-text", "plain"), ("x-judge-data-bin", BINARY))
        response, context = call.with_call(data, metadata=metadata, timeout=30)
        initial, trailing = dict(context.initial_metadata()), dict(context.trailing_metadata())
        say(
            size=size,
            same=response == data,
            text=initial.get("x-judge-text"),
            binary=initial.get("x-judge-data-bin") == BINARY,
            end=trailing.get("x-judge-end-bin") == BINARY,
            hashed=trailing.get("x-judge-sha256") == sha256(data),
        )


def case_status(channel):
    """Every status that a server may send, with a message that needs percent-encoding."""
    call = channel.unary_unary(f"/{SERVICE}/Unary")
    for code in grpc.StatusCode:
        if code is grpc.StatusCode.OK:
            continue
        try:
            call(b"x", metadata=(("x-judge-abort", code.name),), timeout=30)
            say(wanted=code.name, code="OK")
        except grpc.RpcError as error:
            trailing = dict(error.trailing_metadata())
            say(wanted=code.name, **failed(error), end=trailing.get("x-judge-end-bin") == BINARY)


def case_plain(channel):
    """One call without anything: for what a proxy says itself."""
    try:
        say(code="OK", same=channel.unary_unary(f"/{SERVICE}/Unary")(b"x", timeout=30) == b"x")
    except grpc.RpcError as error:
        say(**failed(error))


def case_upload(channel):
    sent = list(messages("up"))
    count, digest = json.loads(channel.stream_unary(f"/{SERVICE}/Upload")(iter(sent), timeout=60))
    say(same=count == len(sent) and digest == sha256(b"".join(sent)))


def case_download(channel):
    got = list(channel.unary_stream(f"/{SERVICE}/Download")(b"down", timeout=60))
    say(same=got == list(messages("down")))


def case_chat(channel):
    """Each message waits for the echo of the one before: nothing may be held back."""
    back = threading.Semaphore(1)

    def asked():
        for message in messages("chat"):
            back.acquire()
            yield message

    got = []
    for message in channel.stream_stream(f"/{SERVICE}/Chat")(asked(), timeout=60):
        got.append(message)
        back.release()
    say(same=got == list(messages("chat")))


def case_deadline(channel):
    """The connections are there before: the time is for the call alone, also on a machine that is busy."""
    channel.unary_unary(f"/{SERVICE}/Unary")(b"", timeout=30)
    began = time.monotonic()
    try:
        channel.unary_unary(f"/{SERVICE}/Slow")(b"", timeout=4)
    except grpc.RpcError as error:
        say(**failed(error), seconds=time.monotonic() - began)


def case_cancel(channel):
    calls = [channel.stream_stream(f"/{SERVICE}/Chat")(iter_forever(threading.Event())) for _ in range(3)]
    for call in calls:
        next(call)
        call.cancel()
        say(code=call.code().name)
    say(**after(channel))


def iter_forever(never):
    yield b"first"
    never.wait(120)


def after(channel):
    """The connection is still of use."""
    return {"after": channel.unary_unary(f"/{SERVICE}/Unary")(b"after", timeout=30) == b"after"}


def case_health(channel):
    stub = health_pb2_grpc.HealthStub(channel)
    names = health_pb2.HealthCheckResponse.ServingStatus.Name
    for service in ("", SERVICE, "judge.Ill", "judge.None"):
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=30)
            say(service=service, status=names(answer.status))
        except grpc.RpcError as error:
            say(service=service, status=error.code().name)
    watch = stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE), timeout=30)
    say(service="watch", status=names(next(watch).status))
    watch.cancel()


def case_many(channel):
    """Calls of one connection at once."""
    call = channel.unary_unary(f"/{SERVICE}/Unary")
    sent = list(messages("many", 500))
    running = [call.future(message, timeout=60) for message in sent]
    say(same=[one.result() for one in running] == sent)


def case_hold(channel):
    echoed = channel.stream_stream(f"/{SERVICE}/Chat")((line.encode() for line in sys.stdin))
    try:
        for message in echoed:
            say(echo=message.decode().strip())
        say(code=echoed.code().name)
    except grpc.RpcError as error:
        say(**failed(error))


CASES = {name[len("case_") :]: function for name, function in list(globals().items()) if name.startswith("case_")}


def client(address, authority, case):
    with grpc.insecure_channel(address, options=UNLIMITED + [("grpc.default_authority", authority)]) as channel:
        CASES[case](channel)


def main(arguments):
    {"server": server, "client": client}[arguments[0]](*arguments[1:])


main(sys.argv[1:])
