"""A key service daemon in front of a dedicated HSM."""

__version__ = "0.1.0"
