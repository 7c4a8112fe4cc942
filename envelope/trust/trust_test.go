package trust

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gatemesh/gatemesh/envelope"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func at(d time.Duration) envelope.Time { return envelope.At(noon.Add(d)) }

// seeded makes a key that is the same in every run.
func seeded(n byte) *Key {
	k, err := ParseKey([]byte(base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{n}, 32))))
	if err != nil {
		panic(err)
	}
	return k
}

var (
	operator = seeded(1)
	keyA     = seeded(2)
	keyB     = seeded(3)
	keyOld   = seeded(4)
	keyGone  = seeded(5)
	stranger = seeded(6)
)

func publicText(k *Key) string { return EncodePublic(k.Public()) }

// exampleSet: gateway a hosts jerry and the queues q-*, b hosts everything; a's old key ended an hour ago.
func exampleSet(version uint64) *Set {
	ended := at(-time.Hour)
	return &Set{
		Mesh: "m", Version: version, IssuedAt: at(-24 * time.Hour), Operators: []string{publicText(operator)},
		Gateways: []Member{
			{Name: "a", Agents: []string{"jerry", "q-*"}, Keys: []MemberKey{
				{Public: publicText(keyOld), NotBefore: at(-24 * time.Hour), NotAfter: &ended},
				{Public: publicText(keyA), NotBefore: at(-24 * time.Hour)},
			}},
			{Name: "b", Agents: []string{"*"}, Keys: []MemberKey{{Public: publicText(keyB), NotBefore: at(-24 * time.Hour)}}},
		},
		Revoked: []Revocation{{KeyID(keyGone.Public()), "a", at(-time.Hour)}},
	}
}

