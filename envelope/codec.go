package envelope

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// SignatureContext separates signatures over envelopes from every other use of a key
// (ed25519.Options.Context, RFC 8032 section 5.1).
const SignatureContext = "gatemesh/envelope/1"

// Sealed is an envelope together with its canonical bytes (see the package comment).
//
// Whoever stores or forwards an envelope keeps these bytes, so fields that a
// newer minor version added stay under the signature of a gateway that knows them.
type Sealed struct {
	Envelope
	canonical []byte
	// opened is set when the payload in memory is not the encrypted one of the canonical bytes.
	opened *opened
}

// opened holds what lies outside of an encrypted envelope that was just sealed, if anything does.
type opened struct{ outside json.RawMessage }

// Seal validates e and fixes its canonical bytes. The envelope and what it points to
// (payload, budget) must not be changed afterwards.
func Seal(e Envelope) (*Sealed, error) {
	if err := e.Validate(); err != nil {
		return nil, err
	}
	s := &Sealed{Envelope: e}
	text := plainString(e.Payload) // neither white space to take out nor anything to escape
	if !text {
		payload, err := compact(e.Payload)
		if err != nil {
			return nil, err
		}
		s.Payload = payload
	}
	if b, ok := s.appendJSON(make([]byte, 0, len(s.Payload)+headerRoom), text); ok {
		s.canonical = b
		return s, nil
	}
	var err error
	if s.canonical, err = Encode(&s.Envelope); err != nil {
		return nil, invalid("payload is not JSON: %v", err)
	}
	return s, nil
}

// headerRoom is what an envelope usually takes around its payload, in bytes.
const headerRoom = 512

// Canonical returns the bytes that a signature covers. Do not change them.
func (s *Sealed) Canonical() []byte { return s.canonical }

// MarshalJSON returns the canonical bytes; what was not sealed has none, and is not
// written. Encode what holds a Sealed with [Encode]: json.Marshal would escape "<"
// inside and so change them.
func (s Sealed) MarshalJSON() ([]byte, error) { return s.canonical, nil }

// UnmarshalJSON is [Decode].
func (s *Sealed) UnmarshalJSON(b []byte) error {
	d, err := Decode(b)
	if err != nil {
		return err
	}
	*s = *d
	return nil
}

// Decode reads canonical bytes. It refuses what is too large, not canonical, of
// another major version or invalid; every refusal is an [ErrInvalid].
func Decode(b []byte) (*Sealed, error) {
	if len(b) > MaxEncoded {
		return nil, invalid("%d bytes, at most %d", len(b), MaxEncoded)
	}
	s := &Sealed{canonical: bytes.Clone(b)}
	if err := s.decode(); err != nil {
		if verr := otherMajor(b); verr != nil {
			return nil, verr
		}
		return nil, err
	}
	return s, nil
}

func (s *Sealed) decode() error {
	if s.decodeOrdered(s.canonical) {
		return s.Validate()
	}
	s.Envelope = Envelope{}
	if !utf8.Valid(s.canonical) {
		return invalid("not UTF-8")
	}
	if err := checkCanonical(s.canonical); err != nil {
		return err
	}
	if !s.decodeFast(s.canonical) {
		s.Envelope = Envelope{}
		if err := json.Unmarshal(s.canonical, &s.Envelope); err != nil {
			return invalid("%v", err)
		}
	}
	return s.Validate()
}

// otherMajor looks for the reason behind every other refusal: another major version
// may have other types, other keys and another canonical form.
func otherMajor(b []byte) error {
	var v struct {
		SchemaVersion string          `json:"schema_version"`
		Encryption    json.RawMessage `json:"encryption"`
	}
	if json.Unmarshal(b, &v) != nil {
		return nil //nolint:nilerr // then the other reason stands
	}
	if len(v.Encryption) == 0 && strings.HasPrefix(v.SchemaVersion, strconv.Itoa(EncryptedMajor)+".") {
		return &VersionError{Got: v.SchemaVersion}
	}
	if err := checkVersion(v.SchemaVersion); errors.As(err, new(*VersionError)) {
		return err
	}
	return nil
}

