"""Material as users wrap it for an import: private keys, and what the openssl command makes of them."""

import subprocess
import tempfile
from pathlib import Path
from typing import Any

from hsmd.client import Client
from hsmd.pb.v1 import imports_pb2 as pb

OAEP = ("-pkeyopt", "rsa_padding_mode:oaep", "-pkeyopt", "rsa_oaep_md:sha256")
MGF = ("-pkeyopt", "rsa_mgf1_md:sha256")
# DEW's key specs of pairs that can be imported, as openssl is asked for them.
GENPKEY = {
    "RSA_2048": ("RSA", "rsa_keygen_bits:2048"),
    "RSA_3072": ("RSA", "rsa_keygen_bits:3072"),
    "RSA_4096": ("RSA", "rsa_keygen_bits:4096"),
    "EC_P256": ("EC", "ec_paramgen_curve:P-256"),
    "EC_P384": ("EC", "ec_paramgen_curve:P-384"),
    "SECP256K1": ("EC", "ec_paramgen_curve:secp256k1"),
}
SECRETS = {"AES_256": 32, "HMAC_256": 32, "HMAC_384": 48, "HMAC_512": 64}


def openssl(*arguments: str, given: bytes = b"") -> bytes:
    """What the openssl command prints."""
    return subprocess.run(["openssl", *arguments], input=given, capture_output=True, check=True).stdout


def private_key(spec: str) -> bytes:
    """A new private key, PEM."""
    algorithm, option = GENPKEY[spec]
    return openssl("genpkey", "-algorithm", algorithm, "-pkeyopt", option)


def pkcs8(pem: bytes) -> bytes:
    """The private key as PKCS#8 DER."""
    return openssl("pkcs8", "-topk8", "-nocrypt", "-outform", "DER", given=pem)


def public_key(pem: bytes) -> str:
    """The public key of a private one, PEM."""
    return openssl("pkey", "-pubout", given=pem).decode()


def oaep(folder: Path, public: bytes, data: bytes, options: tuple[str, ...] = (*OAEP, *MGF)) -> bytes:
    """RSAES-OAEP by openssl for a DER public key."""
    (folder / "wrapping.der").write_bytes(public)
    key = ("-pubin", "-keyform", "DER", "-inkey", str(folder / "wrapping.der"))
    return openssl("pkeyutl", "-encrypt", *key, *options, given=data)


def kwp(key: bytes, data: bytes) -> bytes:
    """AES-KWP by openssl, which since 3.6 reads what it wraps from files only."""
    cipher = f"-id-aes{8 * len(key)}-wrap-pad"
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        return openssl("enc", cipher, "-iv", "A65959A6", "-K", key.hex(), "-in", file.name)


def parameters(client: Client, key: str) -> pb.GetParametersForImportResponse:
    """Parameters for an import, as the API gives them."""
    wanted = pb.GetParametersForImportRequest(
        key_id=key, wrapping_algorithm=pb.WRAPPING_ALGORITHM_RSAES_OAEP_SHA_256
    )
    response: pb.GetParametersForImportResponse = client.imports.GetParametersForImport(wanted)
    return response


def request(
    folder: Path, made: pb.GetParametersForImportResponse, material: bytes, private: bytes = b"", **more: Any
) -> pb.ImportKeyMaterialRequest:
    """A right request: `material` is the key's bytes, or the temporary key for `private` (PEM)."""
    return pb.ImportKeyMaterialRequest(
        key_id=made.key_id,
        import_token=made.import_token,
        encrypted_key_material=oaep(folder, made.public_key, material),
        encrypted_privatekey=kwp(material, pkcs8(private)) if private else b"",
        **more,
    )


def imported(
    client: Client, folder: Path, key: str, material: bytes, private: bytes = b"", **more: Any
) -> None:
    """Import it."""
    client.imports.ImportKeyMaterial(request(folder, parameters(client, key), material, private, **more))


def deleted(client: Client, key: str) -> None:
    """delete-imported-key-material."""
    client.imports.DeleteImportedKeyMaterial(pb.DeleteImportedKeyMaterialRequest(key_id=key))
