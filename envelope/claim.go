package envelope

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// ErrPayloadMismatch: a payload is not the one that its envelope names.
var ErrPayloadMismatch = errors.New("payload is not the one that was sealed")

// Claimed reports whether the payload lies outside of the envelope (a claim check): its size
// and hash are under the signature in its place.
func (e *Envelope) Claimed() bool { return e.PayloadSize > 0 }

// SealClaim is [Seal] for a payload of up to [MaxClaim] bytes that is stored elsewhere. The
// envelope that it returns has the payload in memory and null on the wire; the bytes are
// what is to be stored.
func SealClaim(e Envelope) (*Sealed, json.RawMessage, error) {
	if len(e.Payload) > MaxClaim {
		return nil, nil, invalid("payload is %d bytes, at most %d", len(e.Payload), MaxClaim)
	}
	payload, err := compact(e.Payload)
	if err != nil {
		return nil, nil, err
	}
	if !json.Valid(payload) {
		return nil, nil, invalid("payload is not JSON")
	}
	sum := sha256.Sum256(payload)
	e.PayloadSize, e.PayloadSHA256, e.Payload = int64(len(payload)), hex.EncodeToString(sum[:]), json.RawMessage("null")
	s, err := Seal(e)
	if err != nil {
		return nil, nil, err
	}
	s.Payload = payload
	return s, payload, nil
}

// WithPayload returns a copy of s that has the payload it claims in memory; Canonical stays as it is. Errors:
// [ErrPayloadMismatch], [ErrInvalid].
func (s *Sealed) WithPayload(p json.RawMessage) (*Sealed, error) {
	if int64(len(p)) != s.PayloadSize {
		return nil, fmt.Errorf("%w: %d bytes instead of %d", ErrPayloadMismatch, len(p), s.PayloadSize)
	}
	if sum := sha256.Sum256(p); hex.EncodeToString(sum[:]) != s.PayloadSHA256 {
		return nil, fmt.Errorf("%w: its SHA-256 is %x", ErrPayloadMismatch, sum)
	}
	p, err := compact(p)
	if err != nil {
		return nil, err
	}
	if !json.Valid(p) {
		return nil, invalid("payload is not JSON")
	}
	full := *s
	full.Payload = p
	return &full, nil
}

// Header returns a stub of s: its fields without payload and canonical bytes, in little memory of
// its own. It cannot be stored or sent.
func (s *Sealed) Header() *Sealed {
	e := s.Envelope
	e.Payload, e.Encryption = nil, nil
	if e.Task != nil {
		t := *e.Task
		t.UniqueKey = strings.Clone(t.UniqueKey)
		e.Task = &t
	}
	for _, f := range []*string{
		&e.SchemaVersion, &e.MessageID, &e.CorrelationID, &e.ConversationID, &e.InReplyTo, &e.ReplyTo, &e.SourceGateway, &e.SourceAgent,
		&e.TargetGateway, &e.TargetAgent, &e.PayloadSHA256, &e.Capability, &e.Traceparent,
	} {
		*f = strings.Clone(*f)
	}
	return &Sealed{Envelope: e}
}
