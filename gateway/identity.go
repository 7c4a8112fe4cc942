package gateway

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope/trust"
)

// What lies in a gateway's state directory (mesh.dataDir).
const (
	IdentityFile = "identity.key"
	pinFile      = "trust-set.json"
	AuditDir     = "audit"
	marksFile    = "lanes.json"
	ringFile     = "encryption-keys.json"
)

// PinnedSet reads the newest trust set that a gateway has accepted, from its state directory; nil when there is none.
func PinnedSet(dir string) (*trust.Set, error) {
	raw, err := os.ReadFile(filepath.Join(dir, pinFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("pinned trust set: %w", err)
	}
	set, _, err := trust.DecodeSet(raw)
	if err != nil {
		return nil, fmt.Errorf("pinned trust set: %w", err)
	}
	return set, nil
}

// identity is who this gateway is, and whom it believes.
type identity struct {
	signer   *trust.Signer
	anchor   *trust.Anchor
	verifier *trust.Verifier
	// ring are the keys that payloads for this gateway are encrypted for; nil: the mesh is open, or there is nowhere to keep them.
	ring *trust.Keyring
	// marks is the file of how far the lanes had come; "": none.
	marks string
	// loose is why the key does not outlive the process, if so.
	loose error
	// token shows the operator who asks to join; nil: he compares keys.
	token *trust.Token
}

// openIdentity reads the key (or makes it, on the first start) and what was pinned. Without a directory for state, the
// key lives as long as the process.
func openIdentity(cfg *Config, dir string) (*identity, error) {
	if strings.HasPrefix(dir, "~") {
		if cfg.Mesh.trusts() {
			return nil, errors.New("mesh.dataDir: there is no home directory to keep this gateway's key in; name a directory")
		}
		dir = ""
	}
	key, err := gatewayKey(cfg, dir)
	mesh, loose := cfg.Mesh.Cluster.ID, error(nil)
	if unwritable := (*fs.PathError)(nil); errors.As(err, &unwritable) && !cfg.Mesh.trusts() && absent(filepath.Join(dir, pinFile)) {
		// An open mesh believes everybody: there it must not keep a gateway from starting.
		key, dir, loose, err = trust.NewKey(), "", err, nil
	}
	if err != nil {
		return nil, fmt.Errorf("this gateway's key (mesh.identity): %w", err)
	}
	id := &identity{loose: loose, signer: &trust.Signer{Mesh: mesh, Gateway: cfg.Mesh.Gateway, Key: key}}
	var operators []ed25519.PublicKey
	for _, text := range cfg.Mesh.Trust.OperatorKeys {
		public, err := trust.ParsePublic(text)
		if err != nil {
			return nil, fmt.Errorf("mesh.trust.operatorKeys: %w", err)
		}
		operators = append(operators, public)
	}
	if text := cfg.Mesh.Trust.EnrollToken; text != "" {
		if id.token, err = trust.ParseToken(text); err != nil {
			return nil, fmt.Errorf("mesh.trust.enrollToken: %w", err)
		}
		operators = append(operators, id.token.Operator)
	}
	pin := ""
	if dir != "" {
		pin, id.marks = filepath.Join(dir, pinFile), filepath.Join(dir, marksFile)
	}
	if id.anchor, err = trust.OpenAnchor(pin, mesh, operators); err != nil {
		return nil, err
	}
	id.verifier = trust.NewVerifier(mesh, cfg.Mesh.Trust.Mode == "enforce")
	if set := id.anchor.Set(); set != nil {
		id.verifier.Use(set)
	}
	if dir != "" && (id.anchor.Pinned() || id.verifier.Enforced()) {
		if id.ring, err = trust.OpenKeyring(filepath.Join(dir, ringFile)); err != nil {
			return nil, err
		}
	}
	if mode := cfg.Mesh.Confidentiality.Mode; id.ring == nil && cfg.Mesh.Confidentiality.level() != bus.InTheClear {
		return nil, fmt.Errorf("mesh.confidentiality.mode is %q, and there is no directory to keep this gateway's encryption keys in: set mesh.dataDir", mode)
	}
	return id, nil
}

// absent reports whether there is surely nothing at path.
func absent(path string) bool {
	_, err := os.Stat(path)
	return err != nil && !errors.Is(err, fs.ErrPermission)
}

// trusts reports whether anything was said of whom to believe.
func (m *MeshConfig) trusts() bool {
	return m.Trust.Mode == "enforce" || len(m.Trust.OperatorKeys) > 0 || m.Trust.EnrollToken != "" || m.Identity.KeyFile != ""
}

func gatewayKey(cfg *Config, dir string) (*trust.Key, error) {
	if path := cfg.Mesh.Identity.KeyFile; path != "" {
		return trust.LoadKey(path)
	}
	if text, _ := cfg.source.env(keyVariable); text != "" {
		key, err := trust.ParseKey([]byte(text))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", keyVariable, err)
		}
		return key, nil
	}
	if dir == "" {
		return trust.NewKey(), nil
	}
	key, _, err := trust.LoadOrMakeKey(filepath.Join(dir, IdentityFile))
	return key, err
}

// describe says in a few words what is believed.
func (id *identity) describe() string {
	switch set := id.verifier.Set(); {
	case id.loose != nil:
		return fmt.Sprintf("open, with another key after each start: %v", id.loose)
	case set != nil:
		return fmt.Sprintf("enforced, trust set %d", set.Version)
	case id.verifier.Enforced():
		return "enforced, no trust set yet"
	case id.anchor.Pinned():
		return "open until the operator's trust set is seen"
	}
	return "open: whoever can write the store is believed"
}

// The words of StatusResponse.Trust.
const (
	TrustOpen     = "open"
	TrustWaiting  = "waiting"
	TrustEnforced = "enforced"
)

func (id *identity) state() (key, state string, version uint64) {
	state = TrustOpen
	if set := id.verifier.Set(); set != nil {
		state, version = TrustEnforced, set.Version
	} else if id.verifier.Enforced() {
		state = TrustWaiting
	}
	return id.signer.Key.ID(), state, version
}
