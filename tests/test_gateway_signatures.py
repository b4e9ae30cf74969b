"""Canonical requests, held against the official SDK's signer and an independent one."""

import hashlib
import hmac
from typing import Any
from urllib.parse import quote, unquote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hsmd.errors import Error
from hsmd.gateway.signatures import SignatureEvidence, TokenEvidence, evidence
from hsmd.gateway.transcoder import query_pairs
from tests.gateway_kit import SECRET, sdk_signed

PATH = "/v1.0/0123456789abcdef0123456789abcdef/kms/encrypt-data"
_SEGMENT = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=8)


def headers_of(request: Any) -> dict[bytes, bytes]:
    return {name.lower().encode(): value.encode("latin-1") for name, value in request.header_params.items()}


def forwarded(verb: str, uri: str, headers: dict[bytes, bytes], body: bytes) -> dict[str, Any]:
    """What goes to the daemon for a request as it stood on the wire."""
    found = evidence(headers, frozenset())
    path, _, query = uri.partition("?")
    return dict(found.metadata(verb, path.encode("ascii"), query_pairs(query.encode("ascii")), body))


def genuine(metadata: dict[str, Any], secret: str = SECRET) -> bool:
    """The daemon's check, by other means."""
    digest = hashlib.sha256(metadata["hsmd-canonical-request-bin"]).hexdigest()
    text = f"SDK-HMAC-SHA256\n{metadata['hsmd-sdk-date']}\n{digest}"
    expected = hmac.new(secret.encode(), text.encode(), "sha256").hexdigest()
    return expected == str(metadata["hsmd-signature"])


