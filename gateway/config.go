package gateway

import (
	"net"
	"slices"
	"strconv"
	"time"
)

// Config is everything one gateway daemon is told: OpenClaw's openclaw.json with a
// block "mesh" of ours.
//
// The struct tags are the only description of the keys. They name the key (json),
// say what it means (doc), its default (def), what it may be (enum, min, max) and
// how it behaves (cfg, below); reading, unknown keys, [ConfigReference], defaults,
// [Config.Show] and [Reloadable] all read them.
//
//	cfg:"secret"   the value is never printed; may be OpenClaw's {source, id} object
//	cfg:"live"     a change is taken up by a reload; without it, by a restart
//	cfg:"unused"   read and kept, but nothing in this version acts on it
//	cfg:"each"     with unused on a map: every entry is named by itself
//	cfg:"zero"     zero is a setting of its own, not "absent"
//	cfg:"rest"     a map that takes every key that no other field has
//	cfg:"short=k"  a string stands for {k: string}
//	cfg:"id"       must be an id: ^[a-z0-9][a-z0-9-]{0,62}$
//
// A blank field's accept tag lists keys of OpenClaw that are taken silently;
// accept:"*" takes any.
//
// A Config goes LoadConfig (or [DefaultConfig]), then [Config.Set] for flags, then
// [Config.Normalize], then [Config.Validate].
type Config struct {
	Mesh     MeshConfig               `json:"mesh" doc:"What gatemesh adds to OpenClaw's configuration."`
	Gateway  GatewayConfig            `json:"gateway" doc:"Where the gateway listens and whom it lets in."`
	Agents   AgentsConfig             `json:"agents" doc:"The agents, and what they have in common."`
	Bindings []BindingConfig          `json:"bindings" cfg:"live" doc:"Which agent answers whom: the most specific one that fits, of equals the first; else the default agent."`
	Models   ModelsConfig             `json:"models" cfg:"live" doc:"Model providers."`
	Channels map[string]ChannelConfig `json:"channels" doc:"Chat channels by name: slack, discord, whatsapp, webchat. Of others the gateway says once that it does not know them."`
	Cron     CronConfig               `json:"cron" doc:"Scheduler of jobs (gatemesh cron): one gateway of those that have it runs them."`
	Tools    ToolsConfig              `json:"tools" cfg:"live" doc:"Tools of every agent that thinks; agents.list[].tools narrows them."`
	MCP      MCPConfig                `json:"mcp" doc:"MCP servers whose tools agents that think have."`
	Update   map[string]any           `json:"update" cfg:"unused" doc:"OpenClaw's own updates."`
	Logging  map[string]any           `json:"logging" cfg:"unused" doc:"OpenClaw's log; ours is mesh.log."`
	Env      map[string]any           `json:"env" doc:"Values for ${VAR} when the process environment has none: {NAME: text} or {vars: {NAME: text}}. Never printed."`
	_        struct{}                 `accept:"$schema meta wizard diagnostics cli browser ui secrets auth acp nodeHost broadcast audio media messages commands approvals session sessions web hooks discovery canvasHost talk memory skills plugins security transcripts proxy worktrees surfaces"`

	source configSource
}

