"""gRPC: the server, the one way of every call, and a servicer file a subject."""
