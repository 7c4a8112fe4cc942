package trust

import (
	"bytes"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/gatemesh/gatemesh/envelope"
)

// RequestsPrefix is below which gateways ask to join; each writes the key of its name.
const RequestsPrefix = "openclaw/trust/requests/"

// JoinRequest asks the operator to take a gateway's key into the trust set. It is signed with that key, which shows
// that the asking one holds it and nothing more: whose it is, the operator must know from elsewhere, by
// comparing the key or from a token.
type JoinRequest struct {
	Gateway string   `json:"gateway"`
	Public  string   `json:"public"`
	Agents  []string `json:"agents"`
	// Token and MAC show that the asking one was given a token: its id, and an HMAC under its secret.
	Token string `json:"token,omitempty"`
	MAC   []byte `json:"mac,omitempty"`
	// Vouch is the key of the gateway that counts now, saying that this one is to follow it.
	Vouch *Stamp `json:"vouch,omitempty"`
}

// maxRequest bounds a request.
const maxRequest = 16 << 10

// NewJoinRequest makes the signed record of a request; t may be nil.
func NewJoinRequest(s *Signer, agents []string, t *Token, at time.Time) []byte {
	r := JoinRequest{Gateway: s.Gateway, Public: EncodePublic(s.Key.Public()), Agents: append([]string{}, agents...)}
	if t != nil {
		r.Token, r.MAC = t.ID(), t.mac(s.Mesh, s.Gateway, r.Public)
	}
	body, err := envelope.Encode(r)
	if err != nil {
		panic("trust: a request does not encode: " + err.Error())
	}
	return s.SignRecord(KindJoin, RequestsPrefix+s.Gateway, at, body)
}

// DecodeJoinRequest reads the request at a key of the store, and checks that the key in it signed it for this mesh.
func DecodeJoinRequest(place, mesh string, raw []byte) (*JoinRequest, *Stamp, error) {
	bad := func(format string, args ...any) error {
		return refuse(Malformed, strings.TrimPrefix(place, RequestsPrefix), "", format, args...)
	}
	if len(raw) > maxRequest {
		return nil, nil, bad("request is %d bytes, at most %d", len(raw), maxRequest)
	}
	body, st := SplitRecord(raw)
	if st == nil {
		return nil, nil, bad("request is not signed")
	}
	var r JoinRequest
	if err := json.Unmarshal(body, &r); err != nil {
		return nil, nil, bad("request is not readable: %v", err)
	}
	public, err := ParsePublic(r.Public)
	if again, encErr := envelope.Encode(&r); err != nil || encErr != nil || !bytes.Equal(again, body) {
		return nil, nil, bad("request is not in its one form")
	}
	if !envelope.ValidName(r.Gateway) || place != RequestsPrefix+r.Gateway || st.Gateway != r.Gateway || len(r.Agents) > maxPatterns {
		return nil, nil, bad("request of %q lies at %s", r.Gateway, place)
	}
	for _, p := range r.Agents {
		if !ValidPattern(p) {
			return nil, nil, bad("request names the agent %q", p)
		}
	}
	if st.Mesh != mesh {
		return nil, nil, refuse(WrongMesh, r.Gateway, st.Key, "request is for the mesh %s, this is %s", st.Mesh, mesh)
	}
	if !st.SignedBy(public, KindJoin, place, body) {
		return nil, nil, refuse(BadSignature, r.Gateway, st.Key, "who asks does not hold the key")
	}
	return &r, st, nil
}

// A Token lets one gateway join once, without anybody comparing keys: the operator makes it, hands it over by a way of
// his own, and whoever uses it shows its secret by an HMAC over the key that is to be enrolled. It also tells the gateway
// which operator to believe.
type Token struct {
	Gateway  string
	Expires  time.Time
	Operator ed25519.PublicKey
	secret   []byte
}

const tokenForm = "gmj1"

// NewToken makes a token.
func NewToken(gateway string, expires time.Time, operator ed25519.PublicKey) *Token {
	secret := make([]byte, 32)
	_, _ = rand.Read(secret) // never fails
	return &Token{gateway, expires.UTC().Truncate(time.Second), operator, secret}
}

// Secret is the text that is handed over: gmj1.<gateway>.<expiry>.<operator>.<secret>.
func (t *Token) Secret() string {
	enc := base64.RawURLEncoding.EncodeToString
	return strings.Join([]string{tokenForm, t.Gateway, fmt.Sprint(t.Expires.Unix()), enc(t.Operator), enc(t.secret)}, ".")
}

// String is the id: the secret must not get into a log by accident.
func (t *Token) String() string { return "token " + t.ID() }

// ID names the token without giving it away.
func (t *Token) ID() string {
	h := sha256.Sum256(append([]byte("gatemesh/join-token/v1\n"), t.secret...))
	return base64.RawURLEncoding.EncodeToString(h[:12])
}

// ParseToken reads what Secret wrote. Its errors never quote it.
func ParseToken(text string) (*Token, error) {
	bad := errors.New("that is no enrolment token (gatemesh trust enroll NAME --new-token makes one)")
	parts := strings.Split(strings.TrimSpace(text), ".")
	if len(text) > 512 || len(parts) != 5 || parts[0] != tokenForm || !envelope.ValidName(parts[1]) {
		return nil, bad
	}
	var unix int64
	if _, err := fmt.Sscanf(parts[2], "%d", &unix); err != nil || fmt.Sprint(unix) != parts[2] || unix < 0 || unix > 1<<40 {
		return nil, bad
	}
	operator, err := base64.RawURLEncoding.Strict().DecodeString(parts[3])
	if err != nil || len(operator) != ed25519.PublicKeySize {
		return nil, bad
	}
	secret, err := base64.RawURLEncoding.Strict().DecodeString(parts[4])
	if err != nil || len(secret) != 32 {
		return nil, bad
	}
	return &Token{parts[1], time.Unix(unix, 0).UTC(), operator, secret}, nil
}

func (t *Token) mac(mesh, gateway, public string) []byte {
	m := hmac.New(sha256.New, t.secret)
	fmt.Fprintf(m, "gatemesh/%s/v1\n%s\n%s\n%s\n%d", KindJoin, mesh, gateway, public, t.Expires.Unix())
	return m.Sum(nil)
}

// Admits reports why the token does not let this request in, or nil.
func (t *Token) Admits(mesh string, r *JoinRequest, now time.Time) error {
	switch {
	case r.Token != t.ID() || !hmac.Equal(r.MAC, t.mac(mesh, r.Gateway, r.Public)):
		return errors.New("the request does not show this token's secret")
	case r.Gateway != t.Gateway:
		return fmt.Errorf("the token is for %s, not for %s", t.Gateway, r.Gateway)
	case now.After(t.Expires):
		return fmt.Errorf("the token ended at %s", t.Expires.Format(time.RFC3339))
	}
	return nil
}
