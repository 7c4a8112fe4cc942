// Package whatsapptest is a fake of WhatsApp's server, for tests: it speaks the multi-device protocol (Noise handshake, linking by
// code, one-time keys, relayed ciphertexts) with the real client library, and misbehaves on demand. It cannot read a message,
// as the real one cannot. Nothing but tests imports it.
//
// A gateway of another process is led here by the settings endpoint ([Server.Endpoint]) and certKey ([Server.CertKey]), with
// GATEMESH_TEST_VENDORS=1 in its environment.
package whatsapptest

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/coder/websocket"
	waBinary "go.mau.fi/whatsmeow/binary"
	"go.mau.fi/whatsmeow/types"
	"go.mau.fi/whatsmeow/util/keys"
)

// Fault is a way to misbehave with the next message of an account.
type Fault string

// The faults.
const (
	FaultRateLimit Fault = "rate limit" // refused with 429
	FaultRejected  Fault = "rejected"   // refused with 403
	FaultServer    Fault = "server"     // refused with 500
	FaultLostReply Fault = "lost reply" // taken, then the connection is cut
	FaultGarbage   Fault = "garbage"    // taken, and answered by what nobody can read
	FaultSlow      Fault = "slow"       // taken, and never answered
)

// Server is the fake. Its methods are for any goroutine.
type Server struct {
	http         *http.Server
	listener     net.Listener
	root, static *keys.KeyPair
	cert         []byte
	ctx          context.Context
	stop         context.CancelFunc
	running      sync.WaitGroup

	mu       sync.Mutex
	refs     map[string]*conn         // those that wait to be linked, by the code's first part
	accounts map[string]*keys.KeyPair // by phone number: what the phone signs with
	devices  map[types.JID]*device    // by id
	groups   map[string][]string      // phone numbers, by the group's id
	conns    map[*conn]bool
	connects map[string]int // by phone number
	faults   map[string]Fault
	mute     bool
	waiting  int
	sent     []Sent
}

// Sent is a message that reached the server.
type Sent struct {
	From types.JID
	To   types.JID
	ID   string
	// Taken says that the server took it.
	Taken bool
}

// device is a linked client.
type device struct {
	jid, lid types.JID
	noise    []byte
	identity []byte
	register []byte
	signed   waBinary.Node
	oneTime  []waBinary.Node
	removed  bool
	conn     *conn
	waiting  []*stanza          // not acknowledged, in order
	all      map[string]*stanza // by message id
}

// stanza is a message for one device.
type stanza struct {
	id    string
	node  waBinary.Node
	acked bool
}

// Start serves on addr; "127.0.0.1:0" takes a free port. Close ends it.
func Start(addr string) (*Server, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	s := &Server{
		listener: l, root: keys.NewKeyPair(), static: keys.NewKeyPair(),
		refs: map[string]*conn{}, accounts: map[string]*keys.KeyPair{}, devices: map[types.JID]*device{}, groups: map[string][]string{},
		conns: map[*conn]bool{}, connects: map[string]int{}, faults: map[string]Fault{},
	}
	if s.cert, err = certificate(s.root, s.static); err != nil {
		return nil, err
	}
	s.ctx, s.stop = context.WithCancel(context.Background())
	s.http = &http.Server{Handler: http.HandlerFunc(s.serve), ReadHeaderTimeout: 10 * time.Second}
	s.running.Go(func() { _ = s.http.Serve(l) }) // ends with Close
	return s, nil
}

// Close ends the server and all connections.
func (s *Server) Close() {
	s.stop()
	_ = s.http.Close() // its listener is ours
	s.Drop()
	s.running.Wait()
}

// Endpoint is the setting endpoint of an account.
func (s *Server) Endpoint() string { return "http://" + s.listener.Addr().String() + "/ws/chat" }

// CertKey is the setting certKey of an account.
func (s *Server) CertKey() string { return base64.StdEncoding.EncodeToString(s.root.Pub[:]) }

