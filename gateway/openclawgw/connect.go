package openclawgw

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/coder/websocket"

	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/gateway"
)

// firstMethod is what a client must ask first.
const firstMethod = "connect"

// deviceSkew is how far a device's clock may be from ours.
const deviceSkew = 10 * time.Minute

type connectParams struct {
	MinProtocol int `json:"minProtocol"`
	MaxProtocol int `json:"maxProtocol"`
	Client      struct {
		ID           string `json:"id"`
		Version      string `json:"version"`
		Platform     string `json:"platform"`
		Mode         string `json:"mode"`
		DeviceFamily string `json:"deviceFamily"`
	} `json:"client"`
	Role   string        `json:"role"`
	Scopes []string      `json:"scopes"`
	Device *deviceParams `json:"device"`
	Auth   struct {
		Token       string `json:"token"`
		DeviceToken string `json:"deviceToken"`
		Password    string `json:"password"`
	} `json:"auth"`
}

type deviceParams struct {
	ID        string `json:"id"`
	PublicKey string `json:"publicKey"`
	Signature string `json:"signature"`
	SignedAt  int64  `json:"signedAt"`
	Nonce     string `json:"nonce"`
}

// connect asks who the client is and says hello. False: it was refused, or went.
func (c *connection) connect() bool {
	nonce := envelope.NewID()
	c.conn.SetReadLimit(firstFrame)
	c.event("connect.challenge", map[string]any{"nonce": nonce, "ts": time.Now().UnixMilli()})
	ctx, cancel := context.WithTimeout(c.ctx, connectTime)
	defer cancel()
	r, err := c.read(ctx)
	if err != nil {
		return false
	}
	hello, err := c.hello(r, nonce)
	if err != nil {
		c.fail(r.ID, err)
		_ = c.conn.Close(websocket.StatusPolicyViolation, "connect failed")
		return false
	}
	c.answer(r.ID, hello)
	return true
}

func (c *connection) hello(r request, nonce string) (any, error) {
	if r.Method != firstMethod {
		return nil, invalid("invalid handshake: first request must be connect")
	}
	var p connectParams
	if err := params(r, &p); err != nil {
		return nil, err
	}
	if p.MinProtocol > Protocol || p.MaxProtocol < Protocol {
		return nil, &wireError{Code: codeInvalid, Message: "protocol mismatch", Details: map[string]any{"code": "PROTOCOL_MISMATCH", "expectedProtocol": Protocol}}
	}
	if p.Role != "" && p.Role != "operator" {
		return nil, invalid("role %q is not served here: connect as operator", clip(p.Role))
	}
	if err := p.checkDevice(nonce, time.Now()); err != nil {
		return nil, err
	}
	token := p.Auth.Token
	if token == "" {
		token = p.Auth.Password
	}
	as := c.request.Clone(c.ctx)
	as.Header = http.Header{}
	if token != "" {
		as.Header.Set("Authorization", "Bearer "+token)
	}
	c.call = gateway.CallAs(c.api, as)
	var st gateway.StatusResponse
	if err := c.get("/v1/status", &st); err != nil {
		c.call = nil
		return nil, unauthorized(err, token != "")
	}
	c.caller = st.Caller
	return c.helloOK(st, p.Scopes)
}

// unauthorized is a refused token in the words that OpenClaw's clients explain to their users.
func unauthorized(err error, given bool) error {
	var r *refusal
	if !errors.As(err, &r) || r.status != http.StatusUnauthorized {
		return err
	}
	w := &wireError{Code: codeInvalid, Message: "unauthorized: gateway token missing (set gateway.remote.token, or OPENCLAW_GATEWAY_TOKEN)", Details: map[string]any{"code": "AUTH_TOKEN_MISSING"}}
	if given {
		w.Message, w.Details = "unauthorized: gateway token mismatch: "+r.api.Message, map[string]any{"code": "AUTH_TOKEN_MISMATCH"}
	}
	return w
}

