package trust

import (
	"bytes"
	"crypto/ed25519"
	"fmt"
	"slices"
)

// An Anchor is what a gateway knows of its mesh's trust set from its own disk, so that whoever can write the store cannot
// take it back to an older set or to another operator's. A file of mode 0600 holds the newest set that was accepted.
type Anchor struct {
	pinned
	mesh string
	// configured are the operators that may sign the first set.
	configured []ed25519.PublicKey
	set        *Set // nil: none yet
}

// OpenAnchor reads what was accepted before. An empty path keeps nothing beyond this process.
func OpenAnchor(path, mesh string, operators []ed25519.PublicKey) (*Anchor, error) {
	a := &Anchor{pinned: pinned{what: "trust set", path: path}, mesh: mesh, configured: operators}
	raw, err := a.read()
	if err != nil {
		return nil, err
	}
	if raw == nil {
		return a, nil
	}
	set, _, err := DecodeSet(raw)
	if err != nil {
		return nil, fmt.Errorf("pinned trust set %s: %w (if its loss is explained, remove the file: the operators of the configuration count again)", path, err)
	}
	if set.Mesh != mesh {
		return nil, fmt.Errorf("pinned trust set %s is of the mesh %q, not of %q: another mesh.dataDir, or remove the file", path, set.Mesh, mesh)
	}
	a.raw, a.set = raw, set
	return a, nil
}

// Set is the newest set that was accepted, or nil.
func (a *Anchor) Set() *Set {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.set
}

// Pinned reports whether there is anything to go by: a set, or an operator that may sign one.
func (a *Anchor) Pinned() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.set != nil || len(a.configured) > 0
}

// Accept judges a signed set, and makes it the newest when it may be: on the disk first. The errors are *[Refusal], or
// the disk's. One that is the newest already is no error.
func (a *Anchor) Accept(raw []byte) (*Set, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.set != nil && bytes.Equal(raw, a.raw) {
		return a.set, nil
	}
	set, by, err := DecodeSet(raw)
	if err != nil {
		return nil, err
	}
	signer := KeyID(by[0])
	if set.Mesh != a.mesh {
		return nil, refuse(WrongMesh, "", signer, "trust set is of the mesh %s, this is %s", set.Mesh, a.mesh)
	}
	may := a.configured
	if a.set != nil {
		may = nil
		for _, o := range a.set.Operators {
			if public, err := ParsePublic(o); err == nil {
				may = append(may, public)
			}
		}
	}
	if !slices.ContainsFunc(by, func(p ed25519.PublicKey) bool {
		return slices.ContainsFunc(may, func(m ed25519.PublicKey) bool { return p.Equal(m) })
	}) {
		return nil, refuse(WrongOperator, "", signer, "trust set %d is not signed by an operator that this gateway knows", set.Version)
	}
	if a.set != nil && set.Version <= a.set.Version {
		return nil, refuse(Rollback, "", signer, "trust set %d, and %d was seen: somebody put an older or another one into the store", set.Version, a.set.Version)
	}
	if err := a.keepLocked(raw, set.Version); err != nil {
		return nil, err
	}
	a.set = set
	return set, nil
}
