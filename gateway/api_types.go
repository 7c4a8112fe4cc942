package gateway

import (
	"encoding/json"
	"time"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
)

// The HTTP API, version 1. All bodies are JSON, in UTF-8; all names are stable.
//
//	GET  /health               200 while the process lives; open to everybody
//	GET  /health/store         503 while it cannot reach Consul's agent: what Consul's check asks; open to everybody
//	GET  /ready                200 when messages are accepted, else 503 with the reason; open
//	GET  /metrics              Prometheus text (METRICS.md has the table); open
//	GET  /                     the dashboard; its page is open, its data needs the token
//	GET  /chat                 the page of webchat; open, what it sends needs the token
//	GET  /v1/status            StatusResponse: this gateway
//	POST /v1/messages          SendRequest -> MessageStatus
//	GET  /v1/messages          MessagesResponse: newest first, ?limit=N (50, at most 500)
//	GET  /v1/messages/{id}     MessageStatus; ?wait=delivered|acked|replied&timeout=30s waits first
//	POST /v1/messages/{id}/cancel  TaskOrder -> MessageCancelled: given up, by the owner of the inbox that it is in; a token
//	                           with the role send gives up what it asked by A2A
//	GET  /v1/agents            AgentsResponse; ?capability=infra.check
//	GET  /v1/gateways          GatewaysResponse
//	GET  /v1/inboxes           InboxesResponse
//	GET  /v1/inboxes/{agent}   bus.InboxInfo
//	POST /v1/fanouts           FanRequest -> FanResponse: one message for several agents
//	GET  /v1/fanouts/{id}      FanResponse; ?wait=replied&timeout=30s waits first
//	GET  /v1/deadletters       DeadLettersResponse, oldest first; the query is DeadLetterQuery's
//	POST /v1/deadletters/redrive  DeadLetterOrder -> DeadLetterResults: queued again, by their owners
//	POST /v1/deadletters/purge    DeadLetterOrder -> DeadLetterResults: deleted for good
//	GET  /v1/state/events      RecentEventsResponse: what all agents know happened, oldest first; ?limit=N the newest
//	POST /v1/state/events      EventRequest -> bus.StateEvent
//	DELETE /v1/state/events    ClearedResponse: empties it, whatever it holds
//	GET  /v1/state/focus       FocusState: what everybody is at; PUT says it, DELETE removes it
//	POST /mcp                  MCP (streamable HTTP): the server consul-registry
//	POST /v1/agents/{agent}/check            CheckRequest -> bus.CheckNote: what the agent's last check found, for people
//	GET  /v1/agents/{agent}/mailbox          MailboxResponse: how much an agent with the runner mailbox can fetch at once
//	POST /v1/agents/{agent}/mail             MailRequest -> MailResponse: leases messages of an agent with the runner mailbox
//	POST /v1/agents/{agent}/mail/{id}/{verdict}  MailOrder -> MailVerdict: ack, reply, nak, reject, working
//	GET  /v1/queues            QueuesResponse: the task queues, who keeps them and who works
//	GET  /v1/queues/{queue}/tasks  TasksResponse: unfinished tasks, the most important first;
//	                           ?state=waiting|delayed|running|retrying&limit=N (1000, at most 10000)
//	POST /v1/queues/{queue}/tasks/{id}/cancel  TaskOrder -> TaskCancelled: given up, by the queue's owner
//	GET  /v1/owners                          OwnersResponse: who owns which duty, who may, who is next
//	POST /v1/owners/{duty}/transfer          OwnerOrder -> bus.OwnerChange: another gateway has it now
//	POST /v1/owners/{duty}/release           OwnerOrder -> bus.OwnerChange: whoever was next has it now
//	GET  /v1/skills                          SkillsResponse: the skills of agents with a workspace here, and files that are none
//	GET  /v1/cron                            CronResponse: the jobs, when each is next, what came of its last run
//	GET  /v1/cron/{job}/runs                 CronRunsResponse: the last 20 runs of a job (its id or its name)
//	POST /v1/cron                            CronJob -> CronState: adds a job
//	POST /v1/cron/{job}/{order}              -> CronState: run (now), enable, disable
//	DELETE /v1/cron/{job}                    -> CronState: removes it
//	GET  /v1/sessions                        SessionsResponse: what agents remember, the newest first (?agent=)
//	GET  /v1/sessions/{agent}/{conversation} agent.Session: one of them, with its messages
//	GET  /v1/costs                           CostsResponse: tokens and US dollars by day, agent, conversation and model (?agent=&day=)
//	GET  /v1/keys              KeysResponse: this gateway's keys and tokens, never a secret
//	POST /v1/keys/rotate       KeysResponse: makes the next key and asks the operator for it; no body. ?next=ID looks whether
//	                           that one counts by now
//	GET  /v1/channels                        ChannelsResponse: what the accounts of chat channels are at
//	POST /v1/channels/{inbox}/pair           {} -> PairResponse: the code to scan; at the account's owner
//	POST /v1/channels/{inbox}/logout         {} -> LoggedOutResponse; at the account's owner
//	GET  /v1/route             Route: who answers ?channel=&account=&peer_kind=&peer=&team=, and why
//	GET  /v1/webchat           WebSocket: ?conversation=UUID&after=SEQ; sends ChatFrame, takes ChatSaid
//	GET  /v1/models            OpenAI's list of models: openclaw/AGENT for each agent of the mesh
//	GET  /v1/models/{model}    one of them
//	POST /v1/chat/completions  OpenAI's chat completions, whole or streamed, by an agent (api_completions.go)
//	GET  /a2a/{agent}/.well-known/agent-card.json  A2A 1.0: an agent's card; POST /a2a/{agent} is its endpoint (gateway/a2aserver)
//	GET  /                     with an upgrade, WebSocket: OpenClaw's protocol (gateway/openclawgw), whose token comes inside
//	GET  /v1/events            WebSocket: one StreamEvent a text frame;
//	                           ?replay=N first sends up to N (at most 1000) earlier events,
//	                           ?message=ID only what belongs to one message or question
//
// Everything below /v1 needs "Authorization: Bearer TOKEN" when the gateway has
// tokens. What a token may do is its role: read is enough for every GET, send for what adds (messages, fan-outs,
// events, the focus), operate for what takes away from others (redrive, purge, cancel, clearing) and for another key. The roles
// include each other; api_routes.go has the table. A browser, which cannot set that header on a WebSocket, offers the
// subprotocols StreamProtocol and StreamTokenPrefix + unpadded base64url of the token.
//
// A request that fails gets an [APIError] in an ErrorResponse. A POST needs the content
// type application/json, has at most MaxBodyBytes (messages and fan-outs) or MaxOrderBytes (all others), and is refused with the
// name of the field when it has one that is not known.
const (
	// MaxBodyBytes bounds a request's body: the largest payload, and what stands around it.
	MaxBodyBytes = envelope.MaxClaim + 1<<20
	// MaxOrderBytes bounds the body of a request that carries no payload.
	MaxOrderBytes = 1 << 20
	// DefaultWait and MaxWait bound how long a request waits when it asks to wait.
	DefaultWait = 30 * time.Second
	MaxWait     = 10 * time.Minute
	// DefaultFrom is the sender of a message that names none.
	DefaultFrom = "operator"
	// StreamProtocol is the WebSocket subprotocol of the event stream, and
	// StreamTokenPrefix begins the one that carries a token.
	StreamProtocol    = "gatemesh.v1"
	StreamTokenPrefix = "gatemesh.token."
)

