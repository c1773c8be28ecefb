"""Payloads too large for the journal, by digest. See port.py for the contract."""

from .folder import FolderBlobs
from .port import BlobDigestMismatch, BlobError, BlobInfo, BlobNotFound, Blobs, BlobTooLarge

__all__ = ["BlobDigestMismatch", "BlobError", "BlobInfo", "BlobNotFound", "BlobTooLarge", "Blobs", "FolderBlobs"]
