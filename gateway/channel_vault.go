package gateway

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/gatemesh/gatemesh/bus"
)

// channelKeyVariable holds the keys of mesh.channelKeys where the file has none.
const channelKeyVariable = "GATEMESH_CHANNEL_KEY"

// ErrNoVault: the channel keeps credentials in the store, and there is no key to encrypt them with.
var ErrNoVault = errors.New("needs a key for its credentials: set mesh.channelKeys, or GATEMESH_CHANNEL_KEY, to the same on all gateways (gatemesh channels key makes one)")

// NewChannelKey makes a key for mesh.channelKeys.
func NewChannelKey() string {
	key := make([]byte, 32)
	_, _ = rand.Read(key) // never fails
	return base64.StdEncoding.EncodeToString(key)
}

// parseChannelKey never quotes what it was given.
func parseChannelKey(text string) (cipher.AEAD, error) {
	key, err := base64.StdEncoding.DecodeString(strings.TrimSpace(text))
	if err != nil || len(key) != 32 {
		return nil, errors.New("not a key: want 32 bytes in base64 (gatemesh channels key makes one)")
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// channelKeys are the keys of the configuration, else of the environment; the first one encrypts.
func (c *Config) channelKeys() ([]cipher.AEAD, error) {
	texts, from := c.Mesh.ChannelKeys, "mesh.channelKeys"
	if len(texts) == 0 {
		if value, _ := c.source.env(channelKeyVariable); value != "" {
			texts, from = strings.Split(value, ","), channelKeyVariable
		}
	}
	var keys []cipher.AEAD
	for _, text := range texts {
		k, err := parseChannelKey(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", from, err)
		}
		keys = append(keys, k)
	}
	return keys, nil
}

// vaultPrefix is where an account's credentials lie in its room.
const vaultPrefix = "vault/"

// A termVault is the vault of one term. Names are hex in the store, so that any name will do there and none says whom it is about in plain sight.
type termVault struct {
	term *bus.Term
	keys []cipher.AEAD
}

func (v *termVault) place(name string) string { return vaultPrefix + hex.EncodeToString([]byte(name)) }

// seal binds a value to its account and name: moved to another place it is not believed.
func (v *termVault) seal(name string, value []byte) []byte {
	return v.keys[0].Seal(nil, nil, //nolint:gosec // it makes its own nonce, at random
		value, []byte(v.term.Agent()+"\x00"+name))
}

func (v *termVault) open(name string, sealed []byte) ([]byte, error) {
	for _, k := range v.keys {
		if value, err := k.Open(nil, nil, sealed, []byte(v.term.Agent()+"\x00"+name)); err == nil {
			return append([]byte{}, value...), nil
		}
	}
	return nil, fmt.Errorf("credentials of %s cannot be decrypted: the key that encrypted them is not among mesh.channelKeys (%s) of this gateway", v.term.Agent(), channelKeyVariable)
}

// Get implements Vault.
func (v *termVault) Get(ctx context.Context, name string) ([]byte, error) {
	e, err := v.term.Get(ctx, v.place(name))
	if err != nil || e == nil {
		return nil, err
	}
	return v.open(name, e.Value)
}

// List implements Vault.
func (v *termVault) List(ctx context.Context, prefix string) (map[string][]byte, error) {
	entries, err := v.term.List(ctx, v.place(prefix))
	if err != nil {
		return nil, err
	}
	all := make(map[string][]byte, len(entries))
	for _, e := range entries {
		name, err := hex.DecodeString(strings.TrimPrefix(e.Name, vaultPrefix))
		if err != nil {
			continue // not of ours
		}
		if all[string(name)], err = v.open(string(name), e.Value); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// Write implements Vault.
func (v *termVault) Write(ctx context.Context, values map[string][]byte) error {
	entries := make([]bus.RoomEntry, 0, len(values))
	for name, value := range values {
		e := bus.RoomEntry{Name: v.place(name)}
		if value != nil {
			e.Value = v.seal(name, value)
		}
		entries = append(entries, e)
	}
	return v.term.Write(ctx, entries...)
}