// What a request may wait for.
const (
	WaitDelivered = "delivered"
	WaitAcked     = "acked"
	// WaitReplied also asks for an answer; without it nobody keeps one.
	WaitReplied = "replied"
)

// SendRequest is the body of POST /v1/messages. To and one of Text and Payload are
// required. What is sent to a queue is a task.
type SendRequest struct {
	// ID makes sending again safe: a lower-case UUID. The same id is the same message; the
	// second request sends nothing and is answered like the first. Empty: a new one.
	ID string `json:"id,omitempty"`
	// To is agent or agent@gateway, or a queue.
	To string `json:"to"`
	// From is on whose behalf. Empty: DefaultFrom.
	From string `json:"from,omitempty"`
	// Capability is what is asked of the agent, as "infra.check".
	Capability string `json:"capability,omitempty"`
	// Text is a payload for people; Payload is any JSON value. One of the two.
	Text    *string         `json:"text,omitempty"`
	Payload json.RawMessage `json:"payload,omitempty"`
	// TTL is a Go duration ("90s", at most mesh.maxTTL). Empty: mesh.defaultTTL, for a task mesh.maxTTL.
	TTL string `json:"ttl,omitempty"`
	// MaxHops; 0: mesh.defaultMaxHops.
	MaxHops int `json:"max_hops,omitempty"`
	// MaxAttempts, AckTimeout ("30s") and RetryDelay ("1s") ask the receiver for other numbers than its own:
	// how often it tries, how long an attempt may go without a sign of life, the first delay.
	MaxAttempts int    `json:"max_attempts,omitempty"`
	AckTimeout  string `json:"ack_timeout,omitempty"`
	RetryDelay  string `json:"retry_delay,omitempty"`
	// Terminal: must be handled where it arrives, never passed on.
	Terminal bool `json:"terminal,omitempty"`
	// Priority is 0 to 9 (nil: 5): what matters more is handled first.
	Priority *int `json:"priority,omitempty"`
	// Delay ("10m") or NotBefore (RFC 3339), at most 30 days ahead, is when it may be handled; its TTL counts
	// from then on. One of the two.
	Delay     string `json:"delay,omitempty"`
	NotBefore string `json:"not_before,omitempty"`
	// UniqueKey makes a task one of a kind in its queue: while one is unfinished, and for UniqueFor ("24h")
	// after its end, another with the same key is not worked on. It is acked, and answered (when an
	// answer was asked for) with {"duplicate_of": the id of the first}.
	UniqueKey string `json:"unique_key,omitempty"`
	UniqueFor string `json:"unique_for,omitempty"`
	// Budget is what this message and all that it causes may spend.
	Budget *envelope.Budget `json:"budget,omitempty"`
	// AttemptID names this try of the client; another try under the same id is no other message.
	AttemptID string `json:"attempt_id,omitempty"`
	// ConversationID orders messages among themselves. Empty: one of its own.
	ConversationID string `json:"conversation_id,omitempty"`
	// CorrelationID is the UUID of the message that started it all. Empty: this one.
	CorrelationID string `json:"correlation_id,omitempty"`
	// Traceparent is W3C Trace Context. Empty: the request's traceparent header.
	Traceparent string `json:"traceparent,omitempty"`
	// Reply asks for an answer without waiting: it is kept for mesh.resultRetention and
	// read with GET /v1/messages/{id} at any gateway. Wait "replied" implies it.
	Reply bool `json:"reply,omitempty"`
	// Wait holds the answer of this request back until the message is delivered, acked or
	// replied, or was given up. Empty: only until it is accepted.
	Wait string `json:"wait,omitempty"`
	// Timeout ends waiting, as a Go duration. Empty: DefaultWait; at most MaxWait.
	Timeout string `json:"timeout,omitempty"`
}

