"""The store in an etcd cluster, by a thin client of our own (DECISIONS.md, D22)."""

from .address import EtcdAddress, TlsFiles, parse
from .store import EtcdStore

__all__ = ["EtcdAddress", "EtcdStore", "TlsFiles", "parse"]
