// Package conformancev1 holds what executors of conformance cases are asked, protos/antiphon/conformance/v1, made by `make gen`.
package conformancev1
