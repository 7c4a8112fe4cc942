package whatsapptest

import (
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/coder/websocket"
	waBinary "go.mau.fi/whatsmeow/binary"
	"go.mau.fi/whatsmeow/proto/waWa6"
	"go.mau.fi/whatsmeow/types"
)

// conn is one client's connection.
type conn struct {
	server   *Server
	ws       *websocket.Conn
	buffered []byte
	read     cipher.AEAD
	reads    uint32

	mu     sync.Mutex // guards what follows: writing
	write  cipher.AEAD
	writes uint32

	device  *device // nil until it logs in; guarded by Server.mu
	active  bool    // it was given what waited, and hears of what comes; guarded by Server.mu
	payload *waWa6.ClientPayload
	noise   []byte
	pairing chan error // answered when the client confirms
	linking *device
}

const headerSize = 4

// next reads a frame.
func (c *conn) next() ([]byte, error) {
	for len(c.buffered) < 3 || len(c.buffered) < 3+size(c.buffered) {
		_, data, err := c.ws.Read(c.server.ctx)
		if err != nil {
			return nil, err
		}
		c.buffered = append(c.buffered, data...)
	}
	n := size(c.buffered)
	frame := c.buffered[3 : 3+n]
	c.buffered = c.buffered[3+n:]
	return frame, nil
}

func size(b []byte) int { return int(b[0])<<16 | int(b[1])<<8 | int(b[2]) }

// frame writes a frame as it is.
func (c *conn) frame(data []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.raw(data)
}

func (c *conn) raw(data []byte) error {
	out := binary.BigEndian.AppendUint32(nil, uint32(len(data)))[1:]
	return c.ws.Write(c.server.ctx, websocket.MessageBinary, append(out, data...))
}

// send writes a node.
func (c *conn) send(n waBinary.Node) error {
	data, err := waBinary.Marshal(n)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.write == nil {
		return errors.New("no handshake yet")
	}
	sealed := c.write.Seal(nil, nonce(c.writes), data, nil)
	c.writes++
	return c.raw(sealed)
}

func (c *conn) cut() { _ = c.ws.CloseNow() } // it is over either way

func (c *conn) leave() {
	c.cut()
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	delete(c.server.conns, c)
	if c.device != nil && c.device.conn == c {
		c.device.conn = nil
	}
}

// talk serves a connection until it ends.
func (c *conn) talk() {
	_, data, err := c.ws.Read(c.server.ctx)
	if err != nil || len(data) < headerSize {
		return
	}
	c.buffered = data[headerSize:]
	first, err := c.next()
	if err != nil {
		return
	}
	if c.server.muted() {
		c.server.wait(1)
		_, _ = c.next() // until the client has enough of it
		c.server.wait(-1)
		return
	}
	var write cipher.AEAD
	if c.noise, c.payload, c.read, write, err = c.server.accept(data[:headerSize], first, c.frame, c.next); err != nil {
		return
	}
	c.mu.Lock()
	c.write = write
	c.mu.Unlock()
	if c.payload.GetDevicePairingData() != nil {
		c.offer()
	} else if !c.login() {
		return
	}
	for {
		frame, err := c.next()
		if err != nil {
			return
		}
		plain, err := c.read.Open(nil, nonce(c.reads), frame, nil)
		c.reads++
		if err != nil {
			return
		}
		if plain, err = waBinary.Unpack(plain); err != nil {
			return
		}
		node, err := waBinary.Unmarshal(plain)
		if err != nil {
			return
		}
		c.handle(node)
	}
}

// offer shows the codes with which the client can be linked.
func (c *conn) offer() {
	var refs []waBinary.Node
	c.server.mu.Lock()
	c.server.conns[c] = true
	for range 6 {
		var r [16]byte
		_, _ = rand.Read(r[:]) // never fails
		ref := "2@" + hex.EncodeToString(r[:])
		c.server.refs[ref] = c
		refs = append(refs, waBinary.Node{Tag: "ref", Content: []byte(ref)})
	}
	c.server.mu.Unlock()
	_ = c.send(waBinary.Node{Tag: "iq", Attrs: waBinary.Attrs{"from": types.ServerJID, "type": "set", "id": "pair-1", "xmlns": "md"},
		Content: []waBinary.Node{{Tag: "pair-device", Content: refs}}})
}

// login lets a linked device in, and throws out the connection that it had: the newest wins.
func (c *conn) login() bool {
	s := c.server
	jid := types.JID{User: strconv.FormatUint(c.payload.GetUsername(), 10), Device: uint16(c.payload.GetDevice()), Server: types.DefaultUserServer}
	s.mu.Lock()
	d := s.devices[jid]
	if d == nil || d.removed || !slices.Equal(d.noise, c.noise) {
		s.mu.Unlock()
		_ = c.send(waBinary.Node{Tag: "failure", Attrs: waBinary.Attrs{"reason": "401", "location": "test"}})
		return false
	}
	old := d.conn
	d.conn, c.device = c, d
	s.conns[c] = true
	s.connects[jid.User]++
	s.mu.Unlock()
	if old != nil {
		_ = old.send(waBinary.Node{Tag: "stream:error", Attrs: waBinary.Attrs{"code": "409"}, Content: []waBinary.Node{{Tag: "conflict", Attrs: waBinary.Attrs{"type": "replaced"}}}})
		old.cut()
	}
	return c.send(waBinary.Node{Tag: "success", Attrs: waBinary.Attrs{"t": now(), "lid": d.lid, "location": "test"}}) == nil
}

func now() string { return strconv.FormatInt(time.Now().Unix(), 10) }

// handle answers a node.
func (c *conn) handle(n *waBinary.Node) {
	switch n.Tag {
	case "iq":
		c.query(n)
	case "message":
		c.relay(n)
	case "receipt":
		c.receipt(n)
	}
}

// deliver sends what waits for the device, in order.
func (c *conn) deliver() {
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	if c.device == nil || c.device.conn != c {
		return
	}
	c.active = true
	for _, st := range c.device.waiting {
		_ = c.send(st.node) // the next connection gets it
	}
	_ = c.send(waBinary.Node{Tag: "ib", Attrs: waBinary.Attrs{"from": types.ServerJID}, Content: []waBinary.Node{{Tag: "offline", Attrs: waBinary.Attrs{"count": strconv.Itoa(len(c.device.waiting))}}}})
}

// receipt takes a message out of the queue; one that asks for the message again goes to who sent it.
func (c *conn) receipt(n *waBinary.Node) {
	id, _ := n.Attrs["id"].(string)
	kind, _ := n.Attrs["type"].(string)
	s := c.server
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.device == nil {
		return
	}
	if kind == "retry" {
		s.askAgain(c.device, n)
		return
	}
	if st := c.device.all[id]; st != nil {
		st.acked = true
	}
	c.device.waiting = slices.DeleteFunc(c.device.waiting, func(st *stanza) bool { return st.id == id })
}

// askAgain hands a retry receipt on. Server.mu is held.
func (s *Server) askAgain(from *device, n *waBinary.Node) {
	to, _ := n.Attrs["to"].(types.JID)
	attrs := waBinary.Attrs{"id": n.Attrs["id"], "type": "retry", "from": from.jid, "t": now()}
	if p, ok := n.Attrs["participant"].(types.JID); ok {
		attrs["from"], attrs["participant"], to = to, from.jid, p
	}
	if d := s.devices[to]; d != nil && d.conn != nil {
		_ = d.conn.send(waBinary.Node{Tag: "receipt", Attrs: attrs, Content: n.Content}) // a lost request is a lost message: as there
	}
}
