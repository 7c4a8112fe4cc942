package whatsapptest

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"go.mau.fi/libsignal/ecc"
	waBinary "go.mau.fi/whatsmeow/binary"
	"go.mau.fi/whatsmeow/proto/waAdv"
	"go.mau.fi/whatsmeow/types"
	"go.mau.fi/whatsmeow/util/keys"
	"google.golang.org/protobuf/proto"
)

// Scan is what a person does with a phone: it links the client that shows code to a phone number.
func (s *Server) Scan(ctx context.Context, code, phone string) error {
	parts := strings.Split(code, ",")
	if len(parts) != 4 {
		return errors.New("no pairing code")
	}
	identity, err := base64.StdEncoding.DecodeString(parts[2])
	if err != nil {
		return err
	}
	secret, err := base64.StdEncoding.DecodeString(parts[3])
	if err != nil {
		return err
	}
	s.mu.Lock()
	c := s.refs[parts[0]]
	key := s.accounts[phone]
	if key == nil {
		key = keys.NewKeyPair()
		s.accounts[phone] = key
	}
	index := 1
	for jid := range s.devices {
		if jid.User == phone {
			index = max(index, int(jid.Device)+1)
		}
	}
	s.mu.Unlock()
	if c == nil {
		return errors.New("no client shows that code")
	}
	container, err := identityFor(key, identity, secret, uint32(index))
	if err != nil {
		return err
	}
	data := c.payload.GetDevicePairingData()
	d := &device{
		jid:   types.JID{User: phone, Device: uint16(index), Server: types.DefaultUserServer},
		lid:   types.JID{User: "9" + phone, Device: uint16(index), Server: types.HiddenUserServer},
		noise: c.noise, identity: identity, register: data.GetERegid(), all: map[string]*stanza{},
	}
	answer := make(chan error, 1)
	s.mu.Lock()
	c.pairing, c.linking = answer, d
	s.mu.Unlock()
	err = c.send(waBinary.Node{Tag: "iq", Attrs: waBinary.Attrs{"from": types.ServerJID, "type": "set", "id": "pair-2", "xmlns": "md"}, Content: []waBinary.Node{{
		Tag: "pair-success", Content: []waBinary.Node{
			{Tag: "device-identity", Content: container},
			{Tag: "device", Attrs: waBinary.Attrs{"jid": d.jid, "lid": d.lid}},
			{Tag: "platform", Attrs: waBinary.Attrs{"name": "test"}},
		},
	}}})
	if err != nil {
		return err
	}
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// identityFor is the phone's signature under the new device.
func identityFor(phone *keys.KeyPair, identity, secret []byte, index uint32) ([]byte, error) {
	details, err := proto.Marshal(&waAdv.ADVDeviceIdentity{RawID: proto.Uint32(1), KeyIndex: &index})
	if err != nil {
		return nil, err
	}
	sig := ecc.CalculateSignature(ecc.NewDjbECPrivateKey(*phone.Priv), slices.Concat([]byte{6, 0}, details, identity))
	signed, err := proto.Marshal(&waAdv.ADVSignedDeviceIdentity{Details: details, AccountSignatureKey: phone.Pub[:], AccountSignature: sig[:]})
	if err != nil {
		return nil, err
	}
	mac := hmac.New(sha256.New, secret)
	mac.Write(signed)
	return proto.Marshal(&waAdv.ADVSignedDeviceIdentityHMAC{Details: signed, HMAC: mac.Sum(nil)})
}

// confirmed is the client's answer to having been linked.
func (c *conn) confirmed(n *waBinary.Node) {
	s := c.server
	s.mu.Lock()
	answer, d := c.pairing, c.linking
	c.pairing, c.linking = nil, nil
	if answer == nil {
		s.mu.Unlock()
		return
	}
	if t, _ := n.Attrs["type"].(string); t == "error" {
		s.mu.Unlock()
		answer <- errors.New("the client refused to be linked")
		return
	}
	s.devices[d.jid] = d
	s.mu.Unlock()
	_ = c.send(waBinary.Node{Tag: "stream:error", Attrs: waBinary.Attrs{"code": "515"}})
	answer <- nil
}

// query answers an info query.
func (c *conn) query(n *waBinary.Node) {
	id, _ := n.Attrs["id"].(string)
	kind, _ := n.Attrs["type"].(string)
	space, _ := n.Attrs["xmlns"].(string)
	if kind == "result" || kind == "error" {
		if id == "pair-2" {
			c.confirmed(n)
		}
		return
	}
	var content []waBinary.Node
	s := c.server
	s.mu.Lock()
	switch {
	case c.device == nil:
	case space == "encrypt" && kind == "set":
		c.keys(n)
	case space == "encrypt" && n.GetChildByTag("count").Tag == "count":
		content = []waBinary.Node{{Tag: "count", Attrs: waBinary.Attrs{"value": strconv.Itoa(len(c.device.oneTime))}}}
	case space == "encrypt":
		content = []waBinary.Node{s.bundles(n)}
	case space == "usync":
		content = []waBinary.Node{s.users(n)}
	case space == "w:g2":
		content = s.group(n)
	case space == "md":
		c.device.removed = true
	}
	s.mu.Unlock()
	from := n.Attrs["to"]
	if from == nil {
		from = types.ServerJID
	}
	answer := waBinary.Node{Tag: "iq", Attrs: waBinary.Attrs{"id": id, "type": "result", "from": from}, Content: content}
	if space == "w:g2" && content == nil {
		answer.Attrs["type"] = "error"
		answer.Content = []waBinary.Node{{Tag: "error", Attrs: waBinary.Attrs{"code": "404", "text": "item-not-found"}}}
	}
	_ = c.send(answer) // a client that is gone asks again
	if space == "passive" {
		c.deliver()
	}
}

// keys takes a device's public keys. Server.mu is held.
func (c *conn) keys(n *waBinary.Node) {
	c.device.register, _ = n.GetChildByTag("registration").Content.([]byte)
	c.device.signed = n.GetChildByTag("skey")
	list := n.GetChildByTag("list")
	c.device.oneTime = append(c.device.oneTime, list.GetChildren()...)
}

// bundles gives out one one-time key of each device. Server.mu is held.
func (s *Server) bundles(n *waBinary.Node) waBinary.Node {
	var out []waBinary.Node
	request := n.GetChildByTag("key")
	for _, user := range request.GetChildren() {
		jid, _ := user.Attrs["jid"].(types.JID)
		d := s.devices[jid]
		if d == nil || d.signed.Tag == "" {
			out = append(out, waBinary.Node{Tag: "user", Attrs: waBinary.Attrs{"jid": jid}, Content: []waBinary.Node{{Tag: "error", Attrs: waBinary.Attrs{"code": "404", "text": "item-not-found"}}}})
			continue
		}
		content := []waBinary.Node{{Tag: "registration", Content: d.register}, {Tag: "type", Content: []byte{ecc.DjbType}}, {Tag: "identity", Content: d.identity}, d.signed}
		if len(d.oneTime) > 0 {
			content = append(content, d.oneTime[0])
			d.oneTime = d.oneTime[1:]
		}
		out = append(out, waBinary.Node{Tag: "user", Attrs: waBinary.Attrs{"jid": jid}, Content: content})
	}
	return waBinary.Node{Tag: "list", Content: out}
}

// users lists devices. Server.mu is held.
func (s *Server) users(n *waBinary.Node) waBinary.Node {
	var out []waBinary.Node
	list := n.GetChildByTag("usync", "list")
	for _, user := range list.GetChildren() {
		jid, _ := user.Attrs["jid"].(types.JID)
		var devices []waBinary.Node
		for _, d := range s.of(jid.User) {
			devices = append(devices, waBinary.Node{Tag: "device", Attrs: waBinary.Attrs{"id": strconv.Itoa(int(d.jid.Device)), "key-index": "1"}})
		}
		out = append(out, waBinary.Node{Tag: "user", Attrs: waBinary.Attrs{"jid": jid}, Content: []waBinary.Node{{
			Tag: "devices", Content: []waBinary.Node{{Tag: "device-list", Content: devices}},
		}}})
	}
	return waBinary.Node{Tag: "usync", Content: []waBinary.Node{{Tag: "list", Content: out}}}
}

// of returns a phone number's devices. Server.mu is held.
func (s *Server) of(phone string) []*device {
	var out []*device
	for _, d := range s.devices {
		if (d.jid.User == phone || d.lid.User == phone) && !d.removed {
			out = append(out, d)
		}
	}
	slices.SortFunc(out, func(a, b *device) int { return cmp.Compare(a.jid.Device, b.jid.Device) })
	return out
}

// group describes a group; nil: there is none. Server.mu is held.
func (s *Server) group(n *waBinary.Node) []waBinary.Node {
	jid, _ := n.Attrs["to"].(types.JID)
	phones, ok := s.groups[jid.User]
	if !ok {
		return nil
	}
	var members []waBinary.Node
	for _, p := range phones {
		members = append(members, waBinary.Node{Tag: "participant", Attrs: waBinary.Attrs{"jid": types.NewJID(p, types.DefaultUserServer)}})
	}
	return []waBinary.Node{{Tag: "group", Attrs: waBinary.Attrs{"id": jid.User, "subject": "test", "creation": now()}, Content: members}}
}

// relay hands a message to each device that it has a ciphertext for.
func (c *conn) relay(n *waBinary.Node) {
	s := c.server
	id, _ := n.Attrs["id"].(string)
	to, _ := n.Attrs["to"].(types.JID)
	s.mu.Lock()
	if c.device == nil || c.device.conn != c {
		s.mu.Unlock()
		return
	}
	from := c.device.jid
	fault := s.faults[from.User]
	delete(s.faults, from.User)
	code := map[Fault]string{FaultRateLimit: "429", FaultRejected: "403", FaultServer: "500"}[fault]
	s.sent = append(s.sent, Sent{From: from, To: to, ID: id, Taken: code == ""})
	if code == "" {
		s.fanOut(from, to, n)
	}
	s.mu.Unlock()
	ack := waBinary.Node{Tag: "ack", Attrs: waBinary.Attrs{"class": "message", "id": id, "from": to, "t": now()}}
	if code != "" {
		ack.Attrs["error"] = code
	}
	switch fault {
	case FaultLostReply:
		c.cut()
	case FaultSlow:
	case FaultGarbage:
		_ = c.frame([]byte("this is no frame")) // the connection may be gone
	default:
		_ = c.send(ack) // then its outcome is unknown: as there
	}
}

// fanOut queues a message for its devices. Server.mu is held.
func (s *Server) fanOut(from, to types.JID, n *waBinary.Node) {
	var shared []waBinary.Node // what every device gets: a group's ciphertext, the sender's identity
	own := map[types.JID][]waBinary.Node{}
	for _, child := range n.GetChildren() {
		switch child.Tag {
		case "enc":
			shared = append(shared, child)
		case "device-identity":
			shared = append(shared, child)
		case "participants":
			for _, p := range child.GetChildren() {
				jid, _ := p.Attrs["jid"].(types.JID)
				own[jid] = p.GetChildren()
			}
		}
	}
	members := []string{to.User, from.User}
	if to.Server == types.GroupServer {
		members = s.groups[to.User]
	}
	for _, member := range members {
		for _, d := range s.of(member) {
			enc := own[d.jid]
			if enc == nil {
				enc = own[d.lid]
			}
			if p, ok := n.Attrs["participant"].(types.JID); ok && p != d.jid {
				continue // somebody else asked for it again
			}
			if d.jid == from || enc == nil && to.Server != types.GroupServer && to != d.jid {
				continue
			}
			attrs := waBinary.Attrs{"id": n.Attrs["id"], "t": now(), "type": n.Attrs["type"], "from": from, "notify": "person " + from.User}
			if to.Server == types.GroupServer {
				attrs["from"], attrs["participant"] = to, from
			} else if d.jid.User == from.User {
				attrs["recipient"] = to.ToNonAD()
			}
			if e := n.Attrs["edit"]; e != nil {
				attrs["edit"] = e
			}
			// The ciphertexts for one device come before the group's: they bring its key.
			st := &stanza{id: fmt.Sprint(n.Attrs["id"]), node: waBinary.Node{Tag: "message", Attrs: attrs, Content: slices.Concat(enc, shared)}}
			d.waiting = append(d.waiting, st)
			d.all[st.id] = st
			if d.conn != nil && d.conn.active { // what waits comes first
				_ = d.conn.send(st.node) // the next connection gets it
			}
		}
	}
}
