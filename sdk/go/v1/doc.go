// Package antiphonv1 holds the messages and stubs of the public contracts, protos/antiphon/v1, made by `make gen`. What each
// field means is said there and in docs/reference/api.md.
package antiphonv1