// MeshConfig is our block. Everything in it is optional.
type MeshConfig struct {
	Gateway           string        `json:"gateway" cfg:"id" def:"<host name>-gateway" doc:"This gateway's id: its name in the store. The name of a node runs once."`
	Store             string        `json:"store" def:"consul" enum:"consul|local" doc:"Where messages rest: Consul, or one file of this process (one node only)."`
	DataDir           string        `json:"dataDir" def:"~/.gatemesh/<gateway>" doc:"Directory of the local store; a leading ~ is the home directory."`
	Consul            ConsulConfig  `json:"consul" doc:"How to reach Consul."`
	Cluster           ClusterConfig `json:"cluster" doc:"What openclaw/cluster/ in the store says."`
	AdvertiseURL      string        `json:"advertiseURL" doc:"URL by which other nodes reach this gateway (http, https, ws or wss). Empty: made of the address it listens on."`
	HeartbeatInterval time.Duration `json:"heartbeatInterval" def:"20s" min:"1s" max:"1h" doc:"How often the registry entries of gateway and agents are written."`
	SessionTTL        time.Duration `json:"sessionTTL" def:"15s" min:"10s" max:"1h" doc:"TTL of the session that holds this gateway's locks. Consul may take twice as long to free them."`
	DefaultTTL        time.Duration `json:"defaultTTL" cfg:"live" def:"5m" min:"1s" doc:"Life of a message whose sender names none."`
	MaxTTL            time.Duration `json:"maxTTL" cfg:"live" def:"24h" min:"1s" max:"720h" doc:"Longest life a sender may ask for."`
	DefaultMaxHops    int           `json:"defaultMaxHops" cfg:"live" def:"4" min:"1" max:"32" doc:"Hops a message may make when its sender names no limit."`
	MaxPayload        ConfigBytes   `json:"maxPayload" cfg:"live" def:"8MiB" min:"1KiB" max:"16MiB" doc:"Largest payload of a message. Above 128KiB it lies in chunks beside its envelope."`
	Retry             RetryConfig   `json:"retry" cfg:"live" doc:"What happens after a failed attempt."`
	AckTimeout        time.Duration `json:"ackTimeout" cfg:"live" def:"10m" min:"1s" doc:"How long one attempt of a handler may take, unless its agent says otherwise."`
	ResultRetention   time.Duration `json:"resultRetention" cfg:"live" def:"1h" min:"1s" doc:"How long an answer asked for through the API can be read."`
	MaxInbox          int           `json:"maxInbox" def:"200000" min:"1" doc:"Messages of this gateway that may wait in one inbox; then sends are refused."`
	MaxWrites         int           `json:"maxWritesPerSecond" def:"1000" min:"1" doc:"Transactions of delivery that this gateway asks of the store in a second, at most."`
	DeadRetention     time.Duration `json:"deadLetterRetention" def:"168h" min:"1m" doc:"How long dead letters are kept; of one agent the newest 1000 at most."`
	Queues            []QueueConfig `json:"queues" doc:"Task queues: what many may add to and several gateways work off, each task once."`
	Policy            PolicyConfig  `json:"policy" cfg:"live" doc:"Which agent may ask what of the agents here, when it asks from another gateway."`
	Log               LogConfig     `json:"log" cfg:"live" doc:"Our log, on standard error."`
	Service           ServiceConfig `json:"service" doc:"The entry in Consul's catalog."`

	Identity        IdentityConfig        `json:"identity" doc:"The key that this gateway signs with."`
	Trust           TrustConfig           `json:"trust" doc:"Whose signatures count."`
	Confidentiality ConfidentialityConfig `json:"confidentiality" cfg:"live" doc:"Which payloads are encrypted, so that whoever reads the store sees headers only."`
	Audit           AuditConfig           `json:"audit" doc:"The log of what happened, for those who must be able to prove it."`

	ChannelKeys []string `json:"channelKeys" cfg:"secret" doc:"Keys of 32 bytes in base64 that encrypt the channels' credentials in the store, the same on all gateways; the first one encrypts, all decrypt. Empty: GATEMESH_CHANNEL_KEY, where a comma separates them; else channels that keep credentials (whatsapp) cannot run. gatemesh channels key makes one."`
}

// IdentityConfig is the key that the gateway signs with.
type IdentityConfig struct {
	KeyFile string `json:"keyFile" doc:"File with this gateway's Ed25519 key (PKCS #8 as PEM, or its seed in base64), mode 0600. It is read again when it changes: another key, alone or behind the old one, is asked for. Empty: the key itself in GATEMESH_GATEWAY_KEY, else identity.key in mesh.dataDir, made on the first start."`
}

// TrustConfig is whose signatures count.
type TrustConfig struct {
	Mode         string   `json:"mode" def:"open" enum:"open|enforce" doc:"open: what is unsigned is taken until a trust set of a known operator was seen, from then on refused. enforce: refused from the start; nothing goes without a trust set."`
	OperatorKeys []string `json:"operatorKeys" doc:"Public keys of the operators that may sign the first trust set (gatemesh trust init prints one). What was seen is kept in mesh.dataDir and counts from then on. Empty: that of the enrolment token, else the mesh stays open."`
	EnrollToken  string   `json:"enrollToken" cfg:"secret" doc:"One-time token that lets this gateway join (gatemesh trust enroll makes it). Empty: GATEMESH_ENROLL_TOKEN, else the operator approves the request by its key."`
}

