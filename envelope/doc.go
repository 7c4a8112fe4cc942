// Package envelope is the wire contract between gateways: the fields of a
// message, their limits, the bytes that are signed, and the table of states
// that a delivery goes through. It holds pure values and does no I/O.
//
// # Two parts
//
// An [Envelope] is what the sender said. It never changes after [Seal], and its
// bytes are kept as they were written, so that a signature over them stays
// valid on every hop. A [Delivery] is what happened to it since: state, attempts,
// path, times stamped by the receiver, the last error. Both are JSON and meant to be
// read in the Consul UI.
//
// # Fields of an envelope (schema 1.0; plan, "Inter-Gateway Message Contract")
//
//	schema_version   "MAJOR.MINOR"; an unknown major is refused, an unknown minor is read
//	message_id       UUID (ours are UUIDv7); with source_gateway the identity of the message
//	correlation_id   UUID of the message that started the causal chain
//	conversation_id  order is kept within (source gateway, target agent, conversation)
//	in_reply_to      message_id that this one answers; only in replies
//	reply_to         agent whose inbox wants the answer; absent: none is wanted
//	source_gateway, source_agent, target_gateway (only when pinned), target_agent
//	capability       what is asked of the target, as "infra.check"
//	payload          any JSON value; a JSON string is text
//	created_at       RFC 3339 UTC, millisecond precision, the sender's clock
//	ttl              milliseconds from created_at; after it, nobody may act on it
//	max_hops         how many gateways may pass it on
//	terminal         true: must be handled where it arrives, never forwarded
//	budget           what the causal chain may still spend (messages, tokens, usd, deadline)
//	traceparent      W3C Trace Context
//
// # States (plan, "state")
//
// [Transitions] is the whole table; [Delivery.Move] refuses every other move.
package envelope
