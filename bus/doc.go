// Package bus delivers envelopes between gateways through a small store, and
// elects who owns what. ARCHITECTURE.md states its guarantees (G1 to G7), its
// key schema and what it does not promise.
package bus
