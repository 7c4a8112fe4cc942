package test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/bus/consul"
	"github.com/gatemesh/gatemesh/envelope"
)

// A failover is driven with gateways that are processes of this test binary, as the soak's are. All of them may own one
// duty; what they do is told on their standard output before anything follows from it.
const (
	failoverNodeEnv  = "GATEMESH_FAILOVER_NODE"
	failoverStoreEnv = "GATEMESH_FAILOVER_STORE"
	failoverDuty     = "duty"
)

// failoverLine is a line on a node's standard output.
type failoverLine struct {
	// What: ready; resides; wrote (a write of the owner was accepted, asked for at Begin); handled (a message's effect); doubt (its
	// effect may have been made before); intent, granted, withheld (of a message that waits between its intent and its effect);
	// window (milliseconds that an effect was not covered); error.
	What  string    `json:"what"`
	ID    string    `json:"id,omitempty"`
	Text  string    `json:"text,omitempty"`
	Token uint64    `json:"token,omitempty"`
	MS    float64   `json:"ms,omitempty"`
	Begin time.Time `json:"begin,omitzero"`
	At    time.Time `json:"at"`
}

// failoverOrder is a line on its standard input: send this, go on with the message that waits, or have the duty moved.
type failoverOrder struct {
	ID   string `json:"id,omitempty"`
	Text string `json:"text,omitempty"`
	Go   bool   `json:"go,omitempty"`
	Move string `json:"move,omitempty"`
}

// failoverNode is one of them.
type failoverNode struct {
	b    *bus.Bus
	goOn chan string // ids

	mu  sync.Mutex
	out *bufio.Writer
}

func (n *failoverNode) tell(l failoverLine) {
	l.At = time.Now()
	b, err := json.Marshal(l)
	if err != nil {
		panic(err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	_, _ = n.out.Write(append(b, '\n'))
	_ = n.out.Flush()
}

// Reside writes as the owner for as long as it is one.
func (n *failoverNode) Reside(ctx context.Context, t *bus.Term) error {
	n.tell(failoverLine{What: "resides", Token: t.Token()})
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for i := 0; ; i++ {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		begin := time.Now()
		if err := t.Write(ctx, bus.RoomEntry{Name: "beat", Value: fmt.Appendf(nil, `{"token":%d,"n":%d}`, t.Token(), i)}); err == nil {
			n.tell(failoverLine{What: "wrote", Token: t.Token(), Begin: begin})
		}
	}
}

// Handle makes one effect of each message.
func (n *failoverNode) Handle(ctx context.Context, m *bus.Incoming) error {
	e := m.Envelope()
	p, err := m.Intend(ctx, "post", nil)
	if errors.Is(err, bus.ErrEffectOpen) {
		n.tell(failoverLine{What: "doubt", ID: e.MessageID})
		return m.Settle("post", envelope.EffectUnknown, "")
	}
	if err != nil {
		return err
	}
	if strings.HasPrefix(e.Text(), "hold") {
		n.tell(failoverLine{What: "intent", ID: e.MessageID, Token: m.Term().Token()})
		for waits := true; waits; {
			select {
			case id := <-n.goOn:
				waits = id != e.MessageID // else it is for one that was deposed before it was read
			case <-ctx.Done():
				waits = false
			}
		}
		if err := p.Check(); err != nil {
			n.tell(failoverLine{What: "withheld", ID: e.MessageID, Text: err.Error()})
			return err
		}
		n.tell(failoverLine{What: "granted", ID: e.MessageID})
	}
	if err := p.Check(); err != nil {
		return err
	}
	n.tell(failoverLine{What: "handled", ID: e.MessageID, Token: m.Term().Token()})
	return p.Settle(envelope.EffectConfirmed, "")
}

func (n *failoverNode) observe(ev bus.Event) {
	if ev.Event == bus.EventEffect && ev.WindowMillis > 0 {
		n.tell(failoverLine{What: "window", ID: ev.MessageID, MS: ev.WindowMillis})
	}
}

// runFailoverNode is the whole life of such a process.
func runFailoverNode(name, store string) int {
	n := &failoverNode{out: bufio.NewWriterSize(os.Stdout, 1<<16), goOn: make(chan string, 64)}
	if err := n.run(name, store); err != nil {
		n.tell(failoverLine{What: "error", Text: err.Error()})
		return 1
	}
	return 0
}

func (n *failoverNode) run(name, store string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	s, err := consul.New(consul.Options{Address: store})
	if err != nil {
		return err
	}
	defer s.Close()
	var check string
	for try := 0; ; try++ {
		// Its own server may have started a moment ago.
		if check, err = register(ctx, s, name); err == nil {
			break
		}
		if try == 20 {
			return err
		}
	}
	// The numbers of a gateway that nothing was configured of.
	if n.b, err = bus.New(bus.Config{Gateway: name, Store: s, SessionChecks: []string{check}, TTL: time.Hour, Observe: n.observe}); err != nil {
		return err
	}
	if err := n.b.Serve(bus.AgentSpec{ID: failoverDuty, Spread: true}, n); err != nil {
		return err
	}
	for {
		start, cancel := context.WithTimeout(ctx, 20*time.Second)
		err = n.b.Start(start)
		cancel()
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return err
		}
	}
	n.tell(failoverLine{What: "ready"})
	go n.orders(ctx, stop)
	select {
	case <-ctx.Done():
	case err := <-n.b.Fatal():
		return err
	}
	end, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return n.b.Stop(end)
}

// register gives the node a service with a check, as a gateway's.
func register(ctx context.Context, s *consul.Store, name string) (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	go func() {
		srv := &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}), ReadHeaderTimeout: time.Second}
		_ = srv.Serve(l)
	}()
	return s.RegisterService(ctx, bus.Service{ID: "failover-" + name, Name: "failover", HealthURL: "http://" + l.Addr().String() + "/health", Interval: time.Second})
}

func (n *failoverNode) orders(ctx context.Context, stop func()) {
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		var o failoverOrder
		if json.Unmarshal(in.Bytes(), &o) != nil {
			continue
		}
		if o.Go {
			n.goOn <- o.ID
			continue
		}
		if o.Move != "" {
			go n.move(ctx, o.Move)
			continue
		}
		go n.send(ctx, o)
	}
	stop() // the test is gone
}

func (n *failoverNode) move(ctx context.Context, to string) {
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		_, err := n.b.Transfer(ctx, failoverDuty, bus.TransferOptions{To: to, By: "test"})
		if err == nil {
			return
		}
		if !errors.Is(err, bus.ErrCannotOwn) { // one that was stopped needs a moment to be there again
			n.tell(failoverLine{What: "error", Text: err.Error()})
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			n.tell(failoverLine{What: "error", Text: err.Error()})
			return
		}
	}
}

// send sends until it is known that the message was accepted.
func (n *failoverNode) send(ctx context.Context, o failoverOrder) {
	for ctx.Err() == nil {
		try, cancel := context.WithTimeout(ctx, 5*time.Second)
		_, err := n.b.Send(try, bus.Outgoing{ID: o.ID, To: envelope.Address{Agent: failoverDuty}, From: "user", Payload: envelope.TextPayload(o.Text)})
		cancel()
		if err == nil {
			n.tell(failoverLine{What: "accepted", ID: o.ID})
			return
		}
	}
}
