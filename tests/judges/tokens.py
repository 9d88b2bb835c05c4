"""Signs JSON Web Tokens, good and bad, with PyJWT and cryptography, and prints them with their key sets as JSON."""

import base64
import hashlib
import hmac
import json
import time

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

NOW = int(time.time())
CLAIMS = {
    "iss": "https://issuer.example.com",
    "aud": ["shop", "other"],
    "azp": "app-7",
    "sub": "jason",
    "iat": NOW,
    "exp": NOW + 3600,
    "groups": ["dev", "admin"],
    "plan": {"level": "gold"},
}


def b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def jwk(algorithm, key, kid):
    public = jwt.get_algorithm_by_name(algorithm).to_jwk(key.public_key())
    return {**json.loads(public), "kid": kid, "use": "sig", "key_ops": ["verify"]}


def sign(key, algorithm, kid, **changes):
    claims = {name: value for name, value in {**CLAIMS, **changes}.items() if value is not None}
    return jwt.encode(claims, key, algorithm=algorithm, headers={"kid": kid} if kid else None)


def raw(header, payload, signature=b""):
    return ".".join(b64(part if isinstance(part, bytes) else json.dumps(part).encode()) for part in (header, payload, signature))


r, r2 = (rsa.generate_private_key(public_exponent=65537, key_size=2048) for _ in range(2))
e, e384 = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP384R1())
o = ed25519.Ed25519PrivateKey.generate()
keys = [jwk("RS256", r, "r"), jwk("ES256", e, "e"), jwk("ES384", e384, "e384"), jwk("EdDSA", o, "o")]

good = {name: sign(r, name, "r") for name in ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")}
good |= {"ES256": sign(e, "ES256", "e"), "ES384": sign(e384, "ES384", "e384"), "EdDSA": sign(o, "EdDSA", "o")}

pem = r.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
confused = raw({"alg": "HS256", "typ": "JWT", "kid": "r"}, CLAIMS).rsplit(".", 1)[0]
confused += "." + b64(hmac.new(pem, confused.encode(), hashlib.sha256).digest())
head, payload, signature = good["RS256"].split(".")
deep = {"a": 1}
for _ in range(200):
    deep = {"a": deep}

bad = {
    "expired": sign(r, "RS256", "r", exp=NOW - 600),
    "not_yet_valid": sign(r, "RS256", "r", nbf=NOW + 600),
    "issuer": sign(r, "RS256", "r", iss="https://other.example.com"),
    "no_issuer": sign(r, "RS256", "r", iss=None),
    "audience": sign(r, "RS256", "r", aud="elsewhere"),
    "kid": sign(r, "RS256", "unknown"),
    "foreign_key": sign(r2, "RS256", "r"),
    "key_of_another_kind": sign(r, "RS256", "e"),
    "none": raw({"alg": "none"}, CLAIMS),
    "None": raw({"alg": "None", "kid": "r"}, CLAIMS),
    "hmac_with_the_public_key": confused,
    "no_signature": f"{head}.{payload}.",
    "changed": f"{head}.{b64(json.dumps({**CLAIMS, 'sub': 'admin'}).encode())}.{signature}",
    "two_parts": f"{head}.{payload}",
    "five_parts": f"{head}.{payload}.{signature}.{payload}.{signature}",
    "no_json": raw(b"{", b"{", b"x"),
    "critical": raw({"alg": "RS256", "kid": "r", "crit": ["exp"]}, CLAIMS, b"x" * 256),
    "nested": sign(r, "RS256", "r", deep=deep),
    "oversized": sign(r, "RS256", "r", padding="x" * 20_000),
}
print(
    json.dumps(
        {
            "jwks": {"keys": keys},
            "other_jwks": {"keys": [jwk("RS256", r2, "r2")]},
            "good": good,
            "bad": bad,
            "rotated": sign(r2, "RS256", "r2"),
        }
    )
)
