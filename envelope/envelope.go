package envelope

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/uuid"
)

// Version of the schema that this package writes. It reads every minor of Major.
const (
	Major   = 1
	Version = "1.1"
)

// Limits of the wire contract.
const (
	// MaxPayload is the largest payload in bytes of JSON. Two envelopes of this size, one
	// worked on and one that its handling sends, fit into one Consul transaction
	// (376,832 bytes of values).
	MaxPayload = 128 << 10
	// MaxEncoded is the largest sealed envelope in bytes. All known fields at their limits
	// take less; newer minors may use the rest.
	MaxEncoded = MaxPayload + 8<<10
	// MaxClaim is the largest payload that lies outside of its envelope, in bytes.
	MaxClaim = 16 << 20
	// MaxAttempts is the largest max_attempts.
	MaxAttempts = 100
	// MaxHops is the largest max_hops.
	MaxHops = 32
	// MaxTTL is the longest ttl.
	MaxTTL = 30 * 24 * time.Hour
	// MaxDelay is how far ahead a sender may put a not_before. Gateways that send hold to it.
	MaxDelay = 30 * 24 * time.Hour
	// MaxPriority is the highest priority, DefaultPriority that of a message that names none.
	MaxPriority     = 9
	DefaultPriority = 5
	// maxLabel bounds capability, conversation_id and traceparent, in characters.
	maxLabel = 256
	// maxDepth bounds nesting. encoding/json gives up at 10,000: an envelope just below
	// that could not be packed into an entry any more, and would take others with it.
	maxDepth = 256
	// maxKeys bounds the fields of an envelope, those of newer minors included.
	maxKeys = 32
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
	MaxAttempts    int             `json:"max_attempts,omitempty"`
	AckTimeout     Millis          `json:"ack_timeout,omitempty"`
	RetryDelay     Millis          `json:"retry_delay,omitempty"`
	PayloadSize    int64           `json:"payload_size,omitempty"`
	PayloadSHA256  string          `json:"payload_sha256,omitempty"`
	Terminal       bool            `json:"terminal,omitempty"`
	Budget         *Budget         `json:"budget,omitempty"`
	Task           *Task           `json:"task,omitempty"`
	Encryption     *Encryption     `json:"encryption,omitempty"`
	Traceparent    string          `json:"traceparent,omitempty"`
}

// Budget is what a causal chain may still spend; nil fields are unlimited.
type Budget struct {
	Messages *int64   `json:"messages,omitempty"`
	Tokens   *int64   `json:"tokens,omitempty"`
	USD      *float64 `json:"usd,omitempty"`
	Deadline *Time    `json:"deadline,omitempty"`
}

// Task says when a message is worth handling and how much it matters; absent fields are the defaults.
type Task struct {
	// Priority is 0 to 9; nil means DefaultPriority.
	Priority *int `json:"priority,omitempty"`
	// NotBefore is the moment before which nobody handles it, by the receiver's clock; its ttl counts from
	// then on.
	NotBefore *Time `json:"not_before,omitempty"`
	// UniqueKey makes it one of a kind in a queue; UniqueFor is how long after its end it still is.
	UniqueKey string `json:"unique_key,omitempty"`
	UniqueFor Millis `json:"unique_for,omitempty"`
}

// NewID returns a fresh message id (UUIDv7, so ids sort by the time they were made;
// nothing relies on that order).
func NewID() string { return uuid.Must(uuid.NewV7()).String() }

// DerivedID returns the id of the step of a message's handling that name
// identifies: always the same for the same two, so that a handler that runs again
// after a crash asks under the id it asked under before. Parent is a message id.
func DerivedID(parent, name string) string {
	p, err := uuid.Parse(parent)
	if err != nil { // no message id, but still one step of one parent
		p = uuid.NewSHA1(uuid.Nil, []byte(parent))
	}
	return uuid.NewSHA1(p, []byte(name)).String()
}

// MessageKey is the identity of a message: an id means nothing without the gateway that gave it.
type MessageKey struct{ Gateway, ID string }

// Key is the message's identity.
func (e *Envelope) Key() MessageKey { return MessageKey{e.SourceGateway, e.MessageID} }

