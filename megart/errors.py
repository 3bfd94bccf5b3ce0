"""Every error megart raises on purpose: one line that says what it got, what it expected and what to do."""

from __future__ import annotations


class MegartError(Exception):
    """Base of all errors below; the command line prints its text and exits with 1."""


class InputError(MegartError):
    """Wrong arguments or wrong input files."""


class BankError(MegartError):
    """The bank is missing, locked, read-only, full or damaged."""


class BaseMismatchError(BankError):
    """The bank belongs to another base model."""


class MemoryNotFoundError(BankError):
    """No memory of that id in the bank."""


class ChangedError(BankError):
    """A memory is not what was to be replaced: somebody else changed, added or forgot it meanwhile."""


class ModelError(MegartError):
    """The model is missing, unreadable or of an architecture that is not supported."""


class AdapterError(MegartError):
    """An adapter file is missing, broken or of the wrong shape."""


class DependencyError(MegartError):
    """An optional package is missing; the text says which extra to install."""


class MemorizeError(MegartError):
    """A memory could not be learnt."""