class TestAgainstTheSdk:
    @pytest.mark.parametrize("verb", ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"])
    @pytest.mark.parametrize("body", [None, b'{"a": "\xc3\xa4"}', b"x" * (12 * 1024 * 1024)])
    def test_verbs_and_bodies(self, verb: str, body: bytes | None) -> None:
        request = sdk_signed(verb, PATH, body=body)
        assert genuine(forwarded(verb, request.uri, headers_of(request), body or b""))

    @pytest.mark.parametrize(
        "path",
        [
            "/",
            "/v1.0/",
            "/a b/%20",
            "/%7Euser/~",
            "/\u00e4/\u4e2d",
            "/a%2Fb",
            "/%2525",
            "/a+b",
            "/a;b=c,d@!$&'()*",
        ],
    )
    def test_paths(self, path: str) -> None:
        request = sdk_signed("GET", path)
        wire = quote(request.uri, safe="/%~!$&'()*+,;=:@")  # as an HTTP client writes it
        assert genuine(forwarded("GET", wire, headers_of(request), b""))

    @pytest.mark.parametrize(
        "query",
        [
            [("b", "2"), ("a", "1")],
            [("a", "2"), ("a", "10"), ("a", "")],
            [("name", "\u00e4 +&=/?~*"), ("z", ""), ("\u4e2d", "x"), ("A", "1"), ("_", "2")],
            [("e", "\u00e9"), ("e", "z"), ("e", "A")],
            [("flag", True), ("limit", 10)],
            [("list", ["b", "a"])],
        ],
    )
    def test_queries(self, query: list[tuple[str, Any]]) -> None:
        request = sdk_signed("GET", PATH, query)
        assert genuine(forwarded("GET", request.uri, headers_of(request), b""))
        path, _, text = request.uri.partition("?")
        turned = "&".join(reversed(text.split("&")))  # the order on the wire does not matter
        assert genuine(forwarded("GET", f"{path}?{turned}", headers_of(request), b""))

    def test_headers(self) -> None:
        extra = {"X-Project-Id": "  p  ", "X-Name": "\u00e4\u4e2d", "X_Under": "not signed", "x-empty": ""}
        request = sdk_signed("GET", PATH, headers=extra)
        assert genuine(forwarded("GET", request.uri, headers_of(request), b""))

    @settings(deadline=None)
    @given(
        st.lists(_SEGMENT, min_size=1, max_size=4),
        st.lists(st.tuples(st.text("ab\u00e4 +&", max_size=4), _SEGMENT), max_size=4),
        st.binary(max_size=50),
    )
    def test_anything(self, segments: list[str], query: list[tuple[str, Any]], body: bytes) -> None:
        path = "/" + "/".join(quote(segment, safe="") for segment in segments)
        request = sdk_signed("POST", path, [pair for pair in query if pair[0]], body)
        assert genuine(forwarded("POST", request.uri, headers_of(request), body))


class TestChangesAreSeen:
    def test_of_every_part(self) -> None:
        body = b'{"key_id": "k"}'
        request = sdk_signed("POST", PATH, [("a", "1")], body)
        headers = headers_of(request)
        assert genuine(forwarded("POST", request.uri, headers, body))
        assert not genuine(forwarded("PUT", request.uri, headers, body))
        assert not genuine(forwarded("POST", request.uri.replace("encrypt", "decrypt"), headers, body))
        assert not genuine(forwarded("POST", request.uri.replace("a=1", "a=2"), headers, body))
        assert not genuine(forwarded("POST", request.uri + "&b=1", headers, body))
        assert not genuine(forwarded("POST", request.uri, headers, body + b" "))
        assert not genuine(forwarded("POST", request.uri, headers, b""))
        for name in (b"host", b"content-type", b"user-agent", b"x-sdk-date"):
            changed = {**headers, name: headers[name].replace(b"0", b"1").replace(b"s", b"t") + b""}
            assert changed != headers
            assert not genuine(forwarded("POST", request.uri, changed, body))
        assert not genuine(forwarded("POST", request.uri, headers, body), "another")


class TestAgainstAnotherSigner:
    """Written from the algorithm's description alone."""

    def signed(
        self, names: list[str], headers: dict[str, str], query: str, body: bytes
    ) -> dict[bytes, bytes]:
        pairs = sorted(tuple(unquote(part) for part in each.split("=")) for each in query.split("&") if each)
        canonical = "GET\n/v3/projects/\n"
        canonical += "&".join(quote(name, safe="~") + "=" + quote(value, safe="~") for name, value in pairs)
        canonical += "\n" + "".join(f"{name}:{headers[name].strip()}\n" for name in names)
        canonical += "\n" + ";".join(names) + "\n" + hashlib.sha256(body).hexdigest()
        text = "\n".join(
            ["SDK-HMAC-SHA256", headers["x-sdk-date"], hashlib.sha256(canonical.encode()).hexdigest()]
        )
        signature = hmac.new(SECRET.encode(), text.encode(), hashlib.sha256).hexdigest()
        value = f"SDK-HMAC-SHA256 Access=AK, SignedHeaders={';'.join(names)}, Signature={signature}"
        return {name.encode(): each.encode() for name, each in {**headers, "authorization": value}.items()}

    def test_it_agrees(self) -> None:
        headers = {"host": "localhost:8443", "x-sdk-date": "20191115T033655Z", "x-other": " a  b "}
        query = "name=%C3%A4&name=a%2Bb&enabled=true"
        signed = self.signed(["host", "x-sdk-date", "x-other"], headers, query, b"")
        metadata = forwarded("GET", f"/v3/projects?{query}", signed, b"")
        assert genuine(metadata)
        assert metadata["hsmd-access-key"] == "AK"
        assert metadata["hsmd-sdk-date"] == "20191115T033655Z"


GOOD = {
    b"host": b"x",
    b"x-sdk-date": b"20191115T033655Z",
    b"authorization": b"SDK-HMAC-SHA256 Access=AK, SignedHeaders=host;x-sdk-date, Signature=" + b"0" * 64,
}


class TestRefusals:
    def refused(self, headers: dict[bytes, bytes], repeated: frozenset[bytes] = frozenset()) -> str:
        with pytest.raises(Error) as refusal:
            evidence(headers, repeated)
        assert refusal.value.fault.code == "APIGW.0301"
        return refusal.value.message

    def test_good(self) -> None:
        assert isinstance(evidence(GOOD, frozenset()), SignatureEvidence)
        assert isinstance(evidence({**GOOD, b"x-auth-token": b"t"}, frozenset()), SignatureEvidence)
        token = {b"authorization": b"Basic x", b"x-auth-token": b"t"}
        assert isinstance(evidence(token, frozenset()), TokenEvidence)

    @pytest.mark.parametrize(
        "authorization",
        [
            b"SDK-HMAC-SHA256",
            b"SDK-HMAC-SHA256 Access=, SignedHeaders=host;x-sdk-date, Signature=" + b"0" * 64,
            b"SDK-HMAC-SHA256 Access="
            + b"A" * 65
            + b", SignedHeaders=host;x-sdk-date, Signature="
            + b"0" * 64,
            b"SDK-HMAC-SHA256 Access=A\r\nB, SignedHeaders=host;x-sdk-date, Signature=" + b"0" * 64,
            b"SDK-HMAC-SHA256 Access=A, SignedHeaders=host, Signature=" + b"0" * 64,
            b"SDK-HMAC-SHA256 Access=A, SignedHeaders=x-sdk-date, Signature=" + b"0" * 64,
            b"SDK-HMAC-SHA256 Access=A, SignedHeaders=host;host;x-sdk-date, Signature=" + b"0" * 64,
            b"SDK-HMAC-SHA256 Access=A, SignedHeaders=host;x-missing;x-sdk-date, Signature=" + b"0" * 64,
            b"SDK-HMAC-SHA256 Access=A, SignedHeaders=" + b"h;" * 100 + b"x, Signature=" + b"0" * 64,
            b"SDK-HMAC-SHA256 Access=A, SignedHeaders=Host;x-sdk-date, Signature=" + b"0" * 64,
            b"SDK-HMAC-SHA256 Access=A, SignedHeaders=host;x-sdk-date, Signature=" + b"0" * 63,
            b"SDK-HMAC-SHA256 Access=A, SignedHeaders=host;x-sdk-date, Signature=" + b"G" * 64,
            b"SDK-HMAC-SHA256 Access=A, SignedHeaders=host;x-sdk-date, Signature=" + b"0" * 64 + b" ",
            b"SDK-HMAC-SM3 Access=A, SignedHeaders=host;x-sdk-date, Signature=" + b"0" * 64,
        ],
    )
    def test_authorizations(self, authorization: bytes) -> None:
        self.refused({**GOOD, b"authorization": authorization})

    @pytest.mark.parametrize("date", [b"", b"2019", b"20191115T033655", b"2019-11-15T03:36:55Z"])
    def test_dates(self, date: bytes) -> None:
        assert "20191115T033655Z" in self.refused({**GOOD, b"x-sdk-date": date})

    @pytest.mark.parametrize("name", [b"authorization", b"x-sdk-date", b"host", b"x-auth-token"])
    def test_given_twice(self, name: bytes) -> None:
        assert "twice" in self.refused(GOOD, frozenset([name]))

    def test_an_unsigned_body(self) -> None:
        request = sdk_signed("POST", PATH, body=b"data", headers={"Content-Type": "text/plain"})
        headers = headers_of(request)
        assert headers[b"x-sdk-content-sha256"] == b"UNSIGNED-PAYLOAD"
        with pytest.raises(Error, match="the body must be signed"):
            forwarded("POST", request.uri, headers, b"data")
        false = {**headers, b"x-sdk-content-sha256": b"unsigned-payload"}
        with pytest.raises(Error, match="the body must be signed"):
            forwarded("POST", request.uri, false, b"data")

    def test_a_declared_digest_does_not_replace_the_real_one(self) -> None:
        digest = hashlib.sha256(b"other").hexdigest()
        request = sdk_signed("POST", PATH, body=b"data", headers={"X-Sdk-Content-Sha256": digest})
        assert not genuine(forwarded("POST", request.uri, headers_of(request), b"data"))

    def test_too_much_is_signed(self) -> None:
        headers = {**GOOD, b"host": b"x" * 20_000}
        with pytest.raises(Error, match="16384"):
            forwarded("GET", "/", headers, b"")