// Settings is an account's block of the configuration.
func (s *Server) Settings() json.RawMessage {
	return json.RawMessage(fmt.Sprintf(`{"endpoint":%q,"certKey":%q}`, s.Endpoint(), s.CertKey()))
}

// Group makes a group of phone numbers and returns its id.
func (s *Server) Group(id string, phones ...string) types.JID {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.groups[id] = phones
	return types.NewJID(id, types.GroupServer)
}

// Misbehave applies a fault to the next message of a phone number.
func (s *Server) Misbehave(phone string, f Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults[phone] = f
}

// Mute lets every new connection wait for the server's half of the handshake.
func (s *Server) Mute(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mute = on
}

// Waiting counts the connections that wait for a muted server.
func (s *Server) Waiting() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.waiting
}

func (s *Server) wait(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiting += n
}

func (s *Server) muted() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mute
}

// Sent returns the messages that reached the server from a phone number.
func (s *Server) Sent(phone string) []Sent {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Sent
	for _, m := range s.sent {
		if m.From.User == phone {
			out = append(out, m)
		}
	}
	return out
}

// Connections counts a phone number's open connections; Connects all that ever logged in.
func (s *Server) Connections(phone string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		if c.device != nil && c.device.jid.User == phone {
			n++
		}
	}
	return n
}

// Connects counts the logins of a phone number.
func (s *Server) Connects(phone string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.connects[phone]
}

// Acknowledged says whether a phone number's device has said that it received a message.
func (s *Server) Acknowledged(phone, message string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.devices {
		if st := d.all[message]; d.jid.User == phone && st != nil {
			return st.acked
		}
	}
	return false
}

// Redeliver delivers a message to a phone number's device once more.
func (s *Server) Redeliver(phone, message string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.devices {
		if st := d.all[message]; d.jid.User == phone && st != nil && d.conn != nil {
			_ = d.conn.send(st.node) // an old connection: then it is as if it were lost
		}
	}
}

// Drop cuts connections: those of the phone numbers, or all.
func (s *Server) Drop(phones ...string) {
	for _, c := range s.open(phones...) {
		c.cut()
	}
}

// Garbage says something on the connections that is not the protocol.
func (s *Server) Garbage(phones ...string) {
	for _, c := range s.open(phones...) {
		_ = c.frame([]byte("this is no frame")) // the connection may be gone
	}
}

// StreamError ends connections with a code, as the real server does when it restarts (503) or wants a new login (515).
func (s *Server) StreamError(code string, phones ...string) {
	for _, c := range s.open(phones...) {
		_ = c.send(waBinary.Node{Tag: "stream:error", Attrs: waBinary.Attrs{"code": code}})
		c.cut()
	}
}

// Remove unlinks a phone number's devices, as its owner does on the phone.
func (s *Server) Remove(phone string) {
	s.mu.Lock()
	for _, d := range s.devices {
		if d.jid.User == phone {
			d.removed = true
		}
	}
	s.mu.Unlock()
	for _, c := range s.open(phone) {
		_ = c.send(waBinary.Node{Tag: "stream:error", Attrs: waBinary.Attrs{"code": "401"}, Content: []waBinary.Node{{Tag: "conflict", Attrs: waBinary.Attrs{"type": "device_removed"}}}})
		c.cut()
	}
}

func (s *Server) open(phones ...string) []*conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*conn
	for c := range s.conns {
		match := len(phones) == 0
		for _, p := range phones {
			match = match || c.device != nil && c.device.jid.User == p
		}
		if match {
			out = append(out, c)
		}
	}
	return out
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	if s.ctx.Err() != nil {
		http.Error(w, "closing", http.StatusServiceUnavailable)
		return
	}
	s.running.Add(1)
	defer s.running.Done()
	ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true}) // the client names WhatsApp as its origin
	if err != nil {
		return
	}
	ws.SetReadLimit(1 << 24)
	c := &conn{server: s, ws: ws}
	defer c.leave()
	c.talk()
}
