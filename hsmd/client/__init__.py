"""The Python client of the daemon.

- `client`: Client, with a method for each everyday call
- `admin`: AdminClient, for the administrators' door
- `calls`: how a call is made: deadline, metadata, repeating, errors
- `errors`: what it raises
- `tink`: Tink users' way in (needs the extra `tink`)
- `files`: envelope encryption of files of any size (needs the extra `tink`)
"""

from hsmd.client.client import Client
from hsmd.client.errors import ApiError, ClientError, SetupError

__all__ = ["ApiError", "Client", "ClientError", "SetupError"]
