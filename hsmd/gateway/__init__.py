"""The REST face: DEW requests onto gRPC calls, built at start from the proto descriptors alone.

- `options.py`: what the descriptors declare (routes, forms, error bodies)
- `bodies.py`: JSON text within bounds; `readers.py`, `writers.py`: JSON values to messages and back
- `routes.py`: the tree of paths; `transcoder.py`: one route, from HTTP parts to a message and back
- `signatures.py`: the caller's evidence; `failures.py`: the error bodies
- `channels.py`: connections to the daemon; `app.py`: the ASGI application that joins all this
- `openapi.py`, `page.py`: the description of the API, for programs and for people
- `listener.py`, `server.py`: TLS sockets, bounds on connections, start and end of the process
"""