// ConsulConfig is how to reach Consul. What is empty comes from CONSUL_HTTP_ADDR,
// CONSUL_HTTP_TOKEN and their family, which Consul's client reads itself.
type ConsulConfig struct {
	Address    string `json:"address" doc:"host:port or URL of the agent. Empty: CONSUL_HTTP_ADDR, else 127.0.0.1:8500."`
	Token      string `json:"token" cfg:"secret" doc:"ACL token. Empty: CONSUL_HTTP_TOKEN. A new one needs a restart; one in tokenFile does not."`
	TokenFile  string `json:"tokenFile" doc:"File with the ACL token, read again when it changes. Empty: CONSUL_HTTP_TOKEN_FILE. It wins over token."`
	Datacenter string `json:"datacenter" doc:"Datacenter. Empty: the agent's own."`
}

// ClusterConfig is written to openclaw/cluster/ by the first gateway.
type ClusterConfig struct {
	ID         string `json:"id" def:"octant-homelab" doc:"Name of the mesh."`
	Deployment string `json:"deployment" def:"option-2-distributed" doc:"Name of the way it is deployed."`
}

// RetryConfig is the backoff of failed attempts.
type RetryConfig struct {
	MaxAttempts int           `json:"maxAttempts" def:"5" min:"1" max:"1000" doc:"Attempts before a message goes to the dead letters, the first included."`
	Initial     time.Duration `json:"initial" def:"1s" min:"1ms" doc:"Wait before the second attempt; it doubles from there."`
	Max         time.Duration `json:"max" def:"1m" min:"1ms" doc:"Longest wait between two attempts."`
}

// LogConfig is our log.
type LogConfig struct {
	Level string `json:"level" def:"info" enum:"debug|info|warn|error" doc:"Least level that is written."`
	JSON  bool   `json:"json" def:"false" doc:"One JSON object a line instead of text."`
}

// ServiceConfig is the entry in Consul's catalog.
type ServiceConfig struct {
	Name     string `json:"name" def:"openclaw" doc:"Name of the service."`
	Register bool   `json:"register" def:"true" doc:"Whether this gateway registers itself (say false where Nomad does)."`
}

// GatewayConfig is where the gateway listens and whom it lets in.
type GatewayConfig struct {
	Port      int             `json:"port" cfg:"zero" def:"18789" min:"0" max:"65535" doc:"TCP port of API and probes; 0 takes any free one."`
	Bind      string          `json:"bind" def:"loopback" doc:"loopback, lan (all interfaces) or an IP address. Anything beyond loopback needs a token."`
	Mode      string          `json:"mode" enum:"|local|remote" doc:"OpenClaw's: local, or remote for a client, which is refused here."`
	Auth      AuthConfig      `json:"auth" cfg:"live" doc:"Who may use the API."`
	TLS       TLSConfig       `json:"tls" doc:"HTTPS instead of HTTP on the port, TLS 1.2 or later."`
	Tailscale TailscaleConfig `json:"tailscale" doc:"Whether Tailscale Serve or Funnel stands in front; set up outside of gatemesh."`
	ControlUI ControlUIConfig `json:"controlUi" doc:"The page, and pages from elsewhere."`
	HTTP      map[string]any  `json:"http" cfg:"unused" doc:"OpenClaw's HTTP endpoints."`
	_         struct{}        `accept:"customBindHost remote reload nodes trustedProxies allowRealIpFallback tools channelHealthCheckMinutes push webchat handshakeTimeoutMs channelStaleEventThresholdMinutes channelMaxRestartsPerHour"`
}

// AuthConfig is who may use the API.
type AuthConfig struct {
	Mode      string          `json:"mode" enum:"|token|none" doc:"token or none. Empty: token when one is known, else none."`
	Token     string          `json:"token" cfg:"secret" doc:"Bearer token with the role operate. Empty, and no tokens: OPENCLAW_GATEWAY_TOKEN, then GATEMESH_TOKEN."`
	Tokens    []TokenConfig   `json:"tokens" doc:"More tokens, by their hashes; gatemesh token create makes one. Two entries at a time let one be replaced without a gap."`
	RateLimit RateLimitConfig `json:"rateLimit" doc:"What becomes of an address that is refused again and again."`
	_         struct{}        `accept:"password allowTailscale trustedProxy"`
}

