package main

import (
	"encoding/json"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// TestBenchTexts: the texts of a run differ, are as long as they say, and pack as their kind says: nothing to gain but the digits of
// base64 in random ones, and in prose not more than the documents of this repository give (where 0.39 is left).
func TestBenchTexts(t *testing.T) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		t.Fatal(err)
	}
	for kind, left := range map[string][2]float64{"random": {.74, .80}, "prose": {.39, .48}} {
		texts := benchTextsOf[kind]()
		seen, all, said := map[string]bool{}, []byte{}, 0
		for range 512 {
			p := texts.take()
			var text string
			if err := json.Unmarshal(p, &text); err != nil || len(text) != benchPayload {
				t.Fatalf("%s: %d bytes (%v)", kind, len(text), err)
			}
			if seen[text] {
				t.Fatalf("%s: a text came twice", kind)
			}
			seen[text] = true
			said += len(p)
			all = append(append(all, `{"source_gateway":"bench-jerry","target_agent":"empty","payload":`...), p...) // as in an entry
		}
		got := float64(len(enc.EncodeAll(all, nil))) / float64(said)
		t.Logf("%s: %.2f is left", kind, got)
		if got < left[0] || got > left[1] {
			t.Errorf("%s: %.2f of it is left when it is packed, want %.2f to %.2f", kind, got, left[0], left[1])
		}
	}
}
