package gateway

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/envelope/trust"
)

// NextKeyFile lies beside IdentityFile while a key waits for the operator: a crash at any point leaves one of the two that
// the trust set names.
const NextKeyFile = "identity.next.key"

// formerFile keeps the public halves of the keys that this gateway had, one a line, newest last: what they signed in its own audit
// log is judged by them when the trust set does not name them (any more).
const formerFile = "identity.former"

// FormerKeys reads the public keys that a gateway had before, from its state directory.
func FormerKeys(dir string) (keys []ed25519.PublicKey, err error) {
	raw, err := os.ReadFile(filepath.Join(dir, formerFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("former keys: %w", err)
	}
	for line := range strings.Lines(string(raw)) {
		public, err := trust.ParsePublic(line)
		if err != nil {
			return nil, fmt.Errorf("former keys: %s: %w", formerFile, err)
		}
		keys = append(keys, public)
	}
	return keys, nil
}

// keepFormer adds a key to them.
func keepFormer(dir string, public ed25519.PublicKey) error {
	keys, err := FormerKeys(dir)
	if err != nil {
		return err
	}
	var text strings.Builder
	for _, k := range append(slices.DeleteFunc(keys, func(k ed25519.PublicKey) bool { return k.Equal(public) }), public) {
		text.WriteString(trust.EncodePublic(k) + "\n")
	}
	return trust.WriteState(filepath.Join(dir, formerFile), []byte(text.String()))
}

// keyHome is where this gateway's key comes from.
type keyHome int

const (
	keyInMemory keyHome = iota // it goes with the process
	keyInState                 // mesh.dataDir
	keyInFile                  // mesh.identity.keyFile
	keyInEnv                   // GATEMESH_GATEWAY_KEY
)

// foundKeys are the key that this gateway signs with and the one that is to follow it, if there is one.
type foundKeys struct {
	home      keyHome
	key, next *trust.Key
}

// findKeys reads them, and makes the first one where nothing was said.
func findKeys(cfg *Config, dir string) (f foundKeys, err error) {
	var both []*trust.Key
	text, _ := cfg.source.env(keyVariable)
	switch path := cfg.Mesh.Identity.KeyFile; {
	case path != "":
		f.home = keyInFile
		both, err = trust.LoadKeys(path)
	case text != "":
		f.home = keyInEnv
		if both, err = trust.ParseKeys([]byte(text)); err != nil {
			err = fmt.Errorf("%s: %w", keyVariable, err)
		}
	case dir == "":
		both = []*trust.Key{trust.NewKey()}
	default:
		f.home = keyInState
		var k, next *trust.Key
		if k, _, err = trust.LoadOrMakeKey(filepath.Join(dir, IdentityFile)); err != nil {
			break
		}
		both = append(both, k)
		next, err = trust.LoadKey(filepath.Join(dir, NextKeyFile))
		switch {
		case err == nil:
			both = append(both, next)
		case errors.Is(err, os.ErrNotExist):
			err = nil
		}
	}
	if err != nil {
		return f, err
	}
	f.key = both[0]
	if len(both) > 1 {
		f.next = both[1]
	}
	return f, nil
}

// takeNext makes the next key the one that is signed with, where it counts already: the process died, or was stopped, before it
// could.
func (id *identity) takeNext() error {
	set, next, old := id.anchor.Set(), id.next.Load(), id.signer.Current()
	if next == nil || set == nil || !set.Names(id.signer.Gateway, next.Public(), time.Now()) {
		return nil
	}
	id.signer.Use(next)
	return id.promote(old, next)
}

// promote is the disk's side of a change of keys. The next key is not waiting any more.
func (id *identity) promote(old, next *trust.Key) error {
	id.next.CompareAndSwap(next, nil)
	if id.dir != "" {
		if err := keepFormer(id.dir, old.Public()); err != nil {
			return err
		}
	}
	if id.home != keyInState {
		return nil
	}
	path := filepath.Join(id.dir, NextKeyFile)
	if k, err := trust.LoadKey(path); err != nil || k.ID() != next.ID() {
		return errors.Join(fmt.Errorf("%s does not hold the key %s", path, next.ID()), err)
	}
	return trust.MoveKey(path, filepath.Join(id.dir, IdentityFile))
}

// keyChanged is told by the bus right before another key is signed with.
func (g *Gateway) keyChanged(next *trust.Key) {
	old := g.identity.signer.Current()
	if err := g.identity.promote(old, next); err != nil {
		// The old file is still there, and so is the new one: the next start finds that the set names it.
		g.log.Error("the new key is in use, but its file is not in place yet: mend mesh.dataDir", "key", next.ID(), "error", err)
	}
	g.audit.order(auditOrder{What: "key", Keys: []string{old.ID(), next.ID()}})
}

// atomicKey is a key that may be put in or taken away at any time.
type atomicKey = atomic.Pointer[trust.Key]

// keyEnds is when what the key of now signs is refused; zero: never, or not known.
func (id *identity) keyEnds() envelope.Time {
	if set := id.verifier.Set(); set != nil {
		if end := set.End(id.signer.Gateway, id.signer.Current().Public()); end != nil {
			return envelope.At(*end)
		}
	}
	return envelope.Time{}
}

// newKey is the key that is to follow: the one that waits already, or one that is made.
func (id *identity) newKey() (*trust.Key, error) {
	if k := id.next.Load(); k != nil {
		return k, nil
	}
	k := trust.NewKey()
	if id.home == keyInState {
		var err error
		if k, _, err = trust.LoadOrMakeKey(filepath.Join(id.dir, NextKeyFile)); err != nil {
			return nil, err
		}
	}
	id.next.Store(k)
	return k, nil
}

// reloadKey looks what the key's file holds now: another key, alone or behind the old one, is to follow.
func (g *Gateway) reloadKey() error {
	id, path := g.identity, g.start.Mesh.Identity.KeyFile
	if id.home != keyInFile {
		return nil
	}
	both, err := trust.LoadKeys(path)
	if err != nil {
		return fmt.Errorf("this gateway's key (mesh.identity.keyFile): %w", err)
	}
	next := both[len(both)-1]
	if next.ID() == id.signer.Current().ID() {
		return nil
	}
	if old := id.next.Load(); old != nil && old.ID() == next.ID() {
		return nil
	}
	id.next.Store(next)
	if b := g.bus.Load(); b != nil {
		g.askFor(b, next) // else connect does
	}
	return nil
}

// askFor asks the operator for a key, beside whoever calls.
func (g *Gateway) askFor(b *bus.Bus, next *trust.Key) {
	g.run(func() {
		ctx, cancel := context.WithTimeout(g.life, connectTimeout)
		defer cancel()
		if err := b.Rotate(ctx, next); err != nil && ctx.Err() == nil {
			g.log.Warn("the new key is not asked for yet; trying again with the next heartbeat", "key", next.ID(), "error", err)
		}
	})
}

// KeyInfo is a key of this gateway, without its secret half.
type KeyInfo struct {
	Key    string `json:"key"`
	Public string `json:"public"`
}

func keyInfo(k *trust.Key) *KeyInfo {
	if k == nil {
		return nil
	}
	return &KeyInfo{k.ID(), trust.EncodePublic(k.Public())}
}

// TokenInfo is a token of the API, without its hash.
type TokenInfo struct {
	Name string `json:"name"`
	Role string `json:"role"`
	// Expires is when it ends; zero: never. LastUsed is when it was let in last, by this process; zero: not yet.
	Expires  envelope.Time `json:"expires,omitzero"`
	LastUsed envelope.Time `json:"last_used,omitzero"`
}

// KeysResponse is what a gateway says of its own keys and tokens.
type KeysResponse struct {
	Gateway string `json:"gateway"`
	// Now is what it signs with, Next what waits for the operator.
	Now  *KeyInfo `json:"now"`
	Next *KeyInfo `json:"next,omitempty"`
	// Source is where the key comes from: memory, state (mesh.dataDir), file (mesh.identity.keyFile) or environment.
	Source        string      `json:"source"`
	TrustVersion  uint64      `json:"trust_version,omitempty"`
	PolicyVersion uint64      `json:"policy_version,omitempty"`
	Tokens        []TokenInfo `json:"tokens"`
}

var keySources = map[keyHome]string{keyInMemory: "memory", keyInState: "state", keyInFile: "file", keyInEnv: "environment"}

func (g *Gateway) keys() KeysResponse {
	r := KeysResponse{Gateway: g.name, Now: keyInfo(g.identity.signer.Current()), Next: keyInfo(g.identity.next.Load()), Source: keySources[g.identity.home], Tokens: []TokenInfo{}}
	if set := g.identity.verifier.Set(); set != nil {
		r.TrustVersion = set.Version
	}
	if p := g.identity.policy.Policy(); p != nil {
		r.PolicyVersion = p.Version
	}
	for _, c := range g.guard.Load().callers {
		t := TokenInfo{Name: c.name, Role: c.role.String()}
		if !c.ends.IsZero() {
			t.Expires = envelope.At(c.ends)
		}
		if used := c.used.Load(); used != 0 {
			t.LastUsed = envelope.At(time.UnixMilli(used))
		}
		r.Tokens = append(r.Tokens, t)
	}
	return r
}

func (g *Gateway) getKeys(w http.ResponseWriter, _ *http.Request) error {
	return writeJSON(w, http.StatusOK, g.keys())
}

// postRotate makes the key that is to follow this gateway's and asks the operator for it. Doing it again asks for the
// same key. With ?next=ID no key is made: when that one waits, it is looked whether it counts by now.
func (g *Gateway) postRotate(w http.ResponseWriter, r *http.Request) error {
	b, err := g.ready()
	if err != nil {
		return err
	}
	id, waits := g.identity, g.identity.next.Load()
	if only := r.URL.Query().Get("next"); only != "" && (waits == nil || waits.ID() != only) {
		return writeJSON(w, http.StatusOK, g.keys())
	}
	if waits == nil && (id.home == keyInFile || id.home == keyInEnv) {
		where := map[keyHome]string{keyInFile: "mesh.identity.keyFile; it is read again by itself", keyInEnv: keyVariable + ", and restart"}[id.home]
		return &APIError{status: http.StatusConflict, Code: CodeConflict, Message: "this gateway's key was given to it: put the new one behind the old in " + where}
	}
	next, err := id.newKey()
	if err != nil {
		return fmt.Errorf("make the next key: %w", err)
	}
	if err := b.Rotate(r.Context(), next); err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, g.keys())
}
