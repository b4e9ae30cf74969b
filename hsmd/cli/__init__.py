"""Command lines: `hsmd` for the host, `hsmctl` for people and scripts."""