// ExpiresAt is the moment after which nobody may act on the envelope: its ttl counts from created_at
// or, when that is later, from not_before.
func (e *Envelope) ExpiresAt() time.Time {
	if at := e.NotBefore(); at.After(e.CreatedAt.Time) {
		return at.Add(e.TTL.Duration())
	}
	return e.CreatedAt.Add(e.TTL.Duration())
}

// NotBefore is the moment before which nobody may handle the envelope; zero: there is none.
func (e *Envelope) NotBefore() time.Time {
	if e.Task == nil || e.Task.NotBefore == nil {
		return time.Time{}
	}
	return e.Task.NotBefore.Time
}

// Priority is how much the envelope matters, 0 to [MaxPriority].
func (e *Envelope) Priority() int {
	if e.Task == nil || e.Task.Priority == nil {
		return DefaultPriority
	}
	return *e.Task.Priority
}

// UniqueKey is what makes the envelope one of a kind in a queue; empty: nothing does.
func (e *Envelope) UniqueKey() string {
	if e.Task == nil {
		return ""
	}
	return e.Task.UniqueKey
}

// Text is the payload as a person reads it: a JSON string unquoted, else the JSON.
func (e *Envelope) Text() string { return PayloadText(e.Payload) }

// PayloadText renders a payload for people: a JSON string unquoted, of an object its "text" if it
// has one, other JSON as it is.
func PayloadText(p json.RawMessage) string {
	var s string
	if len(p) > 0 && p[0] == '"' && json.Unmarshal(p, &s) == nil {
		return s
	}
	var o struct {
		Text *string `json:"text"`
	}
	if len(p) > 0 && p[0] == '{' && json.Unmarshal(p, &o) == nil && o.Text != nil {
		return *o.Text
	}
	return string(p)
}

// TextPayload is the payload that holds s. What is not UTF-8 becomes U+FFFD.
func TextPayload(s string) json.RawMessage {
	b, err := Encode(strings.ToValidUTF8(s, "\uFFFD"))
	if err != nil { // a Go string always encodes
		panic(err)
	}
	return b
}

// ValidName reports whether s may name a gateway or an agent: 1 to 63 of a-z, 0-9 and "-",
// not starting with "-" (safe in a key, a URL and on a command line).
func ValidName(s string) bool {
	if s == "" || len(s) > 63 || s[0] == '-' {
		return false
	}
	for i := range len(s) {
		if kind[s[i]] == 0 {
			return false
		}
	}
	return true
}

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
	return fmt.Sprintf("envelope schema_version %q is not supported (this build speaks %d.x, and %d.x of what is encrypted): upgrade this gateway", clip(e.Got, 20), Major, EncryptedMajor)
}

// Is makes a VersionError an ErrInvalid.
func (e *VersionError) Is(target error) bool { return target == ErrInvalid }

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrInvalid, fmt.Sprintf(format, args...))
}

