// Command gatemesh is the whole binary: the gateway of a node, the client that talks to
// one, and the demo that runs three.
//
// It turns flags into configuration and configuration into a gateway; everything else is
// in the packages below it. Package gateway documents the API that the client commands use.
//
// # Exit status
//
//	0  done
//	1  it did not work: the message was given up, doctor found a failure, the daemon ended by an error
//	2  bad flags, bad input (also what the gateway refuses with HTTP 4xx), bad configuration
//	3  waited in vain (--timeout); what is known of the message was printed
//	4  the gateway, or the store behind it, cannot be reached now (also HTTP 503 and 504)
//
// Every error is one line on standard error, "gatemesh: what went wrong (how to mend it)". A
// configuration with several mistakes gets a line for each.
//
// # Environment
//
//	GATEMESH_ADDR           the gateway to talk to (--addr), default http://127.0.0.1:18789
//	GATEMESH_TOKEN          its token (--token), then OPENCLAW_GATEWAY_TOKEN
//	GATEMESH_CACERT         PEM file with the CA of its certificate, when the system does not know it
//	GATEMESH_PROFILE        the profile (--profile), then OPENCLAW_PROFILE: configuration and state in ~/.openclaw-NAME,
//	                        an embedded store, a port of its own
//	GATEMESH_CONFIG         the configuration file (--config), then OPENCLAW_CONFIG_PATH,
//	                        then ~/.openclaw/openclaw.json
//	GATEMESH_GATEWAY_KEY    a gateway's own key (PEM, or its seed in base64), instead of a file; a second one behind it is to
//	                        follow it
//	GATEMESH_ENROLL_TOKEN   the one-time token with which a gateway joins (mesh.trust.enrollToken)
//	GATEMESH_OPERATOR_KEY_FILE  the operator's key (--operator-key), default ~/.config/gatemesh/operator.key
//	CONSUL_*, NOMAD_*       as for their own tools: where the configuration says nothing
//	GATEMESH_CONSUL_BIN     the Consul binary for demo --store consul
//	NO_COLOR                no colours
//
// # Output
//
// On a terminal, tables are aligned and coloured. Elsewhere columns are separated by one tab, an
// empty cell is "-", and the first line names the columns. Text that came from elsewhere
// cannot move the cursor or change colours: control characters are replaced.
//
// # JSON
//
// With --json, a command prints one JSON value, or one a line where it follows something. A
// single value is indented on a terminal and one line elsewhere. The
// names are stable: fields may be added, none is renamed or removed. All times are
// RFC 3339 in UTC.
//
//	send, ask        {"message_id", "facts": {"accepted", "delivered", "acked", "replied", "dead",
//	                  "class"?, "reason"?}, "state"?, "delivery"?, "envelope"?, "reply"?, "text"?,
//	                  "timed_out"?, "where"?, "events": [EVENT]}     gateway.MessageStatus
//	message list     [the same, newest first]
//	message show     the same
//	  --follow       EVENT lines
//	message cancel   {"message_id", "class": "cancelled"|"unknown", "by"}      gateway.MessageCancelled
//	task add         as send
//	task show        as message show
//	task list        [{"message_id", "queue", "state": "waiting"|"delayed"|"running"|"retrying", "priority",
//	                  "from", "capability"?, "unique_key"?, "made_at", "due_at"?, "attempt"?, "worker"?,
//	                  "last_error"?}]                                                    bus.TaskInfo
//	task queues      [{"queue", "owner", "waiting", "delayed", "running",
//	                  "workers": [{"gateway", "slots", "since"}]}]                      bus.QueueInfo
//	task cancel      {"queue", "message_id", "by"}                             gateway.TaskCancelled
//	agents           [{"agent", "gateway", "name"?, "description"?, "workspace"?, "capabilities": [],
//	                  "status": "active"|"unreachable", "last_heartbeat"?}]             bus.AgentInfo
//	gateways         [{"gateway", "url", "agents": [], "status": "healthy"|"draining"|"unreachable",
//	                  "last_heartbeat"?, "version"?}]                                 bus.GatewayInfo
//	inbox [AGENT]    [{"agent", "owner", "waiting", "pending", "dead_letters",
//	                  "lanes": [{"from", "seq", "cursor", "waiting"}]}]                 bus.InboxInfo
//	state events     [{"id"?, "timestamp", "agent", "event"}, oldest first]           bus.StateEvent
//	  --clear        {"cleared": KEY}
//	state record     {"id", "timestamp", "agent", "event"}
//	state focus      {"focus"}, "" when there is none
//	status           {"gateway", "version", "url", "store", "started", "ready", "reason"?,
//	                  "owned": [], "streams", "caller"?, "agent"?, "role", "key", "trust": "open"|"waiting"|"enforced",
//	                  "trust_version"?, "key_ends"?, "next_key"?}           gateway.StatusResponse
//	events           EVENT lines, each with "seq", which counts without gaps
//	demo             EVENT lines (for people, standard error has the rest)
//	config validate  {"file", "ok", "problems": [REMARK], "warnings": [REMARK]};
//	                 REMARK is {"file"?, "line"?, "column"?, "key"?, "message", "severity"}
//	import openclaw  {"file", "ok": BOOL, "problems": [WHY], "agents": [{"id", "runner", "model"?, "gateways": []}],
//	                 "channels": [{"inbox", "connected": BOOL}], "bindings": N, "variables": [], "ignored": [WHY]};
//	                 WHY is {"key", "line"?, "reason"}
//	acl policy       HCL, with --json too
//	config show      the effective configuration, in the shape of the file
//	trust list, init, approve, revoke, operator, publish, enroll
//	                 {"mesh", "version", "issued_at", "signed_by": [ID], "operators": [KEY],
//	                  "gateways": [{"gateway", "agents": [], "keys": [KEY]}],
//	                  "revoked": [{"key", "gateway", "at"}]};
//	                 KEY is {"key": ID, "public", "not_before"?, "not_after"?}
//	trust enroll --new-token  {"gateway", "token", "expires", "agents": []}
//	trust pending    [{"gateway", "key", "public", "agents": [], "at", "token": BOOL, "problem"?}]
//	trust export     the signed set as it lies in the store
//	keys list        [{"kind": "operator"|"gateway"|"api"|"consul", "name", "key"?, "state": "in-use"|"valid"|"waiting"|
//	                  "ended"|"expired"|"revoked", "since"?, "until"?, "note"?}]
//	keys rotate gateway   {"gateway", "key", "public", "before": ID, "ends", "trust_version", "in_use": BOOL}
//	keys rotate operator  {"key", "public", "before": ID, "trust_version"}
//	keys rotate api  {"token", "entry": ENTRY, "old": ENTRY}; ENTRY as in token create
//	cron list        [JOB]; JOB is {"id", "name", "cron"|"every"|"at", "tz"?, "agent", "message", "session", "enabled",
//	                 "timeout"?, "created_at", "next_at"?, "last_run"?: RUN}
//	cron runs        [RUN]; RUN is {"scheduled_at", "started_at", "ended_at", "gateway", "by"?, "ok", "text", "skipped"?}
//	cron add, rm, run, enable, disable  JOB
//	policy show, publish  {"mesh", "version", "issued_at", "signed_by": ID, "rules": [{"name"?, "action", "from"?, "to"?,
//	                  "capability"?, "rate"?, "max_payload"?}], "problem"?}
//	policy explain   {"from", "to", "capability", "gateway", "allowed": BOOL, "rule"?, "number"?, "where"?, "reason",
//	                  "cases"?: [the same of each pair of gateways, when there are several]}
//	doctor           {"ok", "checks": [{"check", "status": "ok"|"warn"|"fail", "detail", "fix"?}]}
//	token create     {"token", "entry": {"name", "role", "sha256", "agent"?, "expires"?}}
//	token hash       {"sha256"}
//	version          {"version", "revision"?, "schema", "go", "platform"}
//
// EVENT is bus.Event: {"event", "at", "gateway", "message_id"?, "correlation_id"?, "in_reply_to"?,
// "from"?, "to"?, "capability"?, "state"?, "attempt"?, "class"?, "reason"?, "by"?, "ms"?, "text"?}.
// A question's story is every event whose correlation_id is the question's message_id.
package main
