package envelope

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
)

// Version of the schema that this package writes. It reads every minor of Major.
const (
	Major   = 1
	Version = "1.0"
)

// Limits of the wire contract.
const (
	// MaxPayload is the largest payload in bytes of JSON. With the other
	// fields it stays below what one Consul transaction carries (393,216
	// bytes before base64).
	MaxPayload = 256 << 10
	// MaxEncoded is the largest sealed envelope in bytes.
	MaxEncoded = MaxPayload + 8<<10
	// MaxHops is the largest max_hops.
	MaxHops = 32
	// MaxTTL is the longest ttl.
	MaxTTL = 30 * 24 * time.Hour
	// maxLabel bounds capability, conversation_id and traceparent, in bytes.
	maxLabel = 256
)

// Envelope is what the sender said. See the package comment for the fields.
type Envelope struct {
	SchemaVersion  string          `json:"schema_version"`
	MessageID      string          `json:"message_id"`
	CorrelationID  string          `json:"correlation_id"`
	ConversationID string          `json:"conversation_id"`
	InReplyTo      string          `json:"in_reply_to,omitempty"`
	ReplyTo        string          `json:"reply_to,omitempty"`
	SourceGateway  string          `json:"source_gateway"`
	SourceAgent    string          `json:"source_agent"`
	TargetGateway  string          `json:"target_gateway,omitempty"`
	TargetAgent    string          `json:"target_agent"`
	Capability     string          `json:"capability,omitempty"`
	Payload        json.RawMessage `json:"payload"`
	CreatedAt      Time            `json:"created_at"`
	TTL            Millis          `json:"ttl"`
	MaxHops        int             `json:"max_hops"`
	Terminal       bool            `json:"terminal,omitempty"`
	Budget         *Budget         `json:"budget,omitempty"`
	Traceparent    string          `json:"traceparent,omitempty"`
}

// Budget is what a causal chain may still spend; nil fields are unlimited.
type Budget struct {
	Messages *int64   `json:"messages,omitempty"`
	Tokens   *int64   `json:"tokens,omitempty"`
	USD      *float64 `json:"usd,omitempty"`
	Deadline *Time    `json:"deadline,omitempty"`
}

// NewID returns a fresh message id (UUIDv7, so ids sort by the time they were made;
// nothing relies on that order).
func NewID() string { return uuid.Must(uuid.NewV7()).String() }

// DerivedID returns the id of the step of a message's handling that name
// identifies: always the same for the same two, so that a handler that runs again
// after a crash asks under the id it asked under before.
func DerivedID(parent, name string) string {
	p, err := uuid.Parse(parent)
	if err != nil {
		p = uuid.Nil
	}
	return uuid.NewSHA1(p, []byte(name)).String()
}

// Key is the identity of a message: an id means nothing without the gateway that gave it.
func (e *Envelope) Key() string { return e.SourceGateway + "/" + e.MessageID }

// ExpiresAt is the moment after which nobody may act on the envelope.
func (e *Envelope) ExpiresAt() time.Time { return e.CreatedAt.Add(e.TTL.Duration()) }

// Text is the payload as a person reads it: a JSON string unquoted, else the JSON.
func (e *Envelope) Text() string { return PayloadText(e.Payload) }

// PayloadText renders a payload for people: a JSON string unquoted, other JSON as it is.
func PayloadText(p json.RawMessage) string {
	var s string
	if len(p) > 0 && p[0] == '"' && json.Unmarshal(p, &s) == nil {
		return s
	}
	return string(p)
}

// TextPayload is the payload that holds s.
func TextPayload(s string) json.RawMessage {
	b, err := encode(strings.ToValidUTF8(s, "\uFFFD"))
	if err != nil { // a Go string always encodes
		panic(err)
	}
	return b
}

var nameRE = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)

// ValidName reports whether s may name a gateway or an agent: 1 to 63 of a-z, 0-9 and "-",
// not starting with "-" (a DNS label, and safe in a key).
func ValidName(s string) bool { return nameRE.MatchString(s) }

// Address is where a message goes: an agent, optionally pinned to one gateway.
type Address struct{ Agent, Gateway string }

// ParseAddress reads "agent" or "agent@gateway".
func ParseAddress(s string) (Address, error) {
	agent, gw, pinned := strings.Cut(s, "@")
	if !ValidName(agent) || pinned && !ValidName(gw) {
		return Address{}, fmt.Errorf("address %q: want agent or agent@gateway, each of a-z, 0-9 and -", clip(s, 80))
	}
	return Address{Agent: agent, Gateway: gw}, nil
}

func (a Address) String() string {
	if a.Gateway == "" {
		return a.Agent
	}
	return a.Agent + "@" + a.Gateway
}

// ErrInvalid is wrapped by every refusal of an envelope's form.
var ErrInvalid = errors.New("invalid envelope")

// A VersionError refuses an envelope of a major version that this build does not speak.
type VersionError struct{ Got string }

func (e *VersionError) Error() string {
	return fmt.Sprintf("envelope schema_version %q is not supported (this build speaks %d.x): upgrade this gateway", clip(e.Got, 20), Major)
}

