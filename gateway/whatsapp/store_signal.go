package whatsapp

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"
	"sync"
	"time"

	"go.mau.fi/whatsmeow/store"
	"go.mau.fi/whatsmeow/types"
	"go.mau.fi/whatsmeow/util/keys"
)

// Names of rows.
const (
	rowIdentity = "identity/"
	rowSession  = "session/"
	rowSender   = "sender/"
	rowPreKeys  = "prekeys/"
	rowPreKey   = "prekey-state"
	rowAppKey   = "appkey/"
	rowLID      = "lid/"
	rowToken    = "token/"
	rowEvent    = "event/"
)

var (
	_ store.AllStores       = (*credentials)(nil)
	_ store.DeviceContainer = (*credentials)(nil)
)

func (c *credentials) PutIdentity(_ context.Context, address string, key [32]byte) error {
	c.put(rowIdentity+address, key[:])
	return nil
}

func (c *credentials) DeleteAllIdentities(_ context.Context, phone string) error {
	c.deletePrefix(rowIdentity + phone + ":")
	return nil
}

func (c *credentials) DeleteIdentity(_ context.Context, address string) error {
	c.put(rowIdentity+address, nil)
	return nil
}

// IsTrustedIdentity trusts who is not known yet, as WhatsApp's own clients do.
func (c *credentials) IsTrustedIdentity(_ context.Context, address string, key [32]byte) (bool, error) {
	known := c.get(rowIdentity + address)
	return known == nil || slices.Equal(known, key[:]), nil
}

func (c *credentials) GetSession(_ context.Context, address string) ([]byte, error) {
	return c.get(rowSession + address), nil
}

func (c *credentials) HasSession(_ context.Context, address string) (bool, error) {
	return c.get(rowSession+address) != nil, nil
}

// encryption is one message that is made for its receivers' devices: the library reads all their sessions, steps them on and writes them back,
// with nothing that keeps a message which comes meanwhile from stepping on what it has read.
type encryption struct {
	c    *credentials
	mu   sync.Mutex
	held bool
}

type encryptionKey struct{}

// encrypting returns a context under which the sessions that are read are those that are written back. done ends it, and must be called.
func (c *credentials) encrypting(ctx context.Context) (_ context.Context, done func()) {
	e := &encryption{c: c}
	return context.WithValue(ctx, encryptionKey{}, e), e.end
}

// begin and end are idempotent: a list of devices may be asked for in between, and is made anew.
func (e *encryption) begin() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.held {
		e.c.ratchet.Lock()
		e.held = true
	}
}

func (e *encryption) end() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.held {
		e.c.ratchet.Unlock()
		e.held = false
	}
}

// GetManySessions and PutManySessions are the two ends of an encryption.
func (c *credentials) GetManySessions(ctx context.Context, addresses []string) (map[string][]byte, error) {
	if e, ok := ctx.Value(encryptionKey{}).(*encryption); ok {
		e.begin()
	}
	out := make(map[string][]byte, len(addresses))
	for _, a := range addresses {
		out[a] = c.get(rowSession + a)
	}
	return out, nil
}

func (c *credentials) PutSession(_ context.Context, address string, session []byte) error {
	c.put(rowSession+address, session)
	return nil
}

func (c *credentials) PutManySessions(ctx context.Context, sessions map[string][]byte) error {
	for a, s := range sessions {
		c.put(rowSession+a, s)
	}
	if e, ok := ctx.Value(encryptionKey{}).(*encryption); ok {
		e.end()
	}
	return nil
}

func (c *credentials) DeleteAllSessions(_ context.Context, phone string) error {
	c.deletePrefix(rowSession + phone + ":")
	return nil
}

func (c *credentials) DeleteSession(_ context.Context, address string) error {
	c.put(rowSession+address, nil)
	return nil
}

// MigratePNToLID moves what is kept under a phone number to its owner's hidden id.
func (c *credentials) MigratePNToLID(_ context.Context, pn, lid types.JID) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	from, to := pn.SignalAddressUser()+":", lid.SignalAddressUser()+":"
	if c.migrated[from] {
		return nil
	}
	c.migrated[from] = true
	for name, value := range c.rows {
		kind, rest, _ := strings.Cut(name, "/")
		switch kind + "/" {
		case rowIdentity, rowSession:
		case rowSender:
			group, user, _ := strings.Cut(rest, "/")
			kind, rest = kind+"/"+group, user
		default:
			continue
		}
		if device, ok := strings.CutPrefix(rest, from); ok {
			c.set(kind+"/"+to+device, value)
			c.set(name, nil)
		}
	}
	return nil
}

func (c *credentials) PutSenderKey(_ context.Context, group, user string, session []byte) error {
	c.put(rowSender+group+"/"+user, session)
	return nil
}

