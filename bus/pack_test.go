package bus

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
)

func TestPack(t *testing.T) {
	p, err := newPacker()
	if err != nil {
		t.Fatal(err)
	}
	var items [][]byte
	for i := range 100 {
		items = append(items, fmt.Appendf(nil, `{"envelope":{"payload":"%d %s"}}`, i, strings.Repeat("text ", 80)))
	}
	e := fmt.Appendf(nil, `{"seq":7,"count":100,"at":"2026-01-01T00:00:00.000Z","items":[%s]}`, bytes.Join(items, []byte(",")))
	packed := p.pack(e, 1)
	if len(packed) > len(e)/2 {
		t.Errorf("%d bytes were packed into %d", len(e), len(packed))
	}
	if !bytes.Equal(p.unpack(packed, nil), e) || !bytes.Equal(p.unpack(e, nil), e) {
		t.Error("an entry changed on its way")
	}
	if got, err := decodeEntry(p.unpack(packed, nil)); err != nil || got.Seq != 7 || len(got.Items) != 100 {
		t.Errorf("unpacked to entry %d with %d items: %v", got.Seq, len(got.Items), err)
	}

	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	flipped := bytes.Clone(packed)
	flipped[len(flipped)/2] ^= 1
	for name, bad := range map[string][]byte{
		"cut":     packed[:len(packed)-9],
		"flipped": flipped,
		"a bomb":  enc.EncodeAll(make([]byte, 64<<20), nil),
		"mark":    frameMagic,
	} {
		if got := p.unpack(bad, nil); !bytes.Equal(got, bad) {
			t.Errorf("%s: unpacked to %d bytes", name, len(got))
		}
		if _, err := decodeEntry(p.unpack(bad, nil)); !errors.Is(err, errUnreadable) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzUnpack(f *testing.F) {
	p, err := newPacker()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(p.pack([]byte(`{"seq":1,"count":1,"at":"2026-01-01T00:00:00Z","items":[]}`), 1))
	f.Add([]byte("(\xb5/\xfd"))
	f.Add([]byte(`{"seq":1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if n := len(p.unpack(b, nil)); n > max(unpackedBytes, len(b)) {
			t.Errorf("%d bytes were unpacked to %d", len(b), n)
		}
	})
}