// Is makes a VersionError an ErrInvalid.
func (e *VersionError) Is(target error) bool { return target == ErrInvalid }

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrInvalid, fmt.Sprintf(format, args...))
}

// Validate checks every field. It does not look at the clock.
func (e *Envelope) Validate() error {
	if err := checkVersion(e.SchemaVersion); err != nil {
		return err
	}
	for _, f := range [...]struct {
		name, value string
		optional    bool
	}{
		{"message_id", e.MessageID, false},
		{"correlation_id", e.CorrelationID, false},
		{"in_reply_to", e.InReplyTo, true},
	} {
		if f.value == "" && f.optional {
			continue
		}
		if len(f.value) != 36 || uuid.Validate(f.value) != nil || strings.ToLower(f.value) != f.value {
			return invalid("%s %q is not a lower-case UUID", f.name, clip(f.value, 60))
		}
	}
	for _, f := range [...]struct {
		name, value string
		optional    bool
	}{
		{"source_gateway", e.SourceGateway, false},
		{"source_agent", e.SourceAgent, false},
		{"target_gateway", e.TargetGateway, true},
		{"target_agent", e.TargetAgent, false},
		{"reply_to", e.ReplyTo, true},
	} {
		if f.value == "" && f.optional {
			continue
		}
		if !ValidName(f.value) {
			return invalid("%s %q is not a name (1 to 63 of a-z, 0-9 and -)", f.name, clip(f.value, 80))
		}
	}
	for _, f := range [...]struct{ name, value string }{
		{"capability", e.Capability}, {"conversation_id", e.ConversationID}, {"traceparent", e.Traceparent},
	} {
		if len(f.value) > maxLabel {
			return invalid("%s is %d bytes, at most %d", f.name, len(f.value), maxLabel)
		}
		if strings.ContainsFunc(f.value, func(r rune) bool { return r < ' ' || r == 0x7f || r == utf8.RuneError }) {
			return invalid("%s holds control characters", f.name)
		}
	}
	switch {
	case e.ConversationID == "":
		return invalid("conversation_id is missing")
	case len(e.Payload) == 0:
		return invalid("payload is missing")
	case len(e.Payload) > MaxPayload:
		return invalid("payload is %d bytes, at most %d", len(e.Payload), MaxPayload)
	case e.CreatedAt.IsZero():
		return invalid("created_at is missing")
	case e.TTL <= 0 || e.TTL.Duration() > MaxTTL:
		return invalid("ttl is %d ms, want 1 to %d", int64(e.TTL), MaxTTL.Milliseconds())
	case e.MaxHops < 1 || e.MaxHops > MaxHops:
		return invalid("max_hops is %d, want 1 to %d", e.MaxHops, MaxHops)
	}
	return e.Budget.validate()
}

func (b *Budget) validate() error {
	switch {
	case b == nil:
		return nil
	case b.Messages != nil && *b.Messages < 0, b.Tokens != nil && *b.Tokens < 0, b.USD != nil && *b.USD < 0:
		return invalid("budget is negative")
	}
	return nil
}

func checkVersion(v string) error {
	major, minor, ok := strings.Cut(v, ".")
	if !ok || !digits(major) || !digits(minor) {
		return invalid("schema_version %q is not MAJOR.MINOR", clip(v, 20))
	}
	if major != fmt.Sprint(Major) {
		return &VersionError{Got: v}
	}
	return nil
}

func digits(s string) bool {
	return s != "" && len(s) <= 4 && strings.Trim(s, "0123456789") == ""
}

func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + "..."
}

// Time is a moment in UTC with millisecond precision, as RFC 3339.
type Time struct{ time.Time }

// At rounds t down to what the wire can hold.
func At(t time.Time) Time { return Time{t.UTC().Truncate(time.Millisecond)} }

const timeLayout = "2006-01-02T15:04:05.000Z"

// MarshalJSON implements json.Marshaler.
func (t Time) MarshalJSON() ([]byte, error) {
	if y := t.Year(); y < 0 || y > 9999 {
		return nil, fmt.Errorf("year %d cannot be written", y)
	}
	return t.UTC().AppendFormat(make([]byte, 0, 26), `"`+timeLayout+`"`), nil
}

// UnmarshalJSON implements json.Unmarshaler.
func (t *Time) UnmarshalJSON(b []byte) error {
	var raw time.Time
	if err := raw.UnmarshalJSON(b); err != nil {
		return err
	}
	*t = At(raw)
	return nil
}

// Millis is a duration in milliseconds on the wire.
type Millis int64

// MillisOf rounds d down to milliseconds.
func MillisOf(d time.Duration) Millis { return Millis(d.Milliseconds()) }

// Duration is m as a Go duration, capped at the largest.
func (m Millis) Duration() time.Duration {
	if int64(m) > int64(1<<63-1)/int64(time.Millisecond) {
		return 1<<63 - 1
	}
	return time.Duration(m) * time.Millisecond
}
