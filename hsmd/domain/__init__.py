"""The rules: one file a subject; no gRPC, no protobuf, no HTTP, no SQL."""
