package envelope

import (
	"encoding/json"
	"strconv"
	"strings"
)

// EncryptedMajor is the major version of envelopes whose payload is encrypted. All else in them is as in [Major]. It is
// a major of its own so that a gateway which knows no encryption refuses them instead of handing ciphertext to an agent.
const (
	EncryptedMajor   = 2
	EncryptedVersion = "2.0"
)

const (
	// MaxReaders bounds the gateways that one message is encrypted for.
	MaxReaders = 64
	// maxWrap bounds one wrapped key as text, maxSuite the name of a suite.
	maxWrap  = 2048
	maxSuite = 64
	// saltText is the length of a salt as text.
	saltText = 22
	// minCipher is the shortest ciphertext as text: the 16 bytes of its tag.
	minCipher = 22
)

// Encryption says how a payload was encrypted and who can read it. The payload is then a JSON string: the ciphertext in
// base64 without padding; or it is null and the string lies outside (see [Envelope.Claimed]).
type Encryption struct {
	// Suite names the algorithms.
	Suite string `json:"suite"`
	// Salt makes the message's own key out of the key that is wrapped: 16 random bytes in base64 without padding.
	Salt string `json:"salt"`
	// Keys are the wrapped key, once for each reader: gateway/id of its public key/the wrapped key in base64 without
	// padding.
	Keys []string `json:"keys"`
}

// Encrypted reports whether the payload was encrypted by the sender. It still is in what was read; see [Sealed.Closed].
func (e *Envelope) Encrypted() bool { return e.Encryption != nil }

// Readers are the gateways that the payload was encrypted for.
func (e *Envelope) Readers() []string {
	if e.Encryption == nil {
		return nil
	}
	return e.Encryption.Readers()
}

// Readers are the gateways that Keys are for.
func (c *Encryption) Readers() []string {
	list := make([]string, len(c.Keys))
	for i, k := range c.Keys {
		list[i], _, _ = strings.Cut(k, "/")
	}
	return list
}

// PlainSize is the size in bytes of the payload as its handler gets it.
func (e *Envelope) PlainSize() int {
	n := len(e.Payload)
	if e.Claimed() {
		n = int(e.PayloadSize)
	}
	if e.Encrypted() {
		n = max(0, (n-2)*6/8-16)
	}
	return n
}

// Binding is what of the header belongs to an encrypted payload: ciphertext and wrapped keys open under these values
// alone. Budget, retry and task are not in it; the signature covers them.
func (e *Envelope) Binding() []byte {
	b := make([]byte, 0, 512)
	for _, s := range [...]string{
		e.SchemaVersion, e.MessageID, e.CorrelationID, e.ConversationID, e.InReplyTo, e.ReplyTo, e.SourceGateway, e.SourceAgent,
		e.TargetGateway, e.TargetAgent, e.Capability,
	} {
		b = append(b, s...) // none can hold a line feed
		b = append(b, '\n')
	}
	for _, n := range [...]int64{e.CreatedAt.UnixMilli(), int64(e.TTL), int64(e.MaxHops)} {
		b = strconv.AppendInt(b, n, 10)
		b = append(b, '\n')
	}
	return strconv.AppendBool(b, e.Terminal)
}