// checkCanonical refuses what the decoder would let through: white space outside
// strings, deep nesting, and in the objects that this package reads (the envelope, its
// budget, its task and its encryption) keys that stand twice, keys that Go would fold into another one, and
// values that mean "absent". It does not check the grammar; the decoder does that.
func checkCanonical(b []byte) error {
	var keys [3]keySet   // of the envelope, of its budget, of its task
	var ofCipher *keySet // of its encryption, which few have
	depth, inner, wantKey := 0, 0, false
	for i := 0; i < len(b); i++ {
		switch b[i] {
		case ' ', '\t', '\r', '\n':
			return invalid("white space outside strings at byte %d", i)
		case '{', '[':
			if depth++; depth > maxDepth {
				return invalid("nested more than %d deep", maxDepth)
			}
			wantKey = depth == 1 || depth == 2 && inner > 0
		case '}', ']':
			depth--
			wantKey = false
		case ',':
			wantKey = depth == 1 || depth == 2 && inner > 0
		case '"':
			start := i + 1
			i = stringEnd(b, i)
			if !wantKey || i == len(b) {
				continue
			}
			wantKey = false
			key, value := b[start:i], b[i+1:]
			set := &keys[0]
			switch {
			case depth == 2 && inner == len(keys):
				set = ofCipher
			case depth == 2:
				set = &keys[inner]
			}
			if err := set.add(key); err != nil {
				return err
			}
			if depth == 1 {
				switch string(key) {
				case "budget":
					inner = 1
				case "task":
					inner = 2
				case "encryption":
					inner, ofCipher = len(keys), new(keySet)
				default:
					inner = 0
				}
			}
			if absent(value) && (depth != 1 || string(key) != "payload") {
				return invalid("%s is null or empty: leave it out", key)
			}
		}
	}
	return nil
}

// stringEnd returns the index of the quote that ends the string opened at b[open], or len(b).
func stringEnd(b []byte, open int) int {
	for i := open + 1; ; i++ {
		n := bytes.IndexByte(b[i:], '"')
		if n < 0 {
			return len(b)
		}
		i += n
		first := i // of the backslashes before the quote; an odd number escapes it
		for b[first-1] == '\\' {
			first--
		}
		if (i-first)%2 == 0 {
			return i
		}
	}
}

// absent reports whether what follows a key is null or an empty string.
func absent(afterKey []byte) bool {
	return bytes.HasPrefix(afterKey, []byte(":n")) || bytes.HasPrefix(afterKey, []byte(`:""`))
}

// keySet holds the keys of one object.
type keySet struct {
	keys [maxKeys][]byte
	n    int
}

// add refuses a key that stands already, and one that is not a-z, 0-9 and "_": Go's
// decoder ignores case, also that of a few letters outside ASCII.
func (k *keySet) add(key []byte) error {
	for _, c := range key {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '_' {
			return invalid("key %q is not of a-z, 0-9 and _", clip(string(key), 40))
		}
	}
	if len(key) == 0 {
		return invalid("a key is empty")
	}
	for _, other := range k.keys[:k.n] {
		if bytes.Equal(other, key) {
			return invalid("key %q stands twice", clip(string(key), 40))
		}
	}
	if k.n == maxKeys {
		return invalid("more than %d keys", maxKeys)
	}
	k.keys[k.n] = key
	k.n++
	return nil
}

// compact returns the payload without white space outside strings, which is itself
// when it has none, and checks what [checkCanonical] would.
func compact(p json.RawMessage) (json.RawMessage, error) {
	if !utf8.Valid(p) {
		return nil, invalid("payload is not UTF-8")
	}
	depth, spaced := 1, false // the payload lies in an object
	for i := 0; i < len(p); i++ {
		switch p[i] {
		case ' ', '\t', '\r', '\n':
			spaced = true
		case '{', '[':
			if depth++; depth > maxDepth {
				return nil, invalid("payload is nested more than %d deep", maxDepth-1)
			}
		case '}', ']':
			depth--
		case '"':
			i = stringEnd(p, i)
		}
	}
	if !spaced {
		return p, nil
	}
	var buf bytes.Buffer
	if err := json.Compact(&buf, p); err != nil {
		return nil, invalid("payload is not JSON: %v", err)
	}
	return buf.Bytes(), nil
}

// Encode is JSON without HTML escaping and without a final newline: the one encoder for
// everything that goes into the store, because it leaves canonical bytes as they are.
func Encode(v any) ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	return bytes.TrimSuffix(buf.Bytes(), []byte("\n")), nil
}
