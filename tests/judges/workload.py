"""The Workload API from the other side: a client of it, and a SPIRE agent's stand-in, both with code that others wrote (grpcio, the
SPIFFE project's Python library with its generated messages, cryptography).

    workload.py [--uid UID] watch SOCKET DIR COUNT   COUNT messages of FetchX509SVID; DIR gets chain, key and bundle of each as PEM
    workload.py [--uid UID] status SOCKET HEADER     status of each method, with `workload.spiffe.io: HEADER` unless HEADER is empty
    workload.py [--uid UID] library SOCKET AUDIENCE  what the SPIFFE library makes of it
    workload.py agent SOCKET LIFE_S ID...            serves SVIDs with these ids, new ones at half of their life, until it is killed

Each prints lines of JSON. With --uid it becomes that user before it connects.
"""

import datetime
import json
import os
import ssl
import sys
import threading
from concurrent import futures

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from spiffe import SpiffeId, WorkloadApiClient
from spiffe._proto import workload_pb2 as messages
from spiffe._proto import workload_pb2_grpc as services

DER = serialization.Encoding.DER
HEADER = [("workload.spiffe.io", "true")]


def say(**fields):
    print(json.dumps(fields), flush=True)


def certificates(der):
    """Splits certificates that stand one after the other."""
    found = []
    while der:
        if der[0] != 0x30 or der[1] != 0x82:
            raise ValueError("not a sequence of certificates")
        length = 4 + int.from_bytes(der[2:4], "big")
        found.append(x509.load_der_x509_certificate(der[:length]))
        der = der[length:]
    return found


def pem(list_of_certificates):
    return "".join(ssl.DER_cert_to_PEM_cert(one.public_bytes(DER)) for one in list_of_certificates)


def watch(socket, folder, count):
    stub = services.SpiffeWorkloadAPIStub(grpc.insecure_channel(f"unix://{socket}"))
    stream = stub.FetchX509SVID(messages.X509SVIDRequest(), metadata=HEADER, timeout=60)
    for number, message in zip(range(int(count)), stream):
        svid = message.svids[0]
        chain = certificates(svid.x509_svid)
        key = serialization.load_der_private_key(svid.x509_svid_key, None)
        parts = {
            "leaf": pem(chain[:1]),
            "intermediates": pem(chain[1:]),
            "bundle": pem(certificates(svid.bundle)),
            "key": key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ).decode(),
        }
        for name, text in parts.items():
            with open(os.path.join(folder, f"{number}-{name}.pem"), "w", encoding="ascii") as file:
                file.write(text)
        say(
            ids=[one.spiffe_id for one in message.svids],
            hints=[one.hint for one in message.svids],
            key_fits=key.public_key() == chain[0].public_key(),
            serial=chain[0].serial_number,
        )


def status(socket, header):
    stub = services.SpiffeWorkloadAPIStub(grpc.insecure_channel(f"unix://{socket}"))
    metadata = [("workload.spiffe.io", header)] if header else []
    calls = {
        "FetchX509SVID": messages.X509SVIDRequest(),
        "FetchX509Bundles": messages.X509BundlesRequest(),
        "FetchJWTSVID": messages.JWTSVIDRequest(audience=["a"]),
        "FetchJWTBundles": messages.JWTBundlesRequest(),
        "ValidateJWTSVID": messages.ValidateJWTSVIDRequest(audience="a", svid="x"),
    }
    for name, request in calls.items():
        try:
            answer = getattr(stub, name)(request, metadata=metadata, timeout=20)
            if hasattr(answer, "cancel"):
                next(answer)
                answer.cancel()
            say(method=name, code="OK")
        except grpc.RpcError as error:
            say(method=name, code=error.code().name, details=error.details())


def library(socket, audience):
    with WorkloadApiClient(f"unix://{socket}") as client:
        context = client.fetch_x509_context(timeout=20)
        svid = context.default_svid
        bundles = context.x509_bundle_set
        tokens = client.fetch_jwt_svids(audience={audience}, timeout=20)
        one = client.fetch_jwt_svid(audience={audience}, subject=SpiffeId(str(svid.spiffe_id)), timeout=20)
        authorities = client.fetch_jwt_bundles(timeout=20).get_bundle_for_trust_domain(svid.spiffe_id.trust_domain)
        # The library verifies the signature by the bundle itself.
        own = type(one).parse_and_validate(one.token, authorities, {audience})
        judged = client.validate_jwt_svid(one.token, audience, timeout=20)
        try:
            client.validate_jwt_svid(one.token, "somebody else", timeout=20)
            foreign = "accepted"
        except Exception as error:  # whatever the library makes of it
            foreign = str(error)
        say(
            id=str(svid.spiffe_id),
            chain=len(svid.cert_chain),
            roots=len(bundles.get_bundle_for_trust_domain(svid.spiffe_id.trust_domain).x509_authorities),
            tokens=[str(token.spiffe_id) for token in tokens],
            own=str(own.spiffe_id),
            judged=str(judged.spiffe_id),
            foreign=foreign,
        )


class Agent(services.SpiffeWorkloadAPIServicer):
    """As much of a SPIRE agent as control asks for."""

    def __init__(self, life_s, ids):
        self.life_s, self.ids = life_s, ids
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "stand-in for SPIRE")])
        trust_domain = "/".join(ids[0].split("/")[:3])
        self.root = (
            self.builder(self.name, self.key.public_key(), trust_domain, datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()), critical=False)
            .add_extension(usage(sign=False), critical=True)
            .sign(self.key, hashes.SHA256())
        )

    def builder(self, subject, key, uri, life):
        now = datetime.datetime.now(datetime.timezone.utc)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(seconds=5))
            .not_valid_after(now + life)
            .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=False)
        )

    def svid(self, uri):
        """A new one; the line that says so is what a test compares with."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "stand-in")])
        leaf = (
            self.builder(name, key.public_key(), uri, datetime.timedelta(seconds=self.life_s))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(usage(sign=True), critical=True)
            .sign(self.key, hashes.SHA256())
        )
        say(issued=uri, serial=format(leaf.serial_number, "x"))
        pkcs8 = key.private_bytes(DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        return messages.X509SVID(
            spiffe_id=uri,
            x509_svid=leaf.public_bytes(DER),
            x509_svid_key=pkcs8,
            bundle=self.root.public_bytes(DER),
        )

    def FetchX509SVID(self, request, context):
        if HEADER[0] not in context.invocation_metadata():
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "security header missing from request")
        ended = threading.Event()
        context.add_callback(ended.set)
        while not ended.is_set():
            yield messages.X509SVIDResponse(svids=[self.svid(uri) for uri in self.ids])
            ended.wait(self.life_s / 2)


def usage(sign):
    return x509.KeyUsage(
        digital_signature=sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=not sign,
        crl_sign=not sign,
        encipher_only=False,
        decipher_only=False,
    )


def agent(socket, life_s, *ids):
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
    services.add_SpiffeWorkloadAPIServicer_to_server(Agent(int(life_s), ids), server)
    if server.add_insecure_port(f"unix://{socket}") == 0:
        raise OSError(f"{socket} cannot be bound")
    server.start()
    say(serves=socket)
    server.wait_for_termination()


def main(arguments):
    if arguments[0] == "--uid":
        uid = int(arguments[1])
        arguments = arguments[2:]
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    command = {"watch": watch, "status": status, "library": library, "agent": agent}[arguments[0]]
    command(*arguments[1:])


main(sys.argv[1:])