func mustSign(t testing.TB, s *Set, by ...*Key) []byte {
	t.Helper()
	raw, err := SignSet(s, by...)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func exampleVerifier() *Verifier {
	v := NewVerifier("m", false)
	v.Use(exampleSet(1))
	return v
}

func wantReason(t *testing.T, err error, want Reason) {
	t.Helper()
	var r *Refusal
	if want == "" {
		if err != nil {
			t.Fatalf("refused: %v", err)
		}
		return
	}
	if !errors.As(err, &r) || r.Reason != want {
		t.Fatalf("got %v, want a refusal for %s", err, want)
	}
}

// TestRecord plays what somebody with the store, and perhaps a key, can make of a signed record.
func TestRecord(t *testing.T) {
	const place = "openclaw/receipts/b/from/jerry"
	body := []byte(`{"cursor":7,"receipts":[{"error":",\"signed\":{"}]}`)
	a := &Signer{Mesh: "m", Gateway: "a", Key: keyA}
	good := a.SignRecord(KindReceipts, place, noon, body)
	for _, c := range []struct {
		name  string
		raw   []byte
		kind  Kind
		place string
		by    string
		agent string
		want  Reason
	}{
		{name: "as it is", raw: good, agent: "jerry"},
		{name: "its writer named", raw: good, by: "a"},
		{name: "unsigned", raw: body, agent: "jerry", want: Unsigned},
		{name: "empty", raw: nil, agent: "jerry", want: Unsigned},
		{name: "truncated", raw: good[:len(good)-1], agent: "jerry", want: Unsigned},
		{name: "body changed", raw: bytes.Replace(good, []byte("7"), []byte("8"), 1), agent: "jerry", want: BadSignature},
		{name: "member put in front", raw: bytes.Replace(good, []byte(`{"cursor"`), []byte(`{"x":1,"cursor"`), 1), agent: "jerry", want: BadSignature},
		{name: "member put behind", raw: append(good[:len(good)-1:len(good)-1], `,"cursor":9}`...), agent: "jerry", want: Unsigned},
		{name: "space put into the stamp", raw: bytes.Replace(good, []byte(`"key":`), []byte(`"key": `), 1), agent: "jerry", want: Unsigned},
		{name: "as another kind", raw: good, kind: KindTerm, agent: "jerry", want: BadSignature},
		{name: "from another inbox", raw: good, place: "openclaw/receipts/b/from/q-1", agent: "q-1", want: BadSignature},
		{name: "for an agent it may not host", raw: good, agent: "bobby", want: NotHost},
		{name: "for another gateway's own inbox", raw: good, agent: "b", want: NotHost},
		{name: "what only another may write", raw: good, by: "b", want: WrongGateway},
		{name: "in another's name", raw: (&Signer{Mesh: "m", Gateway: "b", Key: keyA}).SignRecord(KindReceipts, place, noon, body), by: "b", want: WrongGateway},
		{name: "of another mesh", raw: (&Signer{Mesh: "n", Gateway: "a", Key: keyA}).SignRecord(KindReceipts, place, noon, body), by: "a", want: WrongMesh},
		{name: "by a stranger", raw: (&Signer{Mesh: "m", Gateway: "a", Key: stranger}).SignRecord(KindReceipts, place, noon, body), by: "a", want: UnknownKey},
		{name: "by an operator", raw: (&Signer{Mesh: "m", Gateway: "a", Key: operator}).SignRecord(KindReceipts, place, noon, body), by: "a", want: UnknownKey},
		{name: "by a revoked key", raw: (&Signer{Mesh: "m", Gateway: "a", Key: keyGone}).SignRecord(KindReceipts, place, noon.Add(-2*time.Hour), body), by: "a", want: Revoked},
		{name: "by a key that ended", raw: (&Signer{Mesh: "m", Gateway: "a", Key: keyOld}).SignRecord(KindReceipts, place, noon, body), by: "a", want: OutOfTime},
		{name: "by a key before it ended", raw: (&Signer{Mesh: "m", Gateway: "a", Key: keyOld}).SignRecord(KindReceipts, place, noon.Add(-2*time.Hour), body), by: "a"},
		{name: "before its key began", raw: a.SignRecord(KindReceipts, place, noon.Add(-25*time.Hour), body), by: "a", want: OutOfTime},
		{name: "by a clock that is ahead", raw: a.SignRecord(KindReceipts, place, noon.Add(time.Hour), body), by: "a"},
		{name: "another key's id", raw: bytes.Replace(good, []byte(keyA.ID()), []byte(keyB.ID()), 1), by: "a", want: WrongGateway},
		{name: "another moment", raw: bytes.Replace(good, []byte("12:00:00"), []byte("11:00:00"), 1), by: "a", want: BadSignature},
	} {
		t.Run(c.name, func(t *testing.T) {
			kind, where := KindReceipts, place
			if c.kind != "" {
				kind = c.kind
			}
			if c.place != "" {
				where = c.place
			}
			object, st, err := exampleVerifier().Record(kind, where, c.raw, c.by, c.agent)
			wantReason(t, err, c.want)
			if err == nil && (!bytes.Equal(object, body) || st.Gateway != "a") {
				t.Errorf("got %s by %v", object, st)
			}
		})
	}
}

// TestOpenAndEnforced: without a set everything is taken, or nothing is.
func TestOpenAndEnforced(t *testing.T) {
	open := NewVerifier("m", false)
	_, _, err := open.Record(KindTerm, "k", []byte(`{}`), "a", "jerry")
	wantReason(t, err, "")
	if open.Enforced() || !open.MayHost("x", "y") {
		t.Error("an open verifier refuses")
	}
	strict := NewVerifier("m", true)
	signed := (&Signer{Mesh: "m", Gateway: "a", Key: keyA}).SignRecord(KindTerm, "k", noon, []byte(`{}`))
	_, _, err = strict.Record(KindTerm, "k", signed, "a", "")
	wantReason(t, err, NoTrustSet)
	_, _, err = strict.Record(KindTerm, "k", []byte(`{}`), "a", "")
	wantReason(t, err, Unsigned)
	strict.Use(exampleSet(1))
	object, _, err := strict.Record(KindTerm, "k", signed, "a", "")
	wantReason(t, err, "")
	if string(object) != `{}` {
		t.Errorf("got %s", object)
	}
}

// referenceRoot is RFC 6962, section 2.1, word for word.
func referenceRoot(l []Hash) Hash {
	if len(l) == 0 {
		return sha256.Sum256(nil)
	}
	if len(l) == 1 {
		return l[0]
	}
	k := 1
	for k*2 < len(l) {
		k *= 2
	}
	left, right := referenceRoot(l[:k]), referenceRoot(l[k:])
	return sha256.Sum256(append(append([]byte{1}, left[:]...), right[:]...))
}

func TestMerkle(t *testing.T) {
	var leaves []Hash
	for n := range 70 {
		if got, want := Root(leaves), referenceRoot(leaves); got != want {
			t.Fatalf("root of %d leaves differs from RFC 6962", n)
		}
		for i := range leaves {
			path := auditPath(leaves, i)
			if got, ok := rootFrom(leaves[i], i, n, path); !ok || got != Root(leaves) {
				t.Fatalf("path of %d in %d does not lead to the root", i, n)
			}
			for j := range leaves {
				if j == i {
					continue
				}
				if got, ok := rootFrom(leaves[i], j, n, path); ok && got == Root(leaves) {
					t.Fatalf("leaf %d passes for %d of %d", i, j, n)
				}
			}
			if _, ok := rootFrom(leaves[i], i, n, append(path, Hash{})); ok {
				t.Fatalf("a path that is too long passes")
			}
			if _, ok := rootFrom(leaves[i], i, n, path[:max(0, len(path)-1)]); ok && len(path) > 0 {
				t.Fatalf("a path that is too short passes")
			}
		}
		leaves = append(leaves, Leaf([]byte(fmt.Sprint(n)), MetaHash(nil)))
	}
	if Leaf([]byte("x"), MetaHash([]byte("y"))) == Leaf([]byte("x"), MetaHash(nil)) {
		t.Error("what the path added is not in the leaf")
	}
}

func exampleEntry(n int) (*EntryHead, []Hash, [][]byte) {
	var leaves []Hash
	var items [][]byte
	for i := range n {
		items = append(items, fmt.Appendf(nil, `{"message":%d}`, i))
		leaves = append(leaves, Leaf(items[i], MetaHash(nil)))
	}
	return &EntryHead{Lane: "openclaw/lanes/a/bobby/", Seq: 4, Count: 10, Items: n, Root: Root(leaves)}, leaves, items
}

func TestEntryAndProof(t *testing.T) {
	v := exampleVerifier()
	h, leaves, items := exampleEntry(5)
	st := (&Signer{Mesh: "m", Gateway: "a", Key: keyA}).SignEntry(h, noon)
	wantReason(t, v.Entry(h, &st, "a"), "")
	wantReason(t, v.Entry(h, &st, "b"), WrongGateway)
	wantReason(t, v.Entry(h, nil, "a"), Unsigned)
	if got, ok := ParseStamp(AppendStamp(nil, &st)); !ok || !v.sameStamp(got, &st) {
		t.Error("a stamp does not come back")
	}
	for name, change := range map[string]func(*EntryHead){
		"another lane":  func(h *EntryHead) { h.Lane = "openclaw/lanes/a/jerry/" },
		"another place": func(h *EntryHead) { h.Seq++ },
		"another count": func(h *EntryHead) { h.Count++ },
		"fewer items":   func(h *EntryHead) { h.Items-- },
		"other items":   func(h *EntryHead) { h.Root[0]++ },
	} {
		other := *h
		change(&other)
		t.Run(name, func(t *testing.T) { wantReason(t, v.Entry(&other, &st, "a"), BadSignature) })
	}
	for i := range items {
		p, err := DecodeProof(Prove(st, h, leaves, i, MetaHash(nil)).Encode())
		if err != nil {
			t.Fatal(err)
		}
		wantReason(t, v.Proof(p, items[i], "a"), "")
		wantReason(t, v.Proof(p, items[(i+1)%5], "a"), BadSignature)
		wantReason(t, v.Proof(p, items[i], "b"), WrongGateway)
		p.Index = (i + 1) % 5
		wantReason(t, v.Proof(p, items[i], "a"), BadSignature)
	}
	wantReason(t, v.Proof(nil, items[0], "a"), Unsigned)
	// A signature over something else is no proof of an entry.
	rec := (&Signer{Mesh: "m", Gateway: "a", Key: keyA}).Sign(KindRecord, h.Lane, noon, h.body())
	wantReason(t, v.Entry(h, &rec, "a"), BadSignature)
}

func (v *Verifier) sameStamp(a, b *Stamp) bool {
	return a.Mesh == b.Mesh && a.Gateway == b.Gateway && a.Key == b.Key && a.At.Equal(b.At.Time) && bytes.Equal(a.Sig, b.Sig)
}

func TestSet(t *testing.T) {
	raw := mustSign(t, exampleSet(3), operator)
	s, by, err := DecodeSet(raw)
	if err != nil || len(by) != 1 || KeyID(by[0]) != operator.ID() {
		t.Fatalf("got %v by %v, %v", s, by, err)
	}
	for _, c := range []struct {
		gateway, agent string
		want           bool
	}{
		{"a", "jerry", true}, {"a", "q-nightly", true}, {"a", "bobby", false}, {"a", "a", true}, {"a", "b", false},
		{"b", "bobby", true}, {"b", "a", false}, {"c", "jerry", false}, {"a", "", false},
	} {
		if got := s.MayHost(c.gateway, c.agent); got != c.want {
			t.Errorf("may %s host %q: %v", c.gateway, c.agent, got)
		}
	}
	closed := exampleSet(3)
	closed.Gateways[1].Agents = []string{"bobby"}
	for _, c := range []struct {
		gateway, agent string
		want           bool
	}{{"a", "jerry", true}, {"a", "operator", true}, {"a", "bobby", false}, {"a", "b", false}, {"c", "operator", false}} {
		if got := closed.MaySend(c.gateway, c.agent); got != c.want {
			t.Errorf("may %s send as %q: %v", c.gateway, c.agent, got)
		}
	}
	if s.MaySend("a", "operator") {
		t.Error("a name that another gateway may host was lent out")
	}
	for name, changed := range map[string][]byte{
		"space":          bytes.Replace(raw, []byte(`"set":`), []byte(`"set": `), 1),
		"an extra field": bytes.Replace(raw, []byte(`{"mesh"`), []byte(`{"x":1,"mesh"`), 1),
		"a field twice":  bytes.Replace(raw, []byte(`"version":3`), []byte(`"version":3,"version":3`), 1),
		"another case":   bytes.Replace(raw, []byte(`"version"`), []byte(`"Version"`), 1),
		"no signature":   raw[:len(raw)/2],
		"too big":        append(raw, bytes.Repeat([]byte(" "), MaxSet)...),
	} {
		_, _, err := DecodeSet(changed)
		t.Run(name, func(t *testing.T) { wantReason(t, err, Malformed) })
	}
	_, _, err = DecodeSet(bytes.Replace(raw, []byte(`"version":3`), []byte(`"version":4`), 1))
	wantReason(t, err, BadSignature)
	_, _, err = DecodeSet(bytes.Replace(raw, []byte(publicText(keyB)), []byte(publicText(stranger)), 1))
	wantReason(t, err, BadSignature)

	for name, change := range map[string]func(*Set){
		"no mesh":             func(s *Set) { s.Mesh = "" },
		"version 0":           func(s *Set) { s.Version = 0 },
		"no operator":         func(s *Set) { s.Operators = nil },
		"a gateway twice":     func(s *Set) { s.Gateways[1].Name = "a" },
		"a key twice":         func(s *Set) { s.Gateways[1].Keys[0].Public = publicText(keyA) },
		"an operator's key":   func(s *Set) { s.Gateways[1].Keys[0].Public = publicText(operator) },
		"a bad pattern":       func(s *Set) { s.Gateways[0].Agents = []string{"[a-z]"} },
		"a revoked key":       func(s *Set) { s.Revoked[0].Key = keyA.ID() },
		"a gateway sans keys": func(s *Set) { s.Gateways[0].Keys = nil },
	} {
		s := exampleSet(1)
		change(s)
		if _, err := SignSet(s, operator); err == nil {
			t.Errorf("%s: signed", name)
		}
	}

	if !s.Retire("a", keyA.ID(), noon) || s.Retire("a", keyB.ID(), noon) || s.Member("a").Keys[1].NotAfter == nil {
		t.Error("a key must end when it is told to")
	}
	if !s.Revoke("a", keyA.ID(), noon) || s.Member("a") == nil || s.Revoke("a", keyA.ID(), noon) {
		t.Error("revoking one of two keys must leave the gateway")
	}
	if !s.Revoke("a", "", noon) || s.Member("a") != nil || s.Revoke("nobody", "", noon) {
		t.Error("revoking a gateway must take it out")
	}
	if len(s.Revoked) != 3 {
		t.Errorf("%d keys are named as revoked, want 3", len(s.Revoked))
	}
	if err := s.check(); err != nil {
		t.Error(err)
	}
}

// TestAnchor: what a gateway has seen it goes by, also after a restart.
func TestAnchor(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state", "trust-set.json")
	open := func() *Anchor {
		a, err := OpenAnchor(path, "m", []ed25519.PublicKey{operator.Public()})
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	next := seeded(9)
	rotated := exampleSet(6)
	rotated.Operators = []string{publicText(next)}
	fork := exampleSet(5)
	fork.Gateways = fork.Gateways[:1]
	foreign := exampleSet(9)
	foreign.Mesh = "other"
	for _, step := range []struct {
		name string
		raw  []byte
		want Reason
	}{
		{"another operator's", mustSign(t, exampleSet(9), stranger), WrongOperator},
		{"another mesh's", mustSign(t, foreign, operator), WrongMesh},
		{"garbage", []byte(`{}`), Malformed},
		{"the first", mustSign(t, exampleSet(5), operator), ""},
		{"the same again", mustSign(t, exampleSet(5), operator), ""},
		{"an older one", mustSign(t, exampleSet(4), operator), Rollback},
		{"another of the same version", mustSign(t, fork, operator), Rollback},
		{"the next operator before he is one", mustSign(t, exampleSet(6), next), WrongOperator},
		{"the next operator is named", mustSign(t, rotated, operator), ""},
		{"the operator that was", mustSign(t, exampleSet(7), operator), WrongOperator},
		{"the next operator", mustSign(t, exampleSet(7), next), ""},
	} {
		t.Run(step.name, func(t *testing.T) {
			_, err := open().Accept(step.raw) // opened anew: after a restart
			wantReason(t, err, step.want)
		})
	}
	if a := open(); a.Set().Version != 7 || !a.Pinned() {
		t.Errorf("pinned is %d, want 7", a.Set().Version)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the pin has mode %v, %v", info.Mode(), err)
	}
	if _, err := OpenAnchor(path, "another", nil); err == nil {
		t.Error("a pin of another mesh was taken")
	}
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenAnchor(path, "m", nil); err == nil || !strings.Contains(err.Error(), "remove the file") {
		t.Errorf("a spoilt pin must be an error with a remedy: %v", err)
	}
}

func TestKeyFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "identity.key")
	k, made, err := LoadOrMakeKey(path)
	if err != nil || !made {
		t.Fatal(made, err)
	}
	again, made, err := LoadOrMakeKey(path)
	if err != nil || made || again.ID() != k.ID() {
		t.Fatalf("the second start has %v (made %v, %v), want %v", again, made, err, k)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v", info.Mode(), err)
	}
	if rest, err := os.ReadDir(filepath.Dir(path)); err != nil || len(rest) != 1 {
		t.Errorf("left beside the key: %v, %v", rest, err)
	}
	if err := WriteKey(path, NewKey()); !errors.Is(err, os.ErrExist) {
		t.Errorf("a key was written over: %v", err)
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, _, err := LoadOrMakeKey(path); err == nil || !strings.Contains(err.Error(), "chmod 600 "+path) {
		t.Errorf("a key that others can read: %v", err)
	}
	for name, text := range map[string]string{
		"empty": "", "half a seed": "AAAA", "a public key": "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
		"two keys": string(k.PEM()) + string(k.PEM()), "too long": strings.Repeat("A", 5000),
	} {
		if _, err := ParseKey([]byte(text)); err == nil {
			t.Errorf("%s was taken for a key", name)
		}
	}
}

// TestKeyNeverPrints: however a key or a token gets into a text, its secret does not.
func TestKeyNeverPrints(t *testing.T) {
	k := seeded(77)
	token := NewToken("a", noon, operator.Public())
	secrets := []string{
		base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{77}, 32)), "77 77 77", "4d4d4d", "0x4d, 0x4d", "MMMM",
		token.Secret()[len(token.Secret())-20:],
	}
	type holder struct {
		K *Key
		T *Token
		S *Signer
	}
	h := holder{k, token, &Signer{Mesh: "m", Gateway: "a", Key: k}}
	var said []string
	for _, f := range []string{"%v", "%+v", "%s", "%x", "%q"} {
		said = append(said, fmt.Sprintf(f, k), fmt.Sprintf(f, token), fmt.Sprintf(f, h.K))
	}
	said = append(said, fmt.Sprintf("%#v", k), fmt.Sprintf("%v %+v", h, h))
	if b, err := json.Marshal(h); err == nil {
		t.Errorf("a key was written as JSON: %s", b)
	}
	_, err := ParseKey([]byte(secrets[0] + "!"))
	said = append(said, err.Error())
	_, err = ParseToken(token.Secret() + "!")
	said = append(said, err.Error())
	for _, text := range said {
		for _, s := range secrets {
			if strings.Contains(text, s) {
				t.Errorf("the secret is in %q", text)
			}
		}
	}
}