// TokenConfig is one bearer token, known by its hash alone.
type TokenConfig struct {
	Name        string `json:"name" cfg:"id" doc:"Who has it: what log, status and refusals call it."`
	Role        string `json:"role" enum:"read|send|operate" doc:"What it may do: look; also send and ask; also redrive, purge, cancel and clear."`
	SHA256      string `json:"sha256" cfg:"secret" doc:"SHA-256 of the token, 64 hexadecimal digits (gatemesh token hash)."`
	Agent       string `json:"agent" cfg:"id" doc:"The agent that it speaks for: what is sent with it is from that agent, and it fetches and sees that agent's messages and dead letters alone. Empty: who sends says from whom."`
	Expires     string `json:"expires" doc:"When it ends, as 2027-01-31T00:00:00Z. Empty: never."`
	MaxRequests int    `json:"maxRequestsPerSecond" min:"0" max:"100000" doc:"Requests of it in a second, at most, and as many at once. 0: any number."`
}

// RateLimitConfig is OpenClaw's limit of failed attempts.
type RateLimitConfig struct {
	MaxAttempts    int  `json:"maxAttempts" def:"10" min:"1" max:"10000" doc:"Refused requests of one address (IPv6: of one /64) in windowMs, before they are answered 429."`
	WindowMs       int  `json:"windowMs" def:"60000" min:"1000" max:"86400000" doc:"Milliseconds in which an address gets maxAttempts back."`
	ExemptLoopback bool `json:"exemptLoopback" def:"false" doc:"Whether this machine may try as often as it likes."`
	LockoutMs      int  `json:"lockoutMs" cfg:"unused" doc:"OpenClaw: how long an address is locked out."`
}

// TLSConfig is the certificate of the port. Its files are read again when they change.
type TLSConfig struct {
	Enabled      bool   `json:"enabled" def:"false" doc:"Whether the port speaks HTTPS."`
	CertPath     string `json:"certPath" doc:"PEM file with the certificate and those between it and its CA. Read again when it changes."`
	KeyPath      string `json:"keyPath" doc:"PEM file with its private key."`
	AutoGenerate bool   `json:"autoGenerate" cfg:"unused" doc:"OpenClaw: make a certificate that nobody knows."`
	CAPath       string `json:"caPath" cfg:"unused" doc:"OpenClaw: CA bundle for its own clients (ours: GATEMESH_CACERT)."`
}

// ControlUIConfig is the page.
type ControlUIConfig struct {
	AllowedOrigins []string `json:"allowedOrigins" cfg:"live" doc:"Origins beside the gateway's own whose pages may send and listen, as https://mesh.example."`
	_              struct{} `accept:"enabled basePath root embedSandbox allowExternalEmbedUrls chatMessageMaxWidth allowInsecureAuth dangerouslyAllowHostHeaderOriginFallback dangerouslyDisableDeviceAuth"`
}

// TailscaleConfig is what stands in front. gatemesh does not run tailscale itself; it
// only says what does not fit bind.
type TailscaleConfig struct {
	Mode        string   `json:"mode" def:"off" enum:"off|serve|funnel" doc:"off, serve or funnel: what hands requests to 127.0.0.1. With another bind the gateway can be reached around it, which is warned of."`
	ResetOnExit bool     `json:"resetOnExit" cfg:"unused" doc:"OpenClaw: undo the Serve configuration on exit."`
	_           struct{} `accept:"serviceName preserveFunnel"`
}

// AgentsConfig is the agents. After Normalize all of them are in List.
type AgentsConfig struct {
	Defaults AgentDefaults          `json:"defaults" cfg:"live" doc:"What agents have in common; an agent's own setting wins."`
	List     []AgentConfig          `json:"list" doc:"The agents."`
	Entries  map[string]AgentConfig `json:"entries" doc:"The agents by id: OpenClaw's newer form of list."`
	_        struct{}               `accept:"ownership"`
}

// AgentDefaults is what agents have in common.
type AgentDefaults struct {
	Workspace     string          `json:"workspace" doc:"Directory of agents that name none."`
	Model         ModelConfig     `json:"model" cfg:"short=primary" doc:"Model of agents that name none: provider/model, or {primary, fallbacks}."`
	Sandbox       SandboxConfig   `json:"sandbox" doc:"Sandbox of agents that name none."`
	Runner        RunnerConfig    `json:"runner" cfg:"short=kind" doc:"Runner of agents that name none."`
	MaxConcurrent int             `json:"maxConcurrent" def:"16" min:"1" max:"10000" doc:"Messages of one agent in work at the same time."`
	AckTimeout    time.Duration   `json:"ackTimeout" min:"1s" doc:"How long one attempt may take. Empty: mesh.ackTimeout."`
	Heartbeat     map[string]any  `json:"heartbeat" cfg:"unused" doc:"OpenClaw's model heartbeat."`
	Subagents     SubagentsConfig `json:"subagents" doc:"Sub-sessions of agents that name no agents for theirs."`
	_             struct{}        `accept:"*"`
}