func (e *Envelope) validateEncryption() error {
	c := e.Encryption
	switch {
	case !strings.HasPrefix(e.SchemaVersion, strconv.Itoa(EncryptedMajor)+"."):
		return invalid("an encrypted payload needs schema_version %d.x, not %s", EncryptedMajor, e.SchemaVersion)
	case c.Suite == "" || len(c.Suite) > maxSuite || strings.Trim(c.Suite, "abcdefghijklmnopqrstuvwxyz0123456789-") != "":
		return invalid("encryption.suite %q is not a name", clip(c.Suite, 80))
	case len(c.Salt) != saltText || !isBase64(c.Salt):
		return invalid("encryption.salt %q is not the base64 of 16 bytes without padding", clip(c.Salt, 80))
	case len(c.Keys) == 0 || len(c.Keys) > MaxReaders:
		return invalid("encryption.keys has %d keys, want 1 to %d", len(c.Keys), MaxReaders)
	}
	size := len(e.Payload)
	for _, k := range c.Keys {
		if !ValidWrap(k) {
			return invalid("encryption.keys: %q is not gateway/key/base64", clip(k, 80))
		}
		size += len(k) + len(`"",`)
	}
	switch {
	case size > MaxPayload:
		return invalid("payload and encryption.keys are %d bytes, at most %d", size, MaxPayload)
	case !e.Claimed() && !isCipher(e.Payload):
		return invalid("an encrypted payload is a string of base64 without padding")
	}
	return nil
}

// isCipher reports whether p is what ciphertext looks like: a JSON string of base64 without padding.
func isCipher(p json.RawMessage) bool {
	return len(p) >= minCipher+2 && p[0] == '"' && p[len(p)-1] == '"' && isBase64(string(p[1:len(p)-1]))
}

func isBase64(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '+' && c != '/' {
			return false
		}
	}
	return s != ""
}

// ValidWrap reports whether s has the form of a wrapped key: gateway/16 hexadecimal digits/base64.
func ValidWrap(s string) bool {
	gw, rest, _ := strings.Cut(s, "/")
	id, wrapped, _ := strings.Cut(rest, "/")
	return len(s) <= maxWrap && ValidName(gw) && len(id) == 16 && strings.Trim(id, "0123456789abcdef") == "" && isBase64(wrapped)
}

// Closed reports whether the payload that is in memory is ciphertext.
func (s *Sealed) Closed() bool { return s.Encrypted() && s.opened == nil }

// Cipher is the ciphertext of an encrypted envelope, as its payload or what lies outside has it; s is as it was read, or
// loaded by [Sealed.WithPayload].
func (s *Sealed) Cipher() (base64 string, ok bool) {
	if !s.Closed() || !isCipher(s.Payload) {
		return "", false
	}
	return string(s.Payload[1 : len(s.Payload)-1]), true
}

// Opened returns a copy of s with the decrypted payload in memory; Canonical stays as it is. The payload is
// checked as any other. Errors: [ErrInvalid].
func (s *Sealed) Opened(plain []byte) (*Sealed, error) {
	p, err := compact(plain)
	if err != nil {
		return nil, err
	}
	if !json.Valid(p) {
		return nil, invalid("payload is not JSON")
	}
	open := *s
	open.Payload, open.opened = p, &opened{}
	return &open, nil
}

// Outside is what is to be stored outside of a claimed envelope that was just sealed.
func (s *Sealed) Outside() json.RawMessage {
	if s.opened != nil && s.opened.outside != nil {
		return s.opened.outside
	}
	return s.Payload
}

// Plain is the payload in the form in which it is encrypted. Errors: [ErrInvalid].
func Plain(p json.RawMessage) (json.RawMessage, error) {
	p, err := compact(p)
	if err == nil && !json.Valid(p) {
		err = invalid("payload is not JSON")
	}
	return p, err
}

// SealEncrypted is [Seal] for a payload that was encrypted to cipher (base64 without padding) under the envelope's
// [Envelope.Binding]; when it is too large to travel along it lies outside. The result has plain in memory.
func SealEncrypted(e Envelope, cipher string, plain json.RawMessage) (*Sealed, error) {
	e.Payload = json.RawMessage(`"` + cipher + `"`)
	size := len(e.Payload)
	for _, k := range e.Encryption.Keys {
		size += len(k) + len(`"",`)
	}
	var s *Sealed
	var outside json.RawMessage
	var err error
	if size > MaxPayload {
		s, outside, err = SealClaim(e)
	} else {
		s, err = Seal(e)
	}
	if err != nil {
		return nil, err
	}
	s.Payload, s.opened = plain, &opened{outside}
	return s, nil
}