// MessageStatus is what is known of a message: the four facts, separately.
//
// POST answers 202 when the message is accepted, and with wait: 200 when what was waited for
// is so or the message was given up (facts.dead), 202 with timed_out when time was up
// before (the message goes on). GET answers 200 in all these cases.
type MessageStatus struct {
	bus.Status
	// Text is the answer for people, when there is one.
	Text string `json:"text,omitempty"`
	// ReplyPayload is the payload of an answer that is encrypted, or too large to travel in its envelope.
	ReplyPayload json.RawMessage `json:"reply_payload,omitempty"`
	// TimedOut: waiting ended before what was waited for.
	TimedOut bool `json:"timed_out,omitempty"`
}

// StatusResponse is the answer of GET /v1/status.
type StatusResponse struct {
	Gateway string        `json:"gateway"`
	Version string        `json:"version"`
	URL     string        `json:"url"`
	Store   string        `json:"store"`
	Started envelope.Time `json:"started"`
	Ready   bool          `json:"ready"`
	// Reason says why it is not ready.
	Reason string `json:"reason,omitempty"`
	// Owned are the agents whose inboxes this gateway drains now.
	Owned []string `json:"owned"`
	// DefaultAgent answers what names no agent.
	DefaultAgent string `json:"default_agent,omitempty"`
	// Streams is the number of clients on /v1/events.
	Streams int `json:"streams"`
	// Key is the id of this gateway's key. Trust says whose signatures count: open (whoever can write the store is believed),
	// waiting (nobody is, until a trust set is seen) or enforced, by the version TrustVersion.
	Key          string `json:"key"`
	Trust        string `json:"trust"`
	TrustVersion uint64 `json:"trust_version,omitempty"`
	// KeyEnds is when the trust set lets the key end; zero: not said. NextKey waits for the operator.
	KeyEnds envelope.Time `json:"key_ends,omitzero"`
	NextKey string        `json:"next_key,omitempty"`
	// Confidentiality is mesh.confidentiality.mode, and EncryptionKeys are the keys of the trust set's gateways that payloads are
	// encrypted for; none in an open mesh.
	Confidentiality string              `json:"confidentiality"`
	EncryptionKeys  []bus.EncryptionKey `json:"encryption_keys,omitempty"`
	// Caller is the token of who asks, and Role what it may do.
	Caller string `json:"caller,omitempty"`
	// Agent is the one that the token speaks for.
	Agent string `json:"agent,omitempty"`
	Role  string `json:"role"`
}

