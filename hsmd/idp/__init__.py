"""External identity providers: the only room that speaks to them, or reads what they have signed.

What comes out of it are claims that hold; who somebody is here by them is a matter of the domain.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from hsmd.config import Settings
from hsmd.idp.keystone import Keystone
from hsmd.idp.oidc import Issuer, issuer_of

__all__ = ["Claims", "Issuer", "Keystone", "Providers", "open_providers"]

Claims = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Providers:
    """The providers of one process: issuers of JWTs by their names, and a Keystone."""

    issuers: Mapping[str, Issuer] = field(default_factory=dict)
    keystone: Keystone | None = None

    def issuer(self, token: str) -> Issuer | None:
        """The one to verify a JWT by; where there are several, by what it says of itself, unverified.

        Raises Error(IDENTITY_REFUSED) for what is no JWT.
        """
        if len(self.issuers) == 1:
            return next(iter(self.issuers.values()))
        return self.issuers.get(issuer_of(token)) if self.issuers else None

    def start(self) -> None:
        """Begin to fetch keys. Not before the process is forked."""
        for each in self.issuers.values():
            each.start()


def open_providers(settings: Settings) -> Providers:
    """Those that are configured; nothing is fetched yet. Raises ConfigError."""
    issuers = {each.issuer: Issuer(each) for each in settings.oidc}
    return Providers(issuers, Keystone(settings.keystone) if settings.keystone.url else None)