func TestJoin(t *testing.T) {
	token := NewToken("c", noon.Add(time.Hour), operator.Public())
	parsed, err := ParseToken(token.Secret())
	if err != nil || parsed.ID() != token.ID() || !parsed.Operator.Equal(operator.Public()) {
		t.Fatalf("token does not come back: %v, %v", parsed, err)
	}
	place := RequestsPrefix + "c"
	mine := &Signer{Mesh: "m", Gateway: "c", Key: stranger}
	raw := NewJoinRequest(mine, []string{"jerry"}, parsed, noon)
	r, _, err := DecodeJoinRequest(place, "m", raw)
	if err != nil {
		t.Fatal(err)
	}
	if err := token.Admits("m", r, noon); err != nil {
		t.Error(err)
	}
	if token.Admits("m", r, noon.Add(2*time.Hour)) == nil || token.Admits("n", r, noon) == nil {
		t.Error("a token outlives its end, or its mesh")
	}
	thief, _, err := DecodeJoinRequest(place, "m", NewJoinRequest(&Signer{Mesh: "m", Gateway: "c", Key: seeded(8)}, nil, nil, noon))
	if err != nil {
		t.Fatal(err)
	}
	thief.Token, thief.MAC = r.Token, r.MAC // what stands in the store for all to read
	if token.Admits("m", thief, noon) == nil {
		t.Error("another key got in with somebody's MAC")
	}
	for name, c := range map[string]struct {
		place, mesh string
		raw         []byte
		want        Reason
	}{
		"unsigned":         {place, "m", []byte(`{"gateway":"c"}`), Malformed},
		"at another place": {RequestsPrefix + "d", "m", raw, Malformed},
		"another mesh":     {place, "n", raw, WrongMesh},
		"another's public": {place, "m", bytes.Replace(raw, []byte(publicText(stranger)), []byte(publicText(keyA)), 1), BadSignature},
		"more agents":      {place, "m", bytes.Replace(raw, []byte(`"jerry"`), []byte(`"*"`), 1), BadSignature},
		"too big":          {place, "m", append(raw, bytes.Repeat([]byte(" "), maxRequest)...), Malformed},
	} {
		_, _, err := DecodeJoinRequest(c.place, c.mesh, c.raw)
		t.Run(name, func(t *testing.T) { wantReason(t, err, c.want) })
	}
}