// AgentConfig is one agent.
type AgentConfig struct {
	ID            string          `json:"id" cfg:"id" doc:"Address of the agent in the mesh; not the id of a gateway."`
	Name          string          `json:"name" cfg:"live" doc:"Name for people. Empty: the id."`
	Description   string          `json:"description" cfg:"live" doc:"What it is for."`
	Workspace     string          `json:"workspace" cfg:"live" doc:"Its directory, as the registry shows it."`
	Capabilities  []string        `json:"capabilities" cfg:"live" doc:"What it can be asked for; shown in the registry."`
	Gateways      []string        `json:"gateways" doc:"Gateways that may run it, the preferred one first. Empty: this one."`
	Runner        RunnerConfig    `json:"runner" cfg:"live,short=kind" doc:"What answers its messages; a string is its kind."`
	MaxConcurrent int             `json:"maxConcurrent" cfg:"live" min:"1" max:"10000" doc:"Messages in work at the same time. Empty: agents.defaults.maxConcurrent (16)."`
	AckTimeout    time.Duration   `json:"ackTimeout" cfg:"live" min:"1s" doc:"How long one attempt may take. Empty: agents.defaults.ackTimeout, then mesh.ackTimeout."`
	Model         ModelConfig     `json:"model" cfg:"live,short=primary" doc:"Model: provider/model, or {primary, fallbacks}. Empty: agents.defaults.model."`
	Sandbox       SandboxConfig   `json:"sandbox" cfg:"live" doc:"How what it runs is confined."`
	Tools         ToolsConfig     `json:"tools" cfg:"live" doc:"Tools it may use, of those of tools. Its own profile and exec settings count instead of those there."`
	Subagents     SubagentsConfig `json:"subagents" cfg:"live" doc:"Sub-sessions that it may start."`
	Alerts        AlertsConfig    `json:"alerts" cfg:"live" doc:"Where it posts what agents that watch tell it (infra.alert)."`
	Default       bool            `json:"default" cfg:"live" def:"false" doc:"Whether it answers on the channels what no binding is about. Else the first agent of the file does."`
	_             struct{}        `accept:"agentDir skills memorySearch humanDelay heartbeat identity groupChat params thinkingDefault reasoningDefault fastModeDefault runtime embeddedPi embeddedAgent contextLimits tts experimental verboseDefault systemPromptOverride"`

	path string // where it stood in the file: agents.list[1], agents.entries.bobby
	// keyless is why its model is not asked although nobody chose another runner; empty: it is, or there is none.
	keyless string
}

// RunnerConfig is what answers an agent's messages. A key that its kind does not use is
// ignored.
type RunnerConfig struct {
	Kind    string         `json:"kind" def:"relay" enum:"relay|checks|echo|llm|mailbox|a2a|openclaw|exec" doc:"relay asks another agent and hands its answer back, checks looks at Consul, Nomad and the node, echo answers with what it got, llm asks the agent's model, mailbox keeps messages until a program fetches them (POST /v1/agents/ID/mail, or MCP), a2a asks a remote agent by A2A 1.0, openclaw an agent of a real OpenClaw gateway, exec runs a program for each message. An agent without a runner is llm when it has a model that can be asked (its key is known), else relay."`
	To      string         `json:"to" cfg:"id" doc:"relay: the agent that is asked; openclaw: the agent there (empty: the same id)."`
	Alert   string         `json:"alert" cfg:"id" doc:"checks: the agent that is told (infra.alert) when a check finds something wrong after one that did not, and when all is well again: once each. Empty: nobody."`
	Checks  []string       `json:"checks" doc:"checks: which ones (consul, nomad, node). Empty: all."`
	Timeout time.Duration  `json:"timeout" min:"1ms" doc:"relay: how long to wait for the answer; checks: how long one may take; llm: how long one call of a model may take. Empty: the runner's own default."`
	Nomad   NomadConfig    `json:"nomad" doc:"checks: how to reach Nomad."`
	Command []string       `json:"command" doc:"exec: the program and its arguments, in the agent's workspace and sandbox. The message is its standard input, its standard output the answer; exit status 75 has it run again later."`
	Repeat  bool           `json:"repeat" def:"false" doc:"exec: the program may run again for a message in whose run it was cut off by a crash. Else such a message is a dead letter of the class unknown."`
	URL     string         `json:"url" doc:"a2a: where the remote agent is: its card lies at URL/.well-known/agent-card.json; openclaw: where its gateway is, as ws://127.0.0.1:18789."`
	Token   string         `json:"token" cfg:"secret" doc:"a2a, openclaw: token for it."`
	Resend  bool           `json:"resendSameId" def:"false" doc:"a2a: the remote agent takes a message id once (a gatemesh gateway does): a question whose answer was lost is sent again. Else it is looked for in the agent's tasks, and stays unknown where that cannot be done."`
	Options map[string]any `json:"options" doc:"Anything else, handed to the runner as it is."`
}

