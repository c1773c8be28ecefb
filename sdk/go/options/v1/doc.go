// Package optionsv1 holds the options of the contracts, protos/antiphon/options/v1, made by `make gen`.
package optionsv1
