"""The package `etcd3` as an oracle, in an environment of its own that can still import it.

Reads one JSON array a line, does with it what it says, and answers with one a line. Keys and values are hexadecimal.
`["txn", compares, operations, reads]` answers `[succeeded, {key: [value, version] or null}]`; `["range", prefix]`
answers `[[key, value, create_revision, mod_revision, version, lease], …]`.
"""

import json
import sys

import etcd3

COMPARES = {
    "version": etcd3.transactions.Version,
    "create_revision": etcd3.transactions.Create,
    "mod_revision": etcd3.transactions.Mod,
    "value": etcd3.transactions.Value,
}


def compare(key, target, op, value):
    made = COMPARES[target](bytes.fromhex(key))
    other = bytes.fromhex(value) if target == "value" else value
    return {"=": made.__eq__, "!=": made.__ne__, "<": made.__lt__, ">": made.__gt__}[op](other)


def operation(kind, key, rest):
    if kind == "put":
        return etcd3.transactions.Put(bytes.fromhex(key), bytes.fromhex(rest))
    return etcd3.transactions.Delete(bytes.fromhex(key), bytes.fromhex(rest) or None)


def txn(client, compares, operations, reads):
    gets = [etcd3.transactions.Get(bytes.fromhex(key)) for key in reads]
    done, answers = client.transaction(
        [compare(*one) for one in compares], [operation(*one) for one in operations], gets
    )
    observed = {}
    if not done:
        for key, found in zip(reads, answers, strict=True):
            observed[key] = [found[0][0].hex(), found[0][1].version] if found else None
    return [done, observed]


def read(client, prefix):
    rows = []
    for value, meta in client.get_prefix(bytes.fromhex(prefix), sort_order="ascend"):
        numbers = [meta.create_revision, meta.mod_revision, meta.version, meta.lease_id]
        rows.append([meta.key.hex(), value.hex(), *numbers])
    return rows


def main(port):
    client = etcd3.client(host="127.0.0.1", port=int(port), timeout=10)
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        kind, *arguments = json.loads(line)
        print(json.dumps((txn if kind == "txn" else read)(client, *arguments)), flush=True)


main(*sys.argv[1:])