// ProbeResponse is the answer of /health and /ready.
type ProbeResponse struct {
	Status  string `json:"status"` // ok, ready or not-ready
	Gateway string `json:"gateway"`
	Version string `json:"version,omitempty"`
	Reason  string `json:"reason,omitempty"`
}

// MessagesResponse is the answer of GET /v1/messages: what this gateway remembers.
type MessagesResponse struct {
	Messages []MessageStatus `json:"messages"`
}

// AgentsResponse is the answer of GET /v1/agents.
type AgentsResponse struct {
	Agents []bus.AgentInfo `json:"agents"`
}

// GatewaysResponse is the answer of GET /v1/gateways.
type GatewaysResponse struct {
	Gateways []bus.GatewayInfo `json:"gateways"`
}

// InboxesResponse is the answer of GET /v1/inboxes.
type InboxesResponse struct {
	Inboxes []bus.InboxInfo `json:"inboxes"`
}

// QueuesResponse is the answer of GET /v1/queues.
type QueuesResponse struct {
	Queues []bus.QueueInfo `json:"queues"`
}

// TasksResponse is the answer of GET /v1/queues/{queue}/tasks. Total counts also those beyond the limit.
type TasksResponse struct {
	Tasks []bus.TaskInfo `json:"tasks"`
	Total int            `json:"total"`
}

// TaskOrder is the body of POST /v1/queues/{queue}/tasks/{id}/cancel and POST /v1/messages/{id}/cancel; {} is one.
type TaskOrder struct {
	// By is who wants it; it stays in the record. Empty: DefaultFrom.
	By string `json:"by,omitempty"`
	// Timeout is how long to wait for the owner of the queue or inbox, as a Go duration. Empty: DefaultWait; at most MaxWait.
	Timeout string `json:"timeout,omitempty"`
}

// TaskCancelled says which task was given up: it is a dead letter now, of class "cancelled".
type TaskCancelled struct {
	Queue     string `json:"queue"`
	MessageID string `json:"message_id"`
	By        string `json:"by"`
}