func (c *credentials) GetSenderKey(_ context.Context, group, user string) ([]byte, error) {
	return c.get(rowSender + group + "/" + user), nil
}

// One-time keys lie in rows of 128: 812 rows of them would cost fourteen writes at the first upload.
const (
	preKeysInRow = 128
	preKeySize   = 4 + 32
)

// preKeyState says which one-time keys there were: those up to Uploaded are at the server.
type preKeyState struct {
	Last     uint32 `json:"last"`
	Uploaded uint32 `json:"uploaded"`
}

func (c *credentials) preKeyState() (s preKeyState) {
	if raw := c.rows[rowPreKey]; raw != nil {
		_ = json.Unmarshal(raw, &s) // our own JSON, authenticated by the vault
	}
	return s
}

func (c *credentials) setPreKeyState(s preKeyState) {
	raw, _ := json.Marshal(s) // two numbers
	c.set(rowPreKey, raw)
}

func preKeyRow(id uint32) string { return fmt.Sprintf("%s%d", rowPreKeys, id/preKeysInRow) }

// findPreKey returns where in its row a key is; -1: it is not.
func findPreKey(row []byte, id uint32) int {
	for i := 0; i+preKeySize <= len(row); i += preKeySize {
		if binary.BigEndian.Uint32(row[i:]) == id {
			return i
		}
	}
	return -1
}

func (c *credentials) preKey(id uint32) *keys.PreKey {
	row := c.rows[preKeyRow(id)]
	i := findPreKey(row, id)
	if i < 0 {
		return nil
	}
	return &keys.PreKey{KeyPair: *keys.NewKeyPairFromPrivateKey([32]byte(row[i+4 : i+preKeySize])), KeyID: id}
}

func (c *credentials) newPreKey(s *preKeyState) *keys.PreKey {
	s.Last++
	key := keys.NewPreKey(s.Last)
	row := binary.BigEndian.AppendUint32(slices.Clone(c.rows[preKeyRow(key.KeyID)]), key.KeyID)
	c.set(preKeyRow(key.KeyID), append(row, key.Priv[:]...))
	return key
}

func (c *credentials) GetOrGenPreKeys(_ context.Context, count uint32) ([]*keys.PreKey, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.preKeyState()
	var out []*keys.PreKey
	for id := s.Uploaded + 1; id <= s.Last && len(out) < int(count); id++ {
		if key := c.preKey(id); key != nil {
			out = append(out, key)
		}
	}
	for len(out) < int(count) {
		out = append(out, c.newPreKey(&s))
	}
	c.setPreKeyState(s)
	return out, nil
}

func (c *credentials) GenOnePreKey(_ context.Context) (*keys.PreKey, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.preKeyState()
	key := c.newPreKey(&s)
	c.setPreKeyState(s)
	return key, nil
}

func (c *credentials) GetPreKey(_ context.Context, id uint32) (*keys.PreKey, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.preKey(id), nil
}

func (c *credentials) RemovePreKey(_ context.Context, id uint32) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	row := c.rows[preKeyRow(id)]
	if i := findPreKey(row, id); i >= 0 {
		row = slices.Delete(slices.Clone(row), i, i+preKeySize)
		if len(row) == 0 {
			row = nil
		}
		c.set(preKeyRow(id), row)
	}
	return nil
}

func (c *credentials) MarkPreKeysAsUploaded(_ context.Context, upToID uint32) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.preKeyState()
	s.Uploaded = max(s.Uploaded, upToID)
	c.setPreKeyState(s)
	return nil
}

func (c *credentials) UploadedPreKeyCount(_ context.Context) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	uploaded, n := c.preKeyState().Uploaded, 0
	for name, row := range c.rows {
		if !strings.HasPrefix(name, rowPreKeys) {
			continue
		}
		for i := 0; i+preKeySize <= len(row); i += preKeySize {
			if binary.BigEndian.Uint32(row[i:]) <= uploaded {
				n++
			}
		}
	}
	return n, nil
}

func (c *credentials) PutAppStateSyncKey(_ context.Context, id []byte, key store.AppStateSyncKey) error {
	raw, err := json.Marshal(key)
	if err == nil {
		c.put(rowAppKey+hex.EncodeToString(id), raw)
	}
	return err
}

func (c *credentials) GetAppStateSyncKey(_ context.Context, id []byte) (*store.AppStateSyncKey, error) {
	return readRow[store.AppStateSyncKey](c, rowAppKey+hex.EncodeToString(id))
}

// GetLatestAppStateSyncKeyID is for those who change the account's settings: this adapter does not.
func (c *credentials) GetLatestAppStateSyncKeyID(context.Context) ([]byte, error) { return nil, nil }

