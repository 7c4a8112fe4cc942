package trust

import (
	"crypto/sha256"
	"math/bits"
)

// Hash is a node of the tree over an entry's items: that of RFC 6962, section 2.1.
type Hash [sha256.Size]byte

// Leaf is the hash of an item: an envelope's canonical bytes and what its path added to them. They are hashed by
// themselves first, so that a proof of what the sender said needs only the hash of the other part.
func Leaf(canonical []byte, meta Hash) Hash {
	return leafOf(sha256.Sum256(canonical), meta)
}

// MetaHash is the hash of what an item's path added.
func MetaHash(meta []byte) Hash { return sha256.Sum256(meta) }

func leafOf(envelope, meta Hash) Hash {
	var b [1 + 2*sha256.Size]byte
	copy(b[1:], envelope[:]) // b[0] is 0: a leaf
	copy(b[1+sha256.Size:], meta[:])
	return sha256.Sum256(b[:])
}

func parent(left, right Hash) Hash {
	var b [1 + 2*sha256.Size]byte
	b[0] = 1
	copy(b[1:], left[:])
	copy(b[1+sha256.Size:], right[:])
	return sha256.Sum256(b[:])
}

// Root is the tree's top; that of no leaves is the hash of nothing.
func Root(leaves []Hash) Hash {
	if len(leaves) == 0 {
		return sha256.Sum256(nil)
	}
	level := append([]Hash(nil), leaves...)
	for len(level) > 1 {
		level = up(level)
	}
	return level[0]
}

// up replaces a level by the one above it; one that has no neighbour moves up as it is.
func up(level []Hash) []Hash {
	n := 0
	for i := 0; i < len(level); i += 2 {
		if i+1 < len(level) {
			level[n] = parent(level[i], level[i+1])
		} else {
			level[n] = level[i]
		}
		n++
	}
	return level[:n]
}

// auditPath is the neighbours on the way from a leaf to the root.
func auditPath(leaves []Hash, index int) []Hash {
	level := append([]Hash(nil), leaves...)
	var path []Hash
	for ; len(level) > 1; index /= 2 {
		if next := index ^ 1; next < len(level) {
			path = append(path, level[next])
		}
		level = up(level)
	}
	return path
}

// rootFrom climbs from a leaf to the root of a tree of n leaves. ok is false when the path is not as long as that tree needs.
func rootFrom(leaf Hash, index, n int, path []Hash) (root Hash, ok bool) {
	if index < 0 || index >= n || len(path) > bits.Len(uint(n)) {
		return Hash{}, false
	}
	for root = leaf; n > 1; index, n = index/2, (n+1)/2 {
		next := index ^ 1
		if next >= n {
			continue
		}
		if len(path) == 0 {
			return Hash{}, false
		}
		if next < index {
			root = parent(path[0], root)
		} else {
			root = parent(root, path[0])
		}
		path = path[1:]
	}
	return root, len(path) == 0
}
