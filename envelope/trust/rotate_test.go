package trust

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func reasonOf(err error) Reason {
	var r *Refusal
	if errors.As(err, &r) {
		return r.Reason
	}
	return ""
}

// TestFollow: a key follows another; what the old one signed in its life is believed, what it signs later is not, and in the end
// it is taken out.
func TestFollow(t *testing.T) {
	s := exampleSet(1)
	next := seeded(9)
	if s.Follow("nobody", publicText(next), noon, time.Hour, 24*time.Hour) == nil {
		t.Error("a gateway that is not there got a key")
	}
	for range 2 { // doing it again changes nothing
		if err := s.Follow("a", publicText(next), noon, time.Hour, 24*time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.check(); err != nil {
		t.Fatal(err)
	}
	signer := &Signer{Mesh: "m", Gateway: "a", Key: keyA}
	v := NewVerifier("m", true)
	v.Use(s)
	judge := func(when time.Duration) Reason {
		st := signer.Sign(KindTerm, "p", noon.Add(when), []byte("x"))
		return reasonOf(v.Stamp(KindTerm, "p", []byte("x"), &st, "a", ""))
	}
	for when, want := range map[time.Duration]Reason{-time.Hour: "", 0: "", 59 * time.Minute: "", 61 * time.Minute: OutOfTime} {
		if got := judge(when); got != want {
			t.Errorf("the old key, %v later: %q, want %q", when, got, want)
		}
	}
	signer.Use(next)
	if signer.Current() != next || judge(0) != "" || judge(30*24*time.Hour) != "" {
		t.Error("the new key does not count")
	}
	if !s.Names("a", keyA.Public(), noon) || s.Names("a", keyA.Public(), noon.Add(2*time.Hour)) || !s.Names("a", next.Public(), noon) || s.Names("b", next.Public(), noon) {
		t.Error("Names says otherwise")
	}
	// Rotated at once again, with no overlap at all: all keys still have a life.
	third := seeded(10)
	follow := func(k byte, when time.Duration) error {
		return s.Follow("a", publicText(seeded(k)), noon.Add(when), time.Hour, 24*time.Hour)
	}
	if err := s.Follow("a", publicText(third), noon, 0, 24*time.Hour); err != nil || s.check() != nil {
		t.Fatal(err, s.check())
	}
	// Until there is no room, nothing is taken out. Then those go that ended long ago: keyOld did an hour before noon.
	for n := range byte(4) {
		if err := follow(30+n, time.Duration(n)*time.Minute); err != nil {
			t.Fatal(err)
		}
	}
	if m := s.Member("a"); len(m.Keys) != maxKeys || m.Keys[0].Public != publicText(keyOld) {
		t.Errorf("keys: %+v", m.Keys)
	}
	if err := follow(40, 22*time.Hour); err == nil || len(s.Member("a").Keys) != maxKeys {
		t.Errorf("a ninth key: %v", err)
	}
	if err := follow(40, 23*time.Hour+10*time.Minute); err != nil || s.Member("a").Keys[0].Public != publicText(keyA) {
		t.Errorf("a day later: %v", err)
	}
}

func TestRotationRequest(t *testing.T) {
	set, next := exampleSet(1), seeded(9)
	place := RequestsPrefix + "a"
	request := func(s *Signer) *JoinRequest {
		t.Helper()
		r, st, err := DecodeJoinRequest(place, "m", NewRotationRequest(s, next, []string{"jerry"}, noon))
		if err != nil || st.Key != next.ID() {
			t.Fatalf("%+v, %v", st, err)
		}
		return r
	}
	good := request(&Signer{Mesh: "m", Gateway: "a", Key: keyA})
	if by, err := good.Vouched(set, noon); err != nil || by != keyA.ID() {
		t.Errorf("vouched by %s, %v", by, err)
	}
	for name, c := range map[string]struct {
		r    *JoinRequest
		now  time.Time
		want Reason
	}{
		"by a stranger":       {request(&Signer{Mesh: "m", Gateway: "a", Key: stranger}), noon, UnknownKey},
		"by another gateway":  {request(&Signer{Mesh: "m", Gateway: "a", Key: keyB}), noon, WrongGateway},
		"by a revoked key":    {request(&Signer{Mesh: "m", Gateway: "a", Key: keyGone}), noon, Revoked},
		"by a key that ended": {request(&Signer{Mesh: "m", Gateway: "a", Key: keyOld}), noon, OutOfTime},
		"by nobody":           {&JoinRequest{Gateway: "a", Public: good.Public}, noon, Unsigned},
		"for another key":     {&JoinRequest{Gateway: "a", Public: publicText(stranger), Vouch: good.Vouch}, noon, BadSignature},
		"for another gateway": {&JoinRequest{Gateway: "b", Public: good.Public, Vouch: good.Vouch}, noon, BadSignature},
	} {
		if _, err := c.r.Vouched(set, c.now); reasonOf(err) != c.want {
			t.Errorf("%s: %v, want %s", name, err, c.want)
		}
	}
	// Dated back into its life by a key that has ended since.
	old := NewRotationRequest(&Signer{Mesh: "m", Gateway: "a", Key: keyOld}, next, nil, noon.Add(-2*time.Hour))
	r, _, err := DecodeJoinRequest(place, "m", old)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Vouched(set, noon); reasonOf(err) != OutOfTime {
		t.Errorf("dated back: %v", err)
	}
}

// TestMissing: a key that the set does not name is looked for once more, and what this gateway says itself is not.
func TestMissing(t *testing.T) {
	newer, next, looked := exampleSet(2), seeded(9), 0
	var waits []bool
	if err := newer.Follow("a", publicText(next), noon, time.Hour, time.Hour); err != nil {
		t.Fatal(err)
	}
	v := NewVerifier("m", true)
	v.Use(exampleSet(1))
	s := &Signer{Mesh: "m", Gateway: "a", Key: next}
	st := s.Sign(KindTerm, "p", noon, []byte("x"))
	judge := func() error { return v.Stamp(KindTerm, "p", []byte("x"), &st, "a", "") }
	v.OnMissing(func(mail bool) {
		looked++
		waits = append(waits, mail)
	})
	if err := judge(); reasonOf(err) != UnknownKey || looked != 1 {
		t.Errorf("nothing newer: %v, looked %d times", err, looked)
	}
	for kind, mail := range map[Kind]bool{KindReceipts: true, KindRecord: true, KindRegistry: false, KindOwner: false} {
		waits = nil
		if err := v.Stamp(kind, "p", []byte("x"), &st, "a", ""); err == nil || len(waits) != 1 || waits[0] != mail {
			t.Errorf("%s: %v, %v", kind, waits, err)
		}
	}
	waits = nil
	if err := v.Entry(&EntryHead{Lane: "l"}, &st, "a"); err == nil || len(waits) != 1 || !waits[0] {
		t.Errorf("an entry: %v, %v", waits, err)
	}
	looked = 1
	if err := v.Speaks(s, noon); reasonOf(err) != UnknownKey || looked != 1 {
		t.Errorf("what it says itself: %v, looked %d times", err, looked)
	}
	v.OnMissing(func(bool) { looked++; v.Use(newer) })
	if err := judge(); err != nil || looked != 2 {
		t.Errorf("a newer set: %v, looked %d times", err, looked)
	}
}

func TestParseKeys(t *testing.T) {
	a, b := seeded(20), seeded(21)
	seed := func(n byte) string {
		return base64.StdEncoding.EncodeToString([]byte(strings.Repeat(string(rune(n)), 32)))
	}
	for name, c := range map[string]struct {
		text string
		want int
	}{
		"one PEM":     {string(a.PEM()), 1},
		"two PEM":     {string(a.PEM()) + "\n" + string(b.PEM()), 2},
		"the same":    {string(a.PEM()) + string(a.PEM()), 1},
		"three":       {string(a.PEM()) + string(b.PEM()) + string(seeded(22).PEM()), 0},
		"one seed":    {seed(20) + "\n", 1},
		"two seeds":   {seed(20) + "\n" + seed(21) + "\n", 2},
		"none":        {" \n", 0},
		"PEM and not": {string(a.PEM()) + "rest", 0},
		"no key":      {"secret-that-is-none", 0},
	} {
		keys, err := ParseKeys([]byte(c.text))
		if len(keys) != c.want || (err == nil) != (c.want > 0) {
			t.Errorf("%s: %d keys, %v", name, len(keys), err)
		}
		if c.want > 0 && keys[0].ID() != a.ID() || c.want == 2 && keys[1].ID() != b.ID() {
			t.Errorf("%s: other keys", name)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: the error shows what was given", name)
		}
	}
}

func TestPolicyAnchor(t *testing.T) {
	set, path := exampleSet(1), filepath.Join(t.TempDir(), "policy.json")
	policy := func(mesh string, version uint64, rules string, by *Key) []byte {
		t.Helper()
		raw, err := SignPolicy(&Policy{Mesh: mesh, Version: version, IssuedAt: at(0), Rules: []byte(rules)}, by)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	const rules = `[{"action":"allow","to":"bobby"}]`
	a, err := OpenPolicyAnchor(path, "m")
	if err != nil {
		t.Fatal(err)
	}
	second := policy("m", 2, rules, operator)
	edited := []byte(strings.Replace(string(second), "bobby", "billy", 1))
	spaced := append(append([]byte{}, second...), '\n')
	accept := func(name string, raw []byte, set *Set, want Reason) {
		t.Helper()
		if err := a.Accept(raw, set, nil); reasonOf(err) != want || (err == nil) != (want == "") {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
	}
	accept("no set", second, nil, NoTrustSet)
	accept("edited by hand", edited, set, BadSignature)
	accept("another form", spaced, set, Malformed)
	accept("another operator's", policy("m", 2, rules, stranger), set, WrongOperator)
	accept("a gateway's", policy("m", 2, rules, keyA), set, WrongOperator)
	accept("another mesh's", policy("other", 2, rules, operator), set, WrongMesh)
	if err := a.Accept(second, set, func(*Policy) error { return fmt.Errorf("no") }); err == nil || a.Policy() != nil {
		t.Errorf("refused by its user, and kept: %v", err)
	}
	accept("good", second, set, "")
	accept("again", second, set, "")
	accept("older", policy("m", 1, rules, operator), set, Rollback)
	accept("another of the same version", policy("m", 2, `[]`, operator), set, Rollback)
	if a, err = OpenPolicyAnchor(path, "m"); err != nil || a.Policy().Version != 2 {
		t.Fatalf("after a restart: %v", err)
	}
	accept("older, after a restart", policy("m", 1, rules, operator), set, Rollback)
	accept("newer", policy("m", 3, rules, operator), set, "")
	if _, err := OpenPolicyAnchor(path, "other"); err == nil {
		t.Error("another mesh's pinned policy was taken")
	}
	for name, p := range map[string]Policy{
		"no version": {Mesh: "m", IssuedAt: at(0), Rules: []byte(rules)},
		"no rules":   {Mesh: "m", Version: 1, IssuedAt: at(0)},
		"no mesh":    {Version: 1, IssuedAt: at(0), Rules: []byte(rules)},
	} {
		if _, err := SignPolicy(&p, operator); err == nil {
			t.Errorf("%s: was signed", name)
		}
	}
}

func FuzzDecodePolicy(f *testing.F) {
	raw, err := SignPolicy(&Policy{Mesh: "m", Version: 2, IssuedAt: at(0), Rules: []byte(`[{"to":"bobby"}]`)}, operator)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add([]byte(`{"policy":{},"signatures":[]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, _, err := DecodePolicy(b); err == nil && !bytes.Equal(b, raw) {
			p, by, _ := DecodePolicy(b)
			if by.Equal(operator.Public()) {
				t.Fatalf("believed: %s (%+v)", b, p)
			}
		}
	})
}
