package trust

import (
	"bytes"
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

func ring(t testing.TB, path string, now time.Time) *Keyring {
	t.Helper()
	k, err := OpenKeyring(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.Tend("identity", now); err != nil {
		t.Fatal(err)
	}
	return k
}

func readerOf(t testing.TB, k *Keyring, gateway string) *Reader {
	t.Helper()
	r, err := DecodeReader(gateway, k.Statement(gateway))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// encrypt is one message with a sending key of its own.
func encrypt(t testing.TB, binding, plain []byte, readers ...*Reader) (*envelope.Encryption, string) {
	t.Helper()
	key, err := NewSendingKey("sender", readers)
	if err != nil {
		t.Fatal(err)
	}
	c, text, err := key.Encrypt(binding, plain)
	if err != nil {
		t.Fatal(err)
	}
	return c, text
}

// TestEncryptPayload: each reader opens it, nobody else, and under no other header.
func TestEncryptPayload(t *testing.T) {
	a, b, c := ring(t, "", noon), ring(t, "", noon), ring(t, "", noon)
	header, plain := []byte("header"), []byte(`"attack at dawn"`)
	sending, err := NewSendingKey("sender", []*Reader{readerOf(t, a, "a"), readerOf(t, b, "b")})
	if err != nil {
		t.Fatal(err)
	}
	c1, text, err := sending.Encrypt(header, plain)
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range c1.Keys {
		if !envelope.ValidWrap(k) {
			t.Errorf("%q has another form than envelopes want", k)
		}
	}
	for _, r := range []*Keyring{a, b, a} { // what is remembered is the same
		key, err := r.Unwrap("sender", c1, header, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := key.OpenPayload(header, text); err != nil || !bytes.Equal(got, plain) {
			t.Errorf("opened %q, %v", got, err)
		}
		if _, err := key.OpenPayload([]byte("other"), text); !errors.Is(err, ErrCipher) {
			t.Errorf("under another header: %v", err)
		}
		if other, err := r.Unwrap("sender", c1, []byte("other"), nil); err != nil || bytes.Equal(other, key) {
			t.Errorf("another header has the same key: %v", err)
		}
		salted := *c1
		salted.Salt = strings.Repeat("A", 22)
		if other, err := r.Unwrap("sender", &salted, header, nil); err != nil || bytes.Equal(other, key) {
			t.Errorf("another salt has the same key: %v", err)
		}
		if _, err := r.Unwrap("another sender", c1, header, nil); !errors.Is(err, ErrCipher) {
			t.Errorf("the keys of another sender: %v", err)
		}
		if s := fmt.Sprintf("%v %+v %#v %v %#v", r, r, r, key, key); strings.Contains(s, "private") || strings.Contains(s, fmt.Sprint(key[0], ",")) || len(s) > 120 {
			t.Errorf("a key prints as %s", s)
		}
		if _, err := json.Marshal(r); err == nil {
			t.Error("private keys became JSON")
		}
	}
	if _, err := c.Unwrap("sender", c1, header, nil); !errors.Is(err, ErrNotForHere) {
		t.Errorf("somebody else: %v", err)
	}
	suite := *c1
	suite.Suite = "rot13"
	if _, err := a.Unwrap("sender", &suite, header, nil); !errors.Is(err, ErrCipher) || !strings.Contains(err.Error(), "rot13") {
		t.Errorf("another suite: %v", err)
	}
	if _, again, err := sending.Encrypt(header, plain); err != nil || again == text {
		t.Errorf("encrypted twice, it is the same: %v", err)
	}
	// Who passes a message on hands out that message's key, not the sender's.
	key, _ := a.Unwrap("sender", c1, header, nil)
	passed, err := WrapKey(key, header, []*Reader{readerOf(t, c, "c")})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := c.Unwrap("sender", c1, header, passed); err != nil || !bytes.Equal(got, key) {
		t.Errorf("passed on: %v", err)
	}
	if _, err := c.Unwrap("sender", c1, []byte("other"), passed); !errors.Is(err, ErrCipher) {
		t.Errorf("passed on, of another message: %v", err)
	}
	c2, _, _ := sending.Encrypt(header, plain)
	if got, err := c.Unwrap("sender", c2, header, passed); err != nil || !bytes.Equal(got, key) {
		t.Errorf("passed on: %v", err)
	}
}

// TestKeyringTend: a key lives for a month or as long as the identity; the one before it opens what may still wait.
func TestKeyringTend(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state", "encryption-keys.json")
	k := ring(t, path, noon)
	first := k.ID()
	c, _ := encrypt(t, nil, []byte("1"), readerOf(t, k, "a"))
	opens := func(k *Keyring) bool {
		_, err := k.Unwrap("sender", c, nil, nil)
		return err == nil
	}
	for _, step := range []struct {
		identity   string
		after      time.Duration
		made, open bool
	}{
		{"identity", EncryptionKeyLife, false, true},
		{"identity", EncryptionKeyLife + time.Second, true, true},
		{"another", EncryptionKeyLife + 2*time.Second, true, true},
		{"another", EncryptionKeyLife + encryptionKeyKept, true, true},
		{"another", EncryptionKeyLife + encryptionKeyKept + 2*time.Second, false, false},
	} {
		made, err := k.Tend(step.identity, noon.Add(step.after))
		if err != nil || made != step.made {
			t.Errorf("after %s: made %v, %v", step.after, made, err)
		}
		if opens(k) != step.open {
			t.Errorf("after %s the first key opens: %v", step.after, !step.open)
		}
		again, err := OpenKeyring(path)
		if err != nil || again.ID() != k.ID() || opens(again) != step.open {
			t.Errorf("after %s the file has something else: %v", step.after, err)
		}
	}
	if k.ID() == first {
		t.Error("the key is the first one still")
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenKeyring(path); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("readable by others: %v", err)
	}
	_ = os.Chmod(path, 0o600)
	for _, bad := range []string{"", "{", `[{"private":"AAAA"}]`, strings.Repeat(" ", maxKeyring+1)} {
		if err := os.WriteFile(path, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenKeyring(path); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%.20q: %v", bad, err)
		}
	}
	if k, err = OpenKeyring(filepath.Join(path, "below-a-file")); err == nil {
		if _, err = k.Tend("identity", noon); err == nil {
			t.Error("written below a file")
		}
	}
}

// TestGoldenPayload: what was written once is read for ever. The private key and the envelope are those of the file.
func TestGoldenPayload(t *testing.T) {
	raw, err := os.ReadFile("testdata/payload.json")
	if err != nil {
		t.Fatal(err)
	}
	var g struct {
		Keys     json.RawMessage `json:"keys"`
		Envelope json.RawMessage `json:"envelope"`
		Payload  json.RawMessage `json:"payload"`
	}
	if err := json.Unmarshal(raw, &g); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(path, g.Keys, 0o600); err != nil {
		t.Fatal(err)
	}
	k, err := OpenKeyring(path)
	if err != nil {
		t.Fatal(err)
	}
	s, err := envelope.Decode(g.Envelope)
	if err != nil {
		t.Fatal(err)
	}
	key, err := k.Unwrap(s.SourceGateway, s.Encryption, s.Binding(), nil)
	if err != nil {
		t.Fatal(err)
	}
	text, ok := s.Cipher()
	plain, err := key.OpenPayload(s.Binding(), text)
	if err != nil || !ok || !bytes.Equal(plain, g.Payload) {
		t.Errorf("opened %q, %v", plain, err)
	}
	if want := 38; s.PlainSize() != len(plain) || s.PlainSize() != want {
		t.Errorf("its size is %d and said to be %d", len(plain), s.PlainSize())
	}
}

// FuzzOpenPayload: nothing opens but what was encrypted, where it was.
func FuzzOpenPayload(f *testing.F) {
	a := ring(f, "", noon)
	header, plain := []byte("header"), []byte(`"secret"`)
	good, text := encrypt(f, header, plain, readerOf(f, a, "a"))
	f.Add(good.Keys[0], good.Salt, header, text)
	f.Add(good.Keys[0], good.Salt, []byte("other"), text)
	f.Add("a/"+a.ID()+"/AAAA", "AAAA", header, "")
	f.Add("//", "", []byte{}, "====")
	f.Fuzz(func(t *testing.T, wrapped, salt string, binding []byte, cipher string) {
		key, err := a.Unwrap("sender", &envelope.Encryption{Suite: EncryptionSuite, Salt: salt, Keys: []string{wrapped}}, binding, []string{wrapped})
		if err != nil {
			if key != nil || !errors.Is(err, ErrCipher) && !errors.Is(err, ErrNotForHere) {
				t.Fatalf("%v with a key %v", err, key != nil)
			}
			key = bytes.Repeat([]byte{7}, 32)
		} else if _, of, _ := strings.Cut(good.Keys[0], "/"); !strings.HasSuffix(wrapped, "/"+of) {
			t.Fatal("a key was unwrapped that was not made")
		}
		if got, err := key.OpenPayload(binding, cipher); err == nil && (!bytes.Equal(got, plain) || cipher != text || salt != good.Salt || !bytes.Equal(binding, header)) {
			t.Fatalf("%q opened", cipher)
		}
	})
}

// FuzzDecodeReader: what is read as a key is one that can be encrypted for.
func FuzzDecodeReader(f *testing.F) {
	k := ring(f, "", noon)
	f.Add(k.Statement("a"))
	f.Add([]byte(`{"gateway":"a","suite":"` + EncryptionSuite + `","key":"` + ReaderID(make([]byte, 32)) + `","public":"` + base64.StdEncoding.EncodeToString(make([]byte, 32)) + `"}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		r, err := DecodeReader("a", body)
		if err != nil {
			if r != nil || !errors.As(err, new(*Refusal)) {
				t.Fatalf("%v, %v", r, err)
			}
			return
		}
		if _, err := NewSendingKey("sender", []*Reader{r}); err != nil {
			t.Fatalf("read, and cannot be encrypted for: %v", err)
		}
	})
}

// BenchmarkNewSendingKey is once a minute for the same readers, so many.
func BenchmarkNewSendingKey(b *testing.B) {
	for _, n := range []int{1, 3} {
		var readers []*Reader
		for range n {
			readers = append(readers, readerOf(b, ring(b, "", noon), "a"))
		}
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			for b.Loop() {
				if _, err := NewSendingKey("sender", readers); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkEncryptPayload is a payload of 1 KiB.
func BenchmarkEncryptPayload(b *testing.B) {
	plain, header := bytes.Repeat([]byte("x"), 1024), bytes.Repeat([]byte("h"), 300)
	key, err := NewSendingKey("sender", []*Reader{readerOf(b, ring(b, "", noon), "a")})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, _, err := key.Encrypt(header, plain); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkOpenPayload is the receiver's side of it: the third of three keys is its own, and came with other messages
// before, or did not.
func BenchmarkOpenPayload(b *testing.B) {
	plain, header := bytes.Repeat([]byte("x"), 1024), bytes.Repeat([]byte("h"), 300)
	k := ring(b, "", noon)
	other := readerOf(b, ring(b, "", noon), "a")
	c, text := encrypt(b, header, plain, other, other, readerOf(b, k, "b"))
	for _, first := range []bool{true, false} {
		b.Run(fmt.Sprintf("first=%v", first), func(b *testing.B) {
			for b.Loop() {
				if first {
					k.seen = nil
				}
				key, err := k.Unwrap("sender", c, header, nil)
				if err == nil {
					_, err = key.OpenPayload(header, text)
				}
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
