// Package gateway is one node of the mesh: configuration, API, events, metrics and
// the life of it all. It runs agents on a bus and lets people and programs see what happens.
//
// [New] wires and checks, [Gateway.Start] listens and connects, [Gateway.Stop] ends
// in reverse order. A gateway whose store cannot be reached stays up: /health says 200 and
// /ready 503 with the reason, until the store comes.
//
// Everything that happens to a message is one [bus.Event], and takes one path: log, metrics,
// stream (events.go). The HTTP API is described in api_types.go, the metrics in
// METRICS.md.
package gateway
