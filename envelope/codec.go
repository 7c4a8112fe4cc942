package envelope

import (
	"bytes"
	"encoding/json"
	"fmt"
	"unicode/utf8"
)

// SignatureContext separates signatures over envelopes from every other use of a key
// (ed25519.Options.Context, RFC 8032 section 5.1).
const SignatureContext = "gatemesh/envelope/1"

// Sealed is an envelope together with its canonical bytes.
//
// The canonical bytes are the JSON as the sender wrote it: UTF-8, no white space outside
// strings, no key twice. Whoever stores or forwards an envelope keeps these bytes, so fields
// that a newer minor version added stay under the signature of a gateway that knows them.
type Sealed struct {
	Envelope
	canonical []byte
}

// Seal validates e and fixes its canonical bytes. The envelope must not be
// changed afterwards.
func Seal(e Envelope) (*Sealed, error) {
	if err := e.Validate(); err != nil {
		return nil, err
	}
	if !utf8.Valid(e.Payload) {
		return nil, invalid("payload is not UTF-8")
	}
	b, err := encode(e)
	if err != nil {
		return nil, invalid("payload is not JSON: %v", err)
	}
	if len(b) > MaxEncoded {
		return nil, invalid("%d bytes encoded, at most %d", len(b), MaxEncoded)
	}
	return &Sealed{Envelope: e, canonical: b}, nil
}

// Canonical returns the bytes that a signature covers. Do not change them.
func (s *Sealed) Canonical() []byte { return s.canonical }

// MarshalJSON returns the canonical bytes. Encode what holds a Sealed with
// [Encode]: json.Marshal would escape "<" inside and so change them.
func (s *Sealed) MarshalJSON() ([]byte, error) { return s.canonical, nil }

// Decode reads canonical bytes. It refuses what is too large, not canonical, of
// another major version or invalid; every refusal is an [ErrInvalid].
func Decode(b []byte) (*Sealed, error) {
	if len(b) > MaxEncoded {
		return nil, invalid("%d bytes, at most %d", len(b), MaxEncoded)
	}
	if !utf8.Valid(b) {
		return nil, invalid("not UTF-8")
	}
	if err := checkCanonical(b); err != nil {
		return nil, err
	}
	s := &Sealed{canonical: bytes.Clone(b)}
	if err := json.Unmarshal(s.canonical, &s.Envelope); err != nil {
		// The version decides first: another major may have other types.
		var v struct {
			SchemaVersion string `json:"schema_version"`
		}
		if json.Unmarshal(s.canonical, &v) == nil && v.SchemaVersion != "" {
			if verr := checkVersion(v.SchemaVersion); verr != nil {
				return nil, verr
			}
		}
		return nil, invalid("%v", err)
	}
	if err := s.Validate(); err != nil {
		return nil, err
	}
	return s, nil
}

// checkCanonical refuses white space outside strings and top-level keys that stand twice or
// differ from another only in case (Go's decoder would fold them). It does not
// check the JSON grammar; the decoder does that.
func checkCanonical(b []byte) error {
	depth, start, key := 0, -1, false
	var seen [32]string
	n := 0
	for i := 0; i < len(b); i++ {
		switch c := b[i]; c {
		case ' ', '\t', '\r', '\n':
			return invalid("white space outside strings at byte %d", i)
		case '{', '[':
			depth++
			key = depth == 1
		case '}', ']':
			depth--
		case ',':
			key = depth == 1
		case '"':
			start = i + 1
			for i++; i < len(b) && b[i] != '"'; i++ {
				if b[i] == '\\' {
					i++
				}
			}
			if !key || depth != 1 || i >= len(b) {
				continue
			}
			key = false
			name := string(bytes.ToLower(b[start:i]))
			if bytes.IndexByte(b[start:i], '\\') >= 0 || name != string(b[start:i]) {
				return invalid("key %q is not plain lower case", clip(name, 40))
			}
			for _, s := range seen[:n] {
				if s == name {
					return invalid("key %q stands twice", clip(name, 40))
				}
			}
			if n == len(seen) {
				return invalid("more than %d keys", len(seen))
			}
			seen[n], n = name, n+1
		}
	}
	return nil
}

// Encode is JSON without HTML escaping and without a final newline: the one encoder for
// everything that goes into the store, because it leaves canonical bytes as they are.
func Encode(v any) ([]byte, error) { return encode(v) }

func encode(v any) ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	return bytes.TrimRight(buf.Bytes(), "\n"), nil
}
