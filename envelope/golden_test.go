package envelope

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write the golden files of this version anew")

// golden is what this build writes, by the name of its file in testdata. A change of
// these bytes is a change of the wire format: raise the version and add a folder.
func golden() map[string]Envelope {
	reply := minimal()
	reply.MessageID, reply.InReplyTo = idB, idA
	reply.SourceGateway, reply.SourceAgent, reply.TargetGateway, reply.TargetAgent = "gw-bobby", "bobby", "gw-jerry", "jerry"
	reply.Payload = json.RawMessage(`{"ok":true,"servers":3}`)
	reply.CreatedAt = At(noon.Add(1500 * time.Millisecond))
	reply.Terminal = true

	text := minimal()
	text.ConversationID = "Straße <1> & \u2028 \U0001f980"
	text.Payload = TextPayload("a < b && b > c, \"quoted\" \\ Grüße, \u2028 \u2029 \U0001f980\n\x00 \xff")
	task := full()
	task.SchemaVersion = "1.1"
	task.Task = &Task{Priority: ptr(0), NotBefore: ptr(At(noon.Add(time.Hour))), UniqueKey: "backup <db> 1", UniqueFor: 3_600_000}
	urgent := minimal()
	urgent.SchemaVersion, urgent.Task = "1.1", &Task{Priority: ptr(MaxPriority)}
	secret := minimal()
	secret.SchemaVersion, secret.Payload = EncryptedVersion, json.RawMessage(`"c2VhbGVkIHdpdGggYSB0YWcgb2YgMTYgYnl0ZXM"`)
	secret.Encryption = &Encryption{Suite: "x25519-hkdf-sha256-aes256gcm", Salt: "c2l4dGVlbiByYW5kb20gYg", Keys: []string{"gw-bobby/0123456789abcdef/d3JhcHBlZA", "gw-billy/fedcba9876543210/d3JhcHBlZCwgdG9v"}}
	outside := full()
	outside.SchemaVersion, outside.Payload, outside.Encryption = EncryptedVersion, json.RawMessage("null"), secret.Encryption
	outside.PayloadSize, outside.PayloadSHA256 = 200_000, strings.Repeat("0f", 32)
	return map[string]Envelope{
		"v2.0-encrypted/minimal.json": secret, "v2.0-encrypted/outside.json": outside,
		"v1.0/minimal.json": minimal(), "v1.0/full.json": full(), "v1.0/reply.json": reply, "v1.0/unicode.json": text,
		"v1.1/task.json": task, "v1.1/urgent.json": urgent,
	}
}

// wire reads a golden file: canonical bytes and, for editors and git, a final newline.
func wire(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b, ok := bytes.CutSuffix(b, []byte("\n"))
	if !ok {
		t.Fatalf("%s: no final newline", path)
	}
	return b
}

func goldenFiles(t testing.TB, version string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("testdata", version, "*.json"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden files of %s: %v", version, err)
	}
	return files
}

func TestGoldenWritten(t *testing.T) {
	for name, e := range golden() {
		path := filepath.Join("testdata", name)
		got := seal(t, e).Canonical()
		if *update {
			if err := os.WriteFile(path, append(bytes.Clone(got), '\n'), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if want := wire(t, path); !bytes.Equal(got, want) {
			t.Errorf("%s: the wire format changed\n got %s\nwant %s", name, got, want)
		}
	}
}

// TestGoldenRead: what any 1.x gateway wrote is read, and passed on byte by byte.
func TestGoldenRead(t *testing.T) {
	schema := compileSchema(t, "")
	ours := golden()
	for _, path := range slices.Concat(goldenFiles(t, "v1.0"), goldenFiles(t, "v1.1"), goldenFiles(t, "v2.0-encrypted")) {
		b := wire(t, path)
		s, err := Decode(b)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		again, err := Encode(s)
		if err != nil || !bytes.Equal(again, b) {
			t.Errorf("%s: not the same bytes (%v)\n got %s\nwant %s", path, err, again, b)
		}
		if err := schemaErr(t, schema, b); err != nil {
			t.Errorf("%s: %v", path, err)
		}
		if _, ok := ours[filepath.Base(filepath.Dir(path))+"/"+filepath.Base(path)]; ok {
			if resealed := seal(t, s.Envelope).Canonical(); !bytes.Equal(resealed, b) {
				t.Errorf("%s: something was lost in reading\n got %s\nwant %s", path, resealed, b)
			}
		}
	}
}

func TestNewerMinorIsRead(t *testing.T) {
	s, err := Decode(wire(t, "testdata/v1.0/v1.7-unknown-fields.json"))
	if err != nil {
		t.Fatal(err)
	}
	if s.SchemaVersion != "1.7" || s.TargetAgent != "bobby" || s.Text() != "<b>\u2028</b>" ||
		!s.CreatedAt.Equal(noon) || s.Budget == nil || *s.Budget.Messages != 3 {
		t.Errorf("read %+v", s.Envelope)
	}
}

func TestOtherMajorIsRefused(t *testing.T) {
	for _, path := range goldenFiles(t, "v2.0") {
		s, err := Decode(wire(t, path))
		var verr *VersionError
		if !errors.As(err, &verr) || verr.Got != "2.0" || !errors.Is(err, ErrInvalid) || s != nil {
			t.Errorf("%s: got %v, %v, want a VersionError", path, s, err)
		}
	}
}
