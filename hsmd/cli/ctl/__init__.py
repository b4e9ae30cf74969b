"""The parts of hsmctl.

- `context`: the global options, and the connection made by them
- `output`: documents for programs, tables for people
- `outcome`: what went wrong, as an exit code and a line
- `newfile`: a file that appears only when it is whole
- `keys`, `data`, `files`, `host`: the commands

Heavy modules (gRPC, Tink, rich, the store) are imported where they are used: shells run hsmctl at each
press of the tab key.
"""