// Validate checks every field. It does not look at the clock, nor into the
// payload: [Seal] and [Decode] do.
func (e *Envelope) Validate() error {
	if err := checkVersion(e.SchemaVersion); err != nil {
		return err
	}
	if e.Encryption == nil && e.SchemaVersion[0] != '1' {
		return &VersionError{Got: e.SchemaVersion} // another 2.x than ours
	}
	for i, f := range [...]struct {
		name, value string
		optional    bool
	}{
		{"message_id", e.MessageID, false},
		{"correlation_id", e.CorrelationID, false},
		{"in_reply_to", e.InReplyTo, true},
	} {
		if f.value == e.MessageID && i > 0 {
			continue // a conversation's first message
		}
		if !isUUID(f.value) && (f.value != "" || !f.optional) {
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
		if !ValidName(f.value) && (f.value != "" || !f.optional) {
			return invalid("%s %q is not a name (1 to 63 of a-z, 0-9 and -, not starting with -)", f.name, clip(f.value, 80))
		}
	}
	for _, f := range [...]struct{ name, value string }{
		{"conversation_id", e.ConversationID}, {"capability", e.Capability}, {"traceparent", e.Traceparent},
	} {
		if len(f.value) <= maxLabel && plain(f.value) {
			continue
		}
		if n := utf8.RuneCountInString(f.value); n > maxLabel {
			return invalid("%s is %d characters, at most %d", f.name, n, maxLabel)
		}
		if strings.ContainsFunc(f.value, unprintable) {
			return invalid("%s holds control characters or is not UTF-8", f.name)
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
	case !e.CreatedAt.plausible():
		return invalid("created_at is not in the years %d to %d", minYear, maxYear)
	case e.TTL <= 0 || e.TTL.Duration() > MaxTTL:
		return invalid("ttl is %d ms, want 1 to %d", int64(e.TTL), MaxTTL.Milliseconds())
	case e.MaxHops < 1 || e.MaxHops > MaxHops:
		return invalid("max_hops is %d, want 1 to %d", e.MaxHops, MaxHops)
	}
	if err := e.validateRetry(); err != nil {
		return err
	}
	if err := e.Task.validate(); err != nil {
		return err
	}
	if e.Encryption != nil {
		if err := e.validateEncryption(); err != nil {
			return err
		}
	}
	return e.Budget.validate()
}

func (t *Task) validate() error {
	switch {
	case t == nil:
		return nil
	case t.Priority != nil && (*t.Priority < 0 || *t.Priority > MaxPriority):
		return invalid("task.priority is %d, want 0 to %d", *t.Priority, MaxPriority)
	case t.NotBefore != nil && !t.NotBefore.plausible():
		return invalid("task.not_before is not in the years %d to %d", minYear, maxYear)
	case utf8.RuneCountInString(t.UniqueKey) > maxLabel:
		return invalid("task.unique_key is %d characters, at most %d", utf8.RuneCountInString(t.UniqueKey), maxLabel)
	case strings.ContainsFunc(t.UniqueKey, unprintable):
		return invalid("task.unique_key holds control characters or is not UTF-8")
	case t.UniqueFor < 0 || t.UniqueFor.Duration() > MaxTTL:
		return invalid("task.unique_for is %d ms, want 0 to %d", int64(t.UniqueFor), MaxTTL.Milliseconds())
	case t.UniqueFor > 0 && t.UniqueKey == "":
		return invalid("task.unique_for says nothing without a unique_key")
	}
	return nil
}

func (e *Envelope) validateRetry() error {
	switch {
	case e.MaxAttempts < 0 || e.MaxAttempts > MaxAttempts:
		return invalid("max_attempts is %d, want 1 to %d", e.MaxAttempts, MaxAttempts)
	case e.AckTimeout < 0 || e.AckTimeout.Duration() > MaxTTL:
		return invalid("ack_timeout is %d ms, want 1 to %d", int64(e.AckTimeout), MaxTTL.Milliseconds())
	case e.RetryDelay < 0 || e.RetryDelay.Duration() > MaxTTL:
		return invalid("retry_delay is %d ms, want 1 to %d", int64(e.RetryDelay), MaxTTL.Milliseconds())
	case (e.PayloadSize != 0) != (e.PayloadSHA256 != ""):
		return invalid("payload_size and payload_sha256 go together")
	case e.PayloadSize < 0 || e.PayloadSize > MaxClaim:
		return invalid("payload_size is %d, want 1 to %d", e.PayloadSize, MaxClaim)
	case e.PayloadSize > 0 && string(e.Payload) != "null":
		return invalid("payload_size says that the payload lies elsewhere: payload must be null")
	case e.PayloadSHA256 != "" && !isSHA256(e.PayloadSHA256):
		return invalid("payload_sha256 %q is not 64 lower-case hex digits", clip(e.PayloadSHA256, 80))
	}
	return nil
}

func isSHA256(s string) bool {
	return len(s) == 2*sha256.Size && strings.Trim(s, "0123456789abcdef") == ""
}

func (b *Budget) validate() error {
	switch {
	case b == nil:
		return nil
	case b.Messages != nil && *b.Messages < 0, b.Tokens != nil && *b.Tokens < 0, b.USD != nil && *b.USD < 0:
		return invalid("budget is negative")
	case b.USD != nil && (math.IsNaN(*b.USD) || math.IsInf(*b.USD, 0)):
		return invalid("budget.usd is not a number")
	case b.Deadline != nil && !b.Deadline.plausible():
		return invalid("budget.deadline is not in the years %d to %d", minYear, maxYear)
	}
	return nil
}

// isUUID reports whether s is the canonical form of RFC 9562: 8-4-4-4-12
// lower-case hex digits. Other spellings would make two keys out of one id.
func isUUID(s string) bool {
	if len(s) != 36 {
		return false
	}
	if s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return false
	}
	dashes := 0
	for i := range len(s) {
		switch kind[s[i]] {
		case hexDigit:
		case dash:
			dashes++
		default:
			return false
		}
	}
	return dashes == 4
}

// kind sorts the bytes that ids and names are made of.
var kind = func() (k [256]byte) {
	for c := byte('a'); c <= 'z'; c++ {
		k[c] = letter
	}
	for _, c := range []byte("0123456789abcdef") {
		k[c] = hexDigit
	}
	k['-'] = dash
	return k
}()

const (
	letter   = 1 + iota // that is no hex digit
	hexDigit            // lower-case
	dash
)

// unprintable also finds what is not UTF-8: such bytes, and escaped halves of a
// surrogate pair, arrive here as U+FFFD.
func unprintable(r rune) bool { return unicode.IsControl(r) || r == utf8.RuneError }

func checkVersion(v string) error {
	major, minor, ok := strings.Cut(v, ".")
	if !ok || !number(major) || !number(minor) {
		return invalid("schema_version %q is not MAJOR.MINOR", clip(v, 20))
	}
	if major != strconv.Itoa(Major) && major != strconv.Itoa(EncryptedMajor) {
		return &VersionError{Got: v}
	}
	return nil
}

// number reports whether s is 0 to 9999, without leading zeros.
func number(s string) bool {
	return s != "" && len(s) <= 4 && strings.Trim(s, "0123456789") == "" && (s[0] != '0' || s == "0")
}

// clip returns s as valid UTF-8 of at most n bytes (n at least 3); what was cut off shows as "...".
func clip(s string, n int) string {
	if len(s) > n {
		cut := n - len("...")
		for i := 0; i < utf8.UTFMax-1 && cut > 0 && !utf8.RuneStart(s[cut]); i++ {
			cut--
		}
		s = s[:cut] + "..."
	}
	return strings.ToValidUTF8(s, "?") // one byte, so that nothing grows
}

// Time is a moment in UTC with millisecond precision, as RFC 3339.
type Time struct{ time.Time }

// At rounds t down to what the wire can hold.
func At(t time.Time) Time { return Time{time.UnixMilli(t.UnixMilli()).UTC()} }

const timeLayout = "2006-01-02T15:04:05.000Z"

// Years that an envelope may speak of. A time outside is a broken clock, and could
// not be written any more once a ttl is added to it.
const minYear, maxYear = 2000, 2999

func (t Time) plausible() bool {
	y := t.UTC().Year()
	return y >= minYear && y <= maxYear
}

// MarshalJSON implements json.Marshaler.
func (t Time) MarshalJSON() ([]byte, error) {
	u := t.UTC()
	if y := u.Year(); y < 0 || y > 9999 {
		return nil, fmt.Errorf("year %d cannot be written", y)
	}
	return u.AppendFormat(make([]byte, 0, len(timeLayout)+2), `"`+timeLayout+`"`), nil
}

// UnmarshalJSON implements json.Unmarshaler. It reads RFC 3339 in UTC (ending
// in Z) of any precision, and rounds down to milliseconds.
func (t *Time) UnmarshalJSON(b []byte) error {
	// Go alone would also read an hour of one digit (which shifts what follows) and a decimal comma.
	const end = len(`"2006-01-02T15:04:05`)
	if len(b) < end+2 || b[end] != '.' && b[end] != 'Z' || b[len(b)-2] != 'Z' {
		return fmt.Errorf("time %s is not RFC 3339 in UTC (%s)", clip(string(b), 40), timeLayout)
	}
	var raw time.Time
	if err := raw.UnmarshalJSON(b); err != nil {
		return err
	}
	*t = At(raw)
	return nil
}

// Millis is a duration in milliseconds on the wire.
type Millis int64

// MillisOf drops what is below a millisecond.
func MillisOf(d time.Duration) Millis { return Millis(d.Milliseconds()) }

// Duration is m as a Go duration, capped at the longest that Go can hold (292 years).
func (m Millis) Duration() time.Duration {
	const most = Millis(math.MaxInt64 / time.Millisecond)
	switch {
	case m > most:
		return math.MaxInt64
	case m < -most:
		return math.MinInt64
	default:
		return time.Duration(m) * time.Millisecond
	}
}
