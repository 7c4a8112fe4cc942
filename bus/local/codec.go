package local

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	bolt "go.etcd.io/bbolt"

	"github.com/gatemesh/gatemesh/bus"
)

// The file's buckets. A change of their meaning needs a new formatVersion.
var (
	// bucketMeta holds keyFormat and keyIndex.
	bucketMeta = []byte("meta")
	// bucketPairs: key -> entry (see appendEntry).
	bucketPairs = []byte("pairs")
	// bucketSessions: session id -> sessionRecord as JSON.
	bucketSessions = []byte("sessions")
	// bucketLocks: session id, '/', key -> nothing. It finds the keys of a session
	// without reading all pairs, and is derived from them.
	bucketLocks = []byte("locks")

	keyFormat = []byte("format") // 8 bytes, big endian
	keyIndex  = []byte("index")  // 8 bytes, big endian: the last index given out
)

const formatVersion = 1

var errDamaged = errors.New("damaged entry")

// entry is the stored form of a pair without its key.
type entry struct {
	create, modify uint64
	session        string
	value          []byte
}

// pair copies e out of the transaction it was read in.
func (e *entry) pair(key string) bus.Pair {
	p := e.stamp(key)
	p.Value = bytes.Clone(e.value)
	return p
}

// stamp is pair without the value.
func (e *entry) stamp(key string) bus.Pair {
	return bus.Pair{Key: key, CreateIndex: e.create, ModifyIndex: e.modify, Session: e.session}
}

// same reports whether writing next over e would change nothing that can be seen.
func (e *entry) same(next *entry) bool {
	return e.session == next.session && bytes.Equal(e.value, next.value)
}

// encode returns create and modify index as uvarints, the session's length as a
// uvarint, the session, and the value to the end.
func (e *entry) encode() []byte {
	b := make([]byte, 0, 3*binary.MaxVarintLen64+len(e.session)+len(e.value))
	b = binary.AppendUvarint(b, e.create)
	b = binary.AppendUvarint(b, e.modify)
	b = binary.AppendUvarint(b, uint64(len(e.session)))
	b = append(b, e.session...)
	return append(b, e.value...)
}

// decode reads what encode wrote. The value aliases b.
func decode(key string, b []byte) (*entry, error) {
	var head [3]uint64
	for i := range head {
		v, n := binary.Uvarint(b)
		if n <= 0 {
			return nil, fmt.Errorf("%w at key %q", errDamaged, key)
		}
		head[i], b = v, b[n:]
	}
	if head[2] > uint64(len(b)) {
		return nil, fmt.Errorf("%w at key %q", errDamaged, key)
	}
	return &entry{create: head[0], modify: head[1], session: string(b[:head[2]]), value: b[head[2]:]}, nil
}

// scan calls fn for every pair whose key starts with prefix, in key order. The
// entry is valid until the transaction ends.
func scan(pairs *bolt.Bucket, prefix string, fn func(key string, e *entry)) error {
	c := pairs.Cursor()
	for k, v := c.Seek([]byte(prefix)); k != nil && bytes.HasPrefix(k, []byte(prefix)); k, v = c.Next() {
		key := string(k)
		e, err := decode(key, v)
		if err != nil {
			return err
		}
		fn(key, e)
	}
	return nil
}

func lockName(session, key string) []byte {
	return append(lockPrefix(session), key...)
}

func lockPrefix(session string) []byte {
	return append([]byte(session), '/')
}

func getUint(b *bolt.Bucket, name []byte) uint64 {
	if v := b.Get(name); len(v) == 8 {
		return binary.BigEndian.Uint64(v)
	}
	return 0
}

func putUint(b *bolt.Bucket, name []byte, v uint64) error {
	return b.Put(name, binary.BigEndian.AppendUint64(nil, v))
}
