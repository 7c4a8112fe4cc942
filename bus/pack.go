package bus

import (
	"bytes"
	"context"
	"fmt"

	"github.com/klauspost/compress/zstd"
)

// A big entry is written as one Zstandard frame (RFC 8878; "consul kv get KEY | zstd -d" shows it): what Consul's
// servers do with it, three times over, is copying, checksumming and syncing bytes. Even text without any pattern in
// it (base64 of random bytes) loses 40 % with the envelopes around it; prose loses 70 %.

// unpackedBytes is the largest entry that is unpacked: what a sender of this package lays out stays
// below it (entryMost), so more is somebody's bomb.
const unpackedBytes = 1 << 20

var frameMagic = []byte{0x28, 0xb5, 0x2f, 0xfd}

// packer packs and unpacks entries. Safe for concurrent use.
type packer struct {
	enc *zstd.Encoder
	dec *zstd.Decoder
}

func newPacker() (packer, error) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return packer{}, fmt.Errorf("packing entries: %w", err)
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderMaxMemory(unpackedBytes), zstd.WithDecoderConcurrency(0))
	if err != nil {
		return packer{}, fmt.Errorf("unpacking entries: %w", err)
	}
	return packer{enc, dec}, nil
}

func (p packer) pack(entry []byte) []byte {
	return p.enc.EncodeAll(entry, make([]byte, 0, len(entry)/2))
}

// pack packs an entry, and remembers how much of it was left.
func (w *writer) pack(entry []byte) []byte {
	p := w.b.packer.pack(entry)
	w.packed = float64(len(p)) / float64(len(entry))
	return p
}

// entryRoom is how much one entry may have before it is packed, if it is like the last one. A wrong guess costs a refused request:
// then the batch is cut in two.
func (w *writer) entryRoom() int {
	const spare = 1.1
	return int(min(entryMost, max(entryBytes, entryBytes/(w.packed*spare))))
}

// unpack returns an entry as it was laid out. What is no whole frame is returned as it is: decodeEntry will say so.
func (p packer) unpack(value []byte) []byte {
	if !bytes.HasPrefix(value, frameMagic) {
		return value
	}
	if b, err := p.dec.DecodeAll(value, nil); err == nil {
		return b
	}
	return value
}

// readSlot reads an entry that has a key of its own; nil when there is none.
func (b *Bus) readSlot(ctx context.Context, key string) ([]byte, error) {
	value, err := b.store.Read(ctx, key)
	if err != nil {
		return nil, err
	}
	return b.packer.unpack(value), nil
}
