// Builds an etcd server of the version that go.mod names; tests/harness/etcd.py caches the binary.
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() { etcdmain.Main(os.Args) }