// AlertsConfig is a place in a chat channel. An agent that has one does not think about alerts: they are posted there as they are.
type AlertsConfig struct {
	Channel string `json:"channel" doc:"Channel: slack, discord, whatsapp or webchat. Empty: alerts go to the agent's runner like everything else."`
	Account string `json:"account" doc:"Account of the channel. Empty: default."`
	To      string `json:"to" doc:"Whom or where, with its kind: channel:C0123456789, group:ID or dm:U0123456789, by the platform's id."`
}

// NomadConfig is how to reach Nomad.
type NomadConfig struct {
	Address string `json:"address" doc:"URL of the agent. Empty: NOMAD_ADDR."`
	Token   string `json:"token" cfg:"secret" doc:"ACL token. Empty: NOMAD_TOKEN."`
}

// QueueConfig is one task queue. The same entry on every node says who keeps it and who works.
type QueueConfig struct {
	ID          string        `json:"id" cfg:"id" doc:"Address of the queue in the mesh; not the id of an agent or a gateway."`
	Description string        `json:"description" doc:"What it is for."`
	Agent       string        `json:"agent" cfg:"id" doc:"The agent whose runner does the work; one of this file."`
	Gateways    []string      `json:"gateways" doc:"Gateways that may own the queue, the preferred one first. Empty: those of its agent."`
	Workers     []string      `json:"workers" doc:"Gateways that do the work. Empty: those of its agent."`
	Concurrency int           `json:"concurrency" def:"1" min:"1" max:"128" doc:"Tasks that each of the workers does at the same time."`
	AckTimeout  time.Duration `json:"ackTimeout" min:"1s" doc:"How long one attempt may go without a sign of life before another worker gets the task. Empty: that of its agent."`
}

// ListenAddr is the TCP address to listen on, as net.Listen takes it.
func (c *Config) ListenAddr() string {
	host := c.Gateway.Bind
	switch host {
	case "loopback", "":
		host = "127.0.0.1"
	case "lan":
		host = ""
	}
	return net.JoinHostPort(host, strconv.Itoa(c.Gateway.Port))
}

// AgentsHere returns the agents that this gateway may run, in the order of the file.
// Call Normalize first.
func (c *Config) AgentsHere() []AgentConfig {
	return cfgWhere(c.Agents.List, func(a AgentConfig) bool { return slices.Contains(a.Gateways, c.Mesh.Gateway) })
}

// QueuesHere returns the queues that this gateway may own. Call Normalize first.
func (c *Config) QueuesHere() []QueueConfig {
	return cfgWhere(c.Mesh.Queues, func(q QueueConfig) bool { return slices.Contains(q.Gateways, c.Mesh.Gateway) })
}

// WorkHere returns the queues that this gateway is a worker of. Call Normalize first.
func (c *Config) WorkHere() []QueueConfig {
	return cfgWhere(c.Mesh.Queues, func(q QueueConfig) bool { return slices.Contains(q.Workers, c.Mesh.Gateway) })
}

// runnersHere are the agents whose runners this gateway needs: for their inboxes, or for a queue.
func (c *Config) runnersHere() []AgentConfig {
	work := c.WorkHere()
	return cfgWhere(c.Agents.List, func(a AgentConfig) bool {
		return slices.Contains(a.Gateways, c.Mesh.Gateway) || slices.ContainsFunc(work, func(q QueueConfig) bool { return q.Agent == a.ID })
	})
}

func cfgWhere[T any](list []T, fits func(T) bool) (here []T) {
	for _, x := range list {
		if fits(x) {
			here = append(here, x)
		}
	}
	return here
}