func (c *credentials) PutPrivacyTokens(_ context.Context, tokens ...store.PrivacyToken) error {
	for _, t := range tokens {
		raw, err := json.Marshal(t)
		if err != nil {
			return err
		}
		c.put(rowToken+t.User.ToNonAD().String(), raw)
	}
	return nil
}

func (c *credentials) GetPrivacyToken(_ context.Context, user types.JID) (*store.PrivacyToken, error) {
	return readRow[store.PrivacyToken](c, rowToken+user.ToNonAD().String())
}

// GetBufferedEvent, PutBufferedEvent and ClearBufferedEventPlaintext keep a plaintext from when its message was decrypted, which
// can be done once, until it was taken in.
func (c *credentials) GetBufferedEvent(_ context.Context, hash [32]byte) (*store.BufferedEvent, error) {
	return readRow[store.BufferedEvent](c, rowEvent+hex.EncodeToString(hash[:]))
}

func (c *credentials) PutBufferedEvent(_ context.Context, hash [32]byte, plaintext []byte, at time.Time) error {
	raw, err := json.Marshal(store.BufferedEvent{Plaintext: plaintext, InsertTime: time.Now(), ServerTime: at})
	if err == nil {
		c.put(rowEvent+hex.EncodeToString(hash[:]), raw)
	}
	return err
}

func (c *credentials) ClearBufferedEventPlaintext(_ context.Context, hash [32]byte) error {
	c.put(rowEvent+hex.EncodeToString(hash[:]), nil)
	return nil
}

// DeleteOldBufferedHashes has nothing to do: none outlives its message.
func (c *credentials) DeleteOldBufferedHashes(context.Context) error { return nil }

func (c *credentials) DoDecryptionTxn(ctx context.Context, decrypt func(context.Context) error) error {
	c.ratchet.Lock()
	defer c.ratchet.Unlock()
	c.step.Lock()
	defer c.step.Unlock()
	return decrypt(ctx)
}

// lidRow is where a phone number's hidden id is kept, with others: a big group brings a thousand at once.
func lidRow(pn string) string {
	h := fnv.New32a()
	_, _ = h.Write([]byte(pn))
	return fmt.Sprintf("%s%d", rowLID, h.Sum32()%32)
}

func (c *credentials) PutManyLIDMappings(_ context.Context, mappings []store.LIDMapping) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range mappings {
		if m.LID.Server != types.HiddenUserServer || m.PN.Server != types.DefaultUserServer {
			continue
		}
		name := lidRow(m.PN.User)
		known := map[string]string{}
		_ = json.Unmarshal(c.rows[name], &known) // our own JSON, or nothing
		if known[m.PN.User] == m.LID.User {
			continue
		}
		known[m.PN.User] = m.LID.User
		raw, err := json.Marshal(known)
		if err != nil {
			return err
		}
		c.set(name, raw)
	}
	return nil
}

func (c *credentials) PutLIDMapping(ctx context.Context, lid, pn types.JID) error {
	return c.PutManyLIDMappings(ctx, []store.LIDMapping{{LID: lid, PN: pn}})
}

func (c *credentials) GetLIDForPN(_ context.Context, pn types.JID) (types.JID, error) {
	known, err := readRow[map[string]string](c, lidRow(pn.User))
	if err != nil || known == nil || (*known)[pn.User] == "" {
		return types.JID{}, err
	}
	return types.JID{User: (*known)[pn.User], Device: pn.Device, Server: types.HiddenUserServer}, nil
}

func (c *credentials) GetPNForLID(_ context.Context, lid types.JID) (types.JID, error) {
	for i := range 32 {
		known, err := readRow[map[string]string](c, fmt.Sprintf("%s%d", rowLID, i))
		if err != nil {
			return types.JID{}, err
		}
		if known == nil {
			continue
		}
		for pn, l := range *known {
			if l == lid.User {
				return types.JID{User: pn, Device: lid.Device, Server: types.DefaultUserServer}, nil
			}
		}
	}
	return types.JID{}, nil
}

func (c *credentials) GetManyLIDsForPNs(ctx context.Context, pns []types.JID) (map[types.JID]types.JID, error) {
	out := make(map[types.JID]types.JID, len(pns))
	for _, pn := range pns {
		lid, err := c.GetLIDForPN(ctx, pn)
		if err != nil {
			return nil, err
		}
		if !lid.IsEmpty() {
			out[pn] = lid
		}
	}
	return out, nil
}

// readRow reads a row that is JSON; nil: there is none.
func readRow[T any](c *credentials, name string) (*T, error) {
	raw := c.get(name)
	if raw == nil {
		return nil, nil
	}
	v := new(T)
	if err := json.Unmarshal(raw, v); err != nil {
		return nil, fmt.Errorf("%w: a row of kind %s cannot be read", errStore, strings.SplitN(name, "/", 2)[0])
	}
	return v, nil
}
