package bus

import (
	"bytes"
	"context"
	"fmt"
	"sync"

	"github.com/klauspost/compress/zstd"

	"github.com/gatemesh/gatemesh/envelope"
)

// A big entry is written as one Zstandard frame (RFC 8878; "consul kv get KEY | zstd -d" shows it): what Consul's
// servers do with it, three times over, is copying, checksumming and syncing bytes. Even text without any pattern in
// it (base64 of random bytes) loses 40 % with the envelopes around it; prose loses 70 %.

// unpackedBytes is the largest entry that is unpacked: what a sender of this package lays out stays
// below it (entryMost), so more is somebody's bomb.
const unpackedBytes = 1 << 20

// packRecord is how big a record is, in bytes, that is packed like an entry.
const packRecord = 4 << 10

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

// pack packs an entry of which a part will be left, as far as is known.
func (p packer) pack(entry []byte, part float64) []byte {
	const spare = 1 << 10
	return p.enc.EncodeAll(entry, make([]byte, 0, int(min(1, part*1.02)*float64(len(entry)))+spare))
}

// packItems is the entry of these items, packed. It remembers how much of it was left.
func (w *writer) packItems(seq, count uint64, at envelope.Time, h *signedHead, items []laneItem) []byte {
	w.room = encodeSigned(w.room[:0], seq, count, at, h, items)
	p := w.b.packer.pack(w.room, w.packed)
	w.packed = float64(len(p)) / float64(len(w.room))
	return p
}

// entryRoom is how much one entry may have before it is packed, if it is like the last one. A wrong guess costs a refused request:
// then the batch is cut in two.
func (w *writer) entryRoom() int {
	const spare = 1.1
	return int(min(entryMost, max(entryBytes, entryBytes/(w.packed*spare))))
}

// unpack returns an entry as it was laid out, in room if it fits there. What is no whole frame is returned as it is: decodeEntry will say so.
func (p packer) unpack(value, room []byte) []byte {
	if !bytes.HasPrefix(value, frameMagic) {
		return value
	}
	if b, err := p.dec.DecodeAll(value, room[:0]); err == nil {
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
	return b.packer.unpack(value, nil), nil
}

// slotValue is an entry in memory that is used again: whoever got it gives it back with done, and keeps no part of it.
type slotValue struct {
	entry []byte
	room  *[]byte
}

// unpacked holds the memory of entries that nobody looks at any more.
var unpacked = sync.Pool{New: func() any { return new([]byte) }}

// readSlotOnce is readSlot for who is done with the entry soon.
func (b *Bus) readSlotOnce(ctx context.Context, key string) (slotValue, error) {
	value, err := b.store.Read(ctx, key)
	if err != nil || !bytes.HasPrefix(value, frameMagic) {
		return slotValue{entry: value}, err
	}
	room := unpacked.Get().(*[]byte)
	entry := b.packer.unpack(value, *room)
	if !bytes.HasPrefix(entry, frameMagic) { // it is not value itself
		*room = entry[:0]
	}
	return slotValue{entry, room}, nil
}

func (v slotValue) done() {
	if v.room != nil {
		unpacked.Put(v.room)
	}
}
