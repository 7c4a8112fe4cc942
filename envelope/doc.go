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
// read in the Consul UI. [Schema] describes both to other languages.
//
// # Fields of an envelope (schema 1.1 and 2.0; plan, "Inter-Gateway Message Contract")
//
//	schema_version   "MAJOR.MINOR"; an unknown major is refused, an unknown minor is read
//	message_id       UUID (ours are UUIDv7); with source_gateway the identity of the message
//	correlation_id   UUID of the message that started the causal chain
//	conversation_id  order is kept within (source gateway, target agent, conversation)
//	in_reply_to      message_id that this one answers; only in replies
//	reply_to         agent whose inbox wants the answer; absent: none is wanted
//	source_gateway   who sent it
//	source_agent     on whose behalf
//	target_gateway   only when pinned to one
//	target_agent     who shall handle it
//	capability       what is asked of the target, as "infra.check"
//	payload          any JSON value; a JSON string is text
//	created_at       RFC 3339 UTC, millisecond precision, the sender's clock
//	ttl              milliseconds from created_at; after it, nobody may act on it
//	max_hops         how many agents may pass it, or what it causes, on
//	max_attempts     how often the target may try; absent: the target's own number
//	ack_timeout      milliseconds that one attempt may go without a sign of life; absent: the target's own
//	retry_delay      milliseconds after the first failed attempt, doubling from there; absent: the target's own
//	payload_size     bytes of a payload that lies outside of the envelope; payload is null then
//	payload_sha256   its SHA-256, in lower-case hex
//	terminal         true: must be handled where it arrives, never forwarded
//	budget           what the causal chain may still spend (messages, tokens, usd, deadline)
//	task             since 1.1; {priority 0..9 (absent: 5), not_before, unique_key, unique_for in ms}: when
//	                 it may be handled, before what, and what it is one of a kind of. Counts for every inbox,
//	                 the unique ones for queues. With a not_before the ttl counts from there. A 1.0
//	                 gateway keeps it unread: it handles such a message at once
//	encryption       in 2.x, which is 1.x but for this; {suite, salt, keys}: the payload is a string, ciphertext in base64,
//	                 and keys wrap its key once for each gateway that may read it. A gateway of 1.x refuses it
//	traceparent      W3C Trace Context; one that is malformed is carried, not refused
//
// # Canonical bytes
//
// They are the JSON as the sender wrote it, keys in any order: UTF-8, no white space
// outside strings, at most 256 deep. In the envelope, its budget, task and encryption (not in the payload)
// no key stands twice, keys are of a-z, 0-9 and "_", at most 32 of them, and a
// field that is absent is left out, never null or an empty string. These rules bind
// newer minors too; their fields are kept unread.
//
// # States (plan, "state")
//
// [Transitions] is the whole table; [Delivery.Move] refuses every other move. From and to,
// who may, and when:
//
//	queued      -> delivered    owner     the agent gets it
//	queued      -> dead-letter  owner     expired, unknown version, too many hops or undeliverable before any attempt
//	delivered   -> acked        owner     the agent is done
//	delivered   -> failed       owner     the agent failed, took too long, or its process died
//	delivered   -> dead-letter  owner     the agent said never, it expired while worked on, or nobody knows whether an effect of it was made
//	failed      -> queued       owner     retry, after the backoff
//	failed      -> dead-letter  owner     attempts exhausted or expired
//	dead-letter -> queued       operator  redrive
//
// Acked and dead-letter are terminal: the bus itself never leaves them.
package envelope
