package whatsapp

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"fmt"

	"go.mau.fi/whatsmeow/proto/waAdv"
	"go.mau.fi/whatsmeow/store"
	"go.mau.fi/whatsmeow/types"
	"go.mau.fi/whatsmeow/util/keys"
	"google.golang.org/protobuf/proto"
)

const rowDevice = "device"

// deviceRow is the account itself, as it is stored.
type deviceRow struct {
	JID            types.JID `json:"jid"`
	LID            types.JID `json:"lid"`
	RegistrationID uint32    `json:"registration_id"`
	NoiseKey       []byte    `json:"noise_key"`
	IdentityKey    []byte    `json:"identity_key"`
	SignedPreKey   []byte    `json:"signed_pre_key"`
	SignedPreKeyID uint32    `json:"signed_pre_key_id"`
	Signature      []byte    `json:"signed_pre_key_signature"`
	AdvSecretKey   []byte    `json:"adv_secret_key"`
	Account        []byte    `json:"account"`
	Platform       string    `json:"platform,omitempty"`
	BusinessName   string    `json:"business_name,omitempty"`
	PushName       string    `json:"push_name,omitempty"`
	LIDMigration   int64     `json:"lid_migration,omitempty"`
}

// newDevice makes the keys of an account that is not linked yet. Nothing is stored until it is.
func (c *credentials) newDevice() (*store.Device, error) {
	var random [4 + 32]byte
	if _, err := rand.Read(random[:]); err != nil {
		return nil, err
	}
	d := &store.Device{
		NoiseKey:       keys.NewKeyPair(),
		IdentityKey:    keys.NewKeyPair(),
		RegistrationID: binary.BigEndian.Uint32(random[:]),
		AdvSecretKey:   random[4:],
	}
	d.SignedPreKey = d.IdentityKey.CreateSignedPreKey(1)
	c.attach(d)
	return d, nil
}

// device returns the linked account; nil: there is none.
func (c *credentials) device() (*store.Device, error) {
	raw := c.get(rowDevice)
	if raw == nil {
		return nil, nil
	}
	var r deviceRow
	if err := json.Unmarshal(raw, &r); err != nil || len(r.NoiseKey) != 32 || len(r.IdentityKey) != 32 || len(r.SignedPreKey) != 32 || len(r.Signature) != 64 {
		return nil, fmt.Errorf("%w: the stored device cannot be read: unlink it on the phone, then \"gatemesh channels logout\" and \"gatemesh channels pair\"", errStore)
	}
	d := &store.Device{
		NoiseKey:              keys.NewKeyPairFromPrivateKey([32]byte(r.NoiseKey)),
		IdentityKey:           keys.NewKeyPairFromPrivateKey([32]byte(r.IdentityKey)),
		SignedPreKey:          &keys.PreKey{KeyPair: *keys.NewKeyPairFromPrivateKey([32]byte(r.SignedPreKey)), KeyID: r.SignedPreKeyID, Signature: (*[64]byte)(r.Signature)},
		RegistrationID:        r.RegistrationID,
		AdvSecretKey:          r.AdvSecretKey,
		ID:                    &r.JID,
		LID:                   r.LID,
		Account:               &waAdv.ADVSignedDeviceIdentity{},
		Platform:              r.Platform,
		BusinessName:          r.BusinessName,
		PushName:              r.PushName,
		LIDMigrationTimestamp: r.LIDMigration,
	}
	if err := proto.Unmarshal(r.Account, d.Account); err != nil {
		return nil, fmt.Errorf("%w: the stored device's identity cannot be read", errStore)
	}
	c.attach(d)
	return d, nil
}

func (c *credentials) attach(d *store.Device) {
	d.Initialized = true
	d.Identities, d.Sessions, d.PreKeys, d.SenderKeys = c, c, c, c
	d.AppStateKeys, d.AppState, d.Contacts, d.ChatSettings = c, c, c, c
	d.MsgSecrets, d.PrivacyTokens, d.EventBuffer, d.LIDs, d.Container = c, c, c, c, c
}

// PutDevice is written before the pairing is confirmed: the confirmation is the next to leave.
func (c *credentials) PutDevice(_ context.Context, d *store.Device) error {
	account, err := proto.Marshal(d.Account)
	if err != nil {
		return err
	}
	raw, err := json.Marshal(deviceRow{
		JID: d.GetJID(), LID: d.LID, RegistrationID: d.RegistrationID,
		NoiseKey: d.NoiseKey.Priv[:], IdentityKey: d.IdentityKey.Priv[:],
		SignedPreKey: d.SignedPreKey.Priv[:], SignedPreKeyID: d.SignedPreKey.KeyID, Signature: d.SignedPreKey.Signature[:],
		AdvSecretKey: d.AdvSecretKey, Account: account,
		Platform: d.Platform, BusinessName: d.BusinessName, PushName: d.PushName, LIDMigration: d.LIDMigrationTimestamp,
	})
	if err != nil {
		return err
	}
	c.put(rowDevice, raw)
	return nil
}

// DeleteDevice writes at once: nothing leaves after it.
func (c *credentials) DeleteDevice(ctx context.Context, _ *store.Device) error { return c.wipe(ctx) }
