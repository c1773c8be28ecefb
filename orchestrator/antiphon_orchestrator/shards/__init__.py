"""Shards: a run belongs to one, one owner writes it, and every change goes through its log."""
