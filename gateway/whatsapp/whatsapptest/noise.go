package whatsapptest

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"go.mau.fi/libsignal/ecc"
	"go.mau.fi/whatsmeow/proto/waCert"
	"go.mau.fi/whatsmeow/proto/waWa6"
	"go.mau.fi/whatsmeow/socket"
	"go.mau.fi/whatsmeow/util/keys"
	"golang.org/x/crypto/curve25519"
	"google.golang.org/protobuf/proto"
)

// handshake is the server's half of Noise_XX_25519_AESGCM_SHA256.
type handshake struct {
	hash, salt []byte
	key        cipher.AEAD
	counter    uint32
}

func gcm(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

func nonce(n uint32) []byte { return binary.BigEndian.AppendUint32(make([]byte, 8, 12), n) }

func (h *handshake) authenticate(data []byte) {
	sum := sha256.Sum256(append(h.hash[:len(h.hash):len(h.hash)], data...))
	h.hash = sum[:]
}

func (h *handshake) expand(secret []byte) (a, b []byte, err error) {
	out, err := hkdf.Key(sha256.New, secret, h.salt, "", 64)
	if err != nil {
		return nil, nil, err
	}
	return out[:32], out[32:], nil
}

func (h *handshake) mix(priv *[32]byte, pub []byte) error {
	secret, err := curve25519.X25519(priv[:], pub)
	if err != nil {
		return err
	}
	var key []byte
	if h.salt, key, err = h.expand(secret); err != nil {
		return err
	}
	h.counter = 0
	h.key, err = gcm(key)
	return err
}

func (h *handshake) seal(plain []byte) []byte {
	out := h.key.Seal(nil, nonce(h.counter), plain, h.hash)
	h.counter++
	h.authenticate(out)
	return out
}

func (h *handshake) open(sealed []byte) ([]byte, error) {
	out, err := h.key.Open(nil, nonce(h.counter), sealed, h.hash)
	h.counter++
	h.authenticate(sealed)
	return out, err
}

// accept shakes hands with a client: it returns its static key, what it says about itself, and the keys to read and to write with.
func (s *Server) accept(header, first []byte, send func([]byte) error, next func() ([]byte, error)) (static []byte, payload *waWa6.ClientPayload, read, write cipher.AEAD, err error) {
	fail := func(err error) ([]byte, *waWa6.ClientPayload, cipher.AEAD, cipher.AEAD, error) {
		return nil, nil, nil, nil, fmt.Errorf("handshake: %w", err)
	}
	var hello, finish waWa6.HandshakeMessage
	if err := proto.Unmarshal(first, &hello); err != nil {
		return fail(err)
	}
	theirs := hello.GetClientHello().GetEphemeral()
	if len(theirs) != 32 {
		return fail(errors.New("no ephemeral key"))
	}
	h := &handshake{hash: []byte(socket.NoiseStartPattern), salt: []byte(socket.NoiseStartPattern)}
	if h.key, err = gcm(h.hash); err != nil {
		return fail(err)
	}
	h.authenticate(header)
	h.authenticate(theirs)
	ours := keys.NewKeyPair()
	h.authenticate(ours.Pub[:])
	if err := h.mix(ours.Priv, theirs); err != nil {
		return fail(err)
	}
	sealedStatic := h.seal(s.static.Pub[:])
	if err := h.mix(s.static.Priv, theirs); err != nil {
		return fail(err)
	}
	answer, err := proto.Marshal(&waWa6.HandshakeMessage{ServerHello: &waWa6.HandshakeMessage_ServerHello{
		Ephemeral: ours.Pub[:], Static: sealedStatic, Payload: h.seal(s.cert),
	}})
	if err != nil {
		return fail(err)
	}
	if err := send(answer); err != nil {
		return fail(err)
	}
	last, err := next()
	if err != nil {
		return fail(err)
	}
	if err := proto.Unmarshal(last, &finish); err != nil {
		return fail(err)
	}
	if static, err = h.open(finish.GetClientFinish().GetStatic()); err != nil {
		return fail(err)
	}
	if err := h.mix(ours.Priv, static); err != nil {
		return fail(err)
	}
	raw, err := h.open(finish.GetClientFinish().GetPayload())
	if err != nil {
		return fail(err)
	}
	payload = &waWa6.ClientPayload{}
	if err := proto.Unmarshal(raw, payload); err != nil {
		return fail(err)
	}
	a, b, err := h.expand(nil)
	if err != nil {
		return fail(err)
	}
	if read, err = gcm(a); err != nil {
		return fail(err)
	}
	if write, err = gcm(b); err != nil {
		return fail(err)
	}
	return static, payload, read, write, nil
}

// certificate makes the chain that the client checks with the root's public key.
func certificate(root, static *keys.KeyPair) ([]byte, error) {
	sign := func(by, key *keys.KeyPair, serial, issuer uint32) (*waCert.CertChain_NoiseCertificate, error) {
		details, err := proto.Marshal(&waCert.CertChain_NoiseCertificate_Details{Serial: &serial, IssuerSerial: &issuer, Key: key.Pub[:]})
		if err != nil {
			return nil, err
		}
		sig := ecc.CalculateSignature(ecc.NewDjbECPrivateKey(*by.Priv), details)
		return &waCert.CertChain_NoiseCertificate{Details: details, Signature: sig[:]}, nil
	}
	between := keys.NewKeyPair()
	intermediate, err := sign(root, between, 1, 0)
	if err != nil {
		return nil, err
	}
	leaf, err := sign(between, static, 2, 1)
	if err != nil {
		return nil, err
	}
	return proto.Marshal(&waCert.CertChain{Leaf: leaf, Intermediate: intermediate})
}
