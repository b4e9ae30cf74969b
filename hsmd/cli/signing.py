"""Signs a REST request with an access key, as the cloud SDKs do (SDK-HMAC-SHA256)."""

import hashlib
import hmac
from datetime import datetime
from urllib.parse import quote, urlsplit


def signed_headers(
    verb: str, url: str, body: bytes, access_key: str, secret_key: str, now: datetime
) -> dict[str, str]:
    """Return the headers of a JSON request to url (without a query), good for 15 minutes around now (UTC)."""
    parts = urlsplit(url)
    path = quote(parts.path, safe="/~").rstrip("/") + "/"
    date = now.strftime("%Y%m%dT%H%M%SZ")
    headers = {"content-type": "application/json", "host": parts.netloc, "x-sdk-date": date}
    names = ";".join(headers)
    lines = "".join(f"{name}:{value}\n" for name, value in headers.items())
    canonical = "\n".join([verb, path, "", lines, names, hashlib.sha256(body).hexdigest()])
    to_sign = f"SDK-HMAC-SHA256\n{date}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    signature = hmac.new(secret_key.encode(), to_sign.encode(), hashlib.sha256).hexdigest()
    authorization = f"SDK-HMAC-SHA256 Access={access_key}, SignedHeaders={names}, Signature={signature}"
    return {**headers, "authorization": authorization}
