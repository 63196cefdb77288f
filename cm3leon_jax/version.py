"""The version that what this package writes is signed with."""

__version__ = "0.1.0"