// checkDevice refuses a device that is not who it says. One that says nothing is no device.
func (p *connectParams) checkDevice(nonce string, now time.Time) error {
	d := p.Device
	if d == nil {
		return nil
	}
	wrong := func(code, message string) error {
		return &wireError{Code: codeInvalid, Message: message, Details: map[string]any{"code": code}}
	}
	key, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(d.PublicKey, "="))
	if err != nil || len(key) != ed25519.PublicKeySize {
		return wrong("DEVICE_AUTH_PUBLIC_KEY_INVALID", "device public key invalid")
	}
	if sum := sha256.Sum256(key); d.ID != hex.EncodeToString(sum[:]) {
		return wrong("DEVICE_AUTH_DEVICE_ID_MISMATCH", "device identity mismatch")
	}
	if at := time.UnixMilli(d.SignedAt); at.Before(now.Add(-deviceSkew)) || at.After(now.Add(deviceSkew)) {
		return wrong("DEVICE_AUTH_SIGNATURE_EXPIRED", "device signature expired: look at the clocks")
	}
	if d.Nonce != nonce {
		return wrong("DEVICE_AUTH_NONCE_MISMATCH", "device nonce mismatch")
	}
	sig, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(d.Signature, "="))
	if err != nil || !ed25519.Verify(key, []byte(p.signedText()), sig) {
		return wrong("DEVICE_AUTH_SIGNATURE_INVALID", "device signature invalid")
	}
	return nil
}

// signedText is what a device signs (OpenClaw's version 3).
func (p *connectParams) signedText() string {
	token := p.Auth.Token
	if token == "" {
		token = p.Auth.DeviceToken
	}
	lower := func(s string) string { return strings.ToLower(strings.TrimSpace(s)) }
	return strings.Join([]string{
		"v3", p.Device.ID, p.Client.ID, p.Client.Mode, p.Role, strings.Join(p.Scopes, ","), strconv.FormatInt(p.Device.SignedAt, 10), token, p.Device.Nonce,
		lower(p.Client.Platform), lower(p.Client.DeviceFamily),
	}, "|")
}

// helloOK is the answer to who may come in.
func (c *connection) helloOK(st gateway.StatusResponse, asked []string) (any, error) {
	health, err := c.health()
	if err != nil {
		return nil, err
	}
	scopes := []string{}
	for _, s := range asked { // what is really allowed the token's role says, at each request
		if s == "operator.read" || s == "operator.write" && st.Role != "read" || s == "operator.admin" && st.Role == "operate" {
			scopes = append(scopes, s)
		}
	}
	return map[string]any{
		"type": "hello-ok", "protocol": Protocol,
		"server":   map[string]any{"version": c.version, "bootId": c.boot, "connId": c.id},
		"features": map[string]any{"methods": methodNames(), "events": []string{"connect.challenge", "agent", "chat", "tick"}, "capabilities": []string{}},
		"snapshot": map[string]any{
			"presence":     []any{map[string]any{"host": st.Gateway, "version": c.version, "mode": "gateway", "reason": "self", "text": "Gateway: " + st.Gateway, "ts": time.Now().UnixMilli()}},
			"health":       health,
			"stateVersion": map[string]any{"presence": 1, "health": 1},
			"uptimeMs":     time.Since(c.began).Milliseconds(),
			"sessionDefaults": map[string]any{
				"defaultAgentId": st.DefaultAgent, "mainKey": mainKey, "mainSessionKey": sessionKey(st.DefaultAgent, mainKey), "scope": "per-sender",
			},
			"authMode": "token",
		},
		"auth":   map[string]any{"method": "token", "role": "operator", "scopes": scopes},
		"policy": map[string]any{"maxPayload": maxFrame, "maxBufferedBytes": 2 * maxFrame, "tickIntervalMs": tickEvery.Milliseconds()},
	}, nil
}
