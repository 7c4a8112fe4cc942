package trust

import (
	"bytes"
	"crypto/ed25519"
	"testing"
)

// FuzzDecodeSet: what is read as a set is the text that it would be written as, and only who holds an operator's key
// can have written it.
func FuzzDecodeSet(f *testing.F) {
	good := mustSign(f, exampleSet(3), operator)
	f.Add(good)
	f.Add(mustSign(f, exampleSet(1), operator, stranger))
	f.Add(bytes.Replace(good, []byte(`"version":3`), []byte(`"version":4`), 1))
	f.Add([]byte(`{"set":{},"signatures":[]}`))
	f.Add([]byte(`{"set":null,"signatures":null}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		s, by, err := DecodeSet(raw)
		if err != nil {
			return
		}
		if err := s.check(); err != nil || len(by) == 0 {
			t.Fatalf("a set that is none was read: %v", err)
		}
		for _, public := range by {
			if KeyID(public) == operator.ID() && s.Version != 3 && s.Version != 1 {
				t.Fatalf("a signature was forged: %s", raw)
			}
		}
		a := &Anchor{mesh: s.Mesh, configured: []ed25519.PublicKey{by[0]}}
		if _, err := a.Accept(raw); err != nil {
			t.Fatalf("read, and not accepted: %v", err)
		}
	})
}

// FuzzSplitRecord: a record comes apart only into what would be put together to the same bytes.
func FuzzSplitRecord(f *testing.F) {
	s := &Signer{Mesh: "m", Gateway: "a", Key: keyA}
	f.Add(s.SignRecord(KindTerm, "place", noon, []byte(`{"a":1}`)))
	f.Add(s.SignRecord(KindTerm, "place", noon, []byte(`{}`)))
	f.Add([]byte(`{"signed":{"mesh":"m"}}`))
	f.Add([]byte(`"signed":`))
	f.Add([]byte(``))
	v := exampleVerifier()
	f.Fuzz(func(t *testing.T, raw []byte) {
		object, st := SplitRecord(raw)
		if st == nil {
			if !bytes.Equal(object, raw) {
				t.Fatal("what is not signed was changed")
			}
			return
		}
		if again, ok := parseStamp(appendStamp(nil, st)); !ok || !v.sameStamp(again, st) {
			t.Fatal("a stamp does not come back")
		}
		if _, _, err := v.Record(KindTerm, "place", raw, "a", ""); err == nil && string(object) != `{"a":1}` && string(object) != `{}` {
			t.Fatalf("a signature was forged: %s", raw)
		}
	})
}

// FuzzDecodeProof: a proof has one form, and proves only what was sent.
func FuzzDecodeProof(f *testing.F) {
	h, leaves, items := exampleEntry(5)
	st := (&Signer{Mesh: "m", Gateway: "a", Key: keyA}).SignEntry(h, noon)
	for i := range items {
		f.Add(Prove(st, h, leaves, i, MetaHash(nil)).Encode(), items[i])
	}
	f.Add([]byte(`{"mesh":"m","path":[]}`), []byte(`{}`))
	v := exampleVerifier()
	f.Fuzz(func(t *testing.T, raw, envelope []byte) {
		p, err := DecodeProof(raw)
		if err != nil {
			return
		}
		if !bytes.Equal(p.Encode(), raw) {
			t.Fatal("a proof has two forms")
		}
		if v.Proof(p, envelope, "a") != nil {
			return
		}
		for i := range items {
			if bytes.Equal(items[i], envelope) {
				return
			}
		}
		t.Fatalf("something was proven that was never sent: %s", envelope)
	})
}

// FuzzDecodeJoinRequest: whoever asks holds the key that he asks for.
func FuzzDecodeJoinRequest(f *testing.F) {
	s := &Signer{Mesh: "m", Gateway: "c", Key: stranger}
	token := &Token{Gateway: "c", Expires: noon, Operator: operator.Public(), secret: bytes.Repeat([]byte{1}, 32)}
	f.Add(NewJoinRequest(s, []string{"jerry", "q-*"}, nil, noon))
	f.Add(NewJoinRequest(s, nil, token, noon))
	f.Add([]byte(`{"gateway":"c","signed":{}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, st, err := DecodeJoinRequest(RequestsPrefix+"c", "m", raw)
		if err != nil {
			return
		}
		if public, err := ParsePublic(r.Public); err != nil || KeyID(public) != st.Key || r.Gateway != "c" {
			t.Fatalf("a request was read that proves nothing: %s", raw)
		}
	})
}

// FuzzParseKey reads keys and tokens: no panic, and what is read is written as something that is read as the same.
func FuzzParseKey(f *testing.F) {
	f.Add(seeded(1).PEM())
	f.Add([]byte(publicText(keyA)))
	f.Add([]byte(NewToken("a", noon, operator.Public()).Secret()))
	f.Fuzz(func(t *testing.T, text []byte) {
		if k, err := ParseKey(text); err == nil {
			if again, err := ParseKey(k.PEM()); err != nil || again.ID() != k.ID() {
				t.Fatalf("a key does not come back: %v", err)
			}
		}
		if p, err := ParsePublic(string(text)); err == nil {
			if again, err := ParsePublic(EncodePublic(p)); err != nil || !again.Equal(p) {
				t.Fatalf("a public key does not come back: %v", err)
			}
		}
		if tok, err := ParseToken(string(text)); err == nil {
			if again, err := ParseToken(tok.Secret()); err != nil || again.ID() != tok.ID() {
				t.Fatalf("a token does not come back: %v", err)
			}
		}
	})
}