// MessageCancelled says which message was given up: it is a dead letter now. What its handler did outside of the mesh stays done.
type MessageCancelled struct {
	MessageID string `json:"message_id"`
	// Class is "cancelled"; "unknown" when an effect of it outside of the mesh may have been made.
	Class envelope.Class `json:"class"`
	By    string         `json:"by"`
}

// StreamEvent is one frame of /v1/events. Seq counts this gateway's events since it
// started, from 1; without ?message= there are no gaps.
type StreamEvent struct {
	Seq uint64 `json:"seq"`
	bus.Event
}

// ErrorResponse is the body of every answer with a status of 400 or more.
type ErrorResponse struct {
	Error APIError `json:"error"`
}

// The codes of an APIError, each with its HTTP status.
const (
	CodeInvalid          = "invalid"            // 400: the request; Field names what, where known
	CodeUnauthorized     = "unauthorized"       // 401: token missing or wrong
	CodeForbidden        = "forbidden"          // 403: another site's page, or a foreign Host
	CodeRole             = "role"               // 403: the token's role is not enough
	CodeRateLimited      = "rate_limited"       // 429: too many refused requests from an address, or requests of a token
	CodeUnknownAgent     = "unknown_agent"      // 404: no gateway has ever served it
	CodeNotFound         = "not_found"          // 404: no such message, inbox, queue, task or path
	CodeMethodNotAllowed = "method_not_allowed" // 405
	CodeConflict         = "conflict"           // 409: another message has this id
	CodeEnded            = "ended"              // 409: the message has ended, and cannot be cancelled
	CodeUnread           = "unread"             // 503: so much waits before the message that its owner has not read it
	CodeSpoiled          = "spoiled"            // 409: somebody wrote something else to this key by hand
	CodeInboxFull        = "inbox_full"         // 429: too many messages wait for the agent
	CodeExpired          = "expired"            // 410: its ttl passed before it could be written
	CodeTooLarge         = "too_large"          // 413: the body or the payload
	CodeContentType      = "content_type"       // 415
	CodeInternal         = "internal"           // 500: a bug here; the log has more
	CodeNotReady         = "not_ready"          // 503: the store was not reached yet
	CodeBusy             = "busy"               // 503: too many listen to events already
	CodeStopping         = "stopping"           // 503: this gateway is stopping; ask another
	CodeStoreUnavailable = "store_unavailable"  // 503: nothing was written
	CodeContended        = "contended"          // 503: too many write the same key; nothing was written
	CodeChannel          = "channel_failed"     // 409, 502: the vendor of a channel refused it
	CodeNotOwned         = "not_owned"          // 409: nobody owns it, or who is to have it cannot
	CodeGivenUp          = "given_up"           // 502: a completion's message became a dead letter
	CodeNotLeased        = "not_leased"         // 409: the message's lease is over, or it was acked
	CodeUntrusted        = "untrusted"          // 503: this gateway is not in the trust set, nobody would believe what it sends
	CodeNoEncryptionKey  = "no_encryption_key"  // 503: a gateway that may run the target has no key to encrypt for; nothing was written
	CodeStoreForbidden   = "store_forbidden"    // 503: the store's access rules refuse this gateway
	CodeOutcomeUnknown   = "outcome_unknown"    // 504: may be accepted; MessageID says which
	CodeTimeout          = "timeout"            // 504: the store did not answer in time
	CodeClientGone       = "client_closed"      // 499: for logs and metrics only
	statusClientGone     = 499
)

// APIError says what went wrong and, where somebody can mend it, how.
type APIError struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	// Field is the field of the request that is wrong.
	Field string `json:"field,omitempty"`
	// MessageID is the message that it is about.
	MessageID string `json:"message_id,omitempty"`

	status int
	retry  time.Duration // for Retry-After; 0: 1 s, where there is one
	denied string        // why it was refused before its route saw it: one of deniedReasons
}

func (e *APIError) Error() string { return e.Message }

// Status is the HTTP status.
func (e *APIError) Status() int { return e.status }
