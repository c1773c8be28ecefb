"""Payloads too large for the journal, by digest. See port.py for the contract."""

from .objects import ObjectBlobs, check_url
from .port import (
    BlobCorrupt,
    BlobDigestMismatch,
    BlobError,
    BlobInfo,
    BlobNotFound,
    Blobs,
    BlobsFull,
    BlobsUnavailable,
    BlobTooLarge,
)

__all__ = [
    "BlobCorrupt",
    "BlobDigestMismatch",
    "BlobError",
    "BlobInfo",
    "BlobNotFound",
    "BlobTooLarge",
    "Blobs",
    "BlobsFull",
    "BlobsUnavailable",
    "ObjectBlobs",
    "check_url",
]
