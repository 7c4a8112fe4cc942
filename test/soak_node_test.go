package test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/bus/consul"
	"github.com/gatemesh/gatemesh/envelope"
)

// The soak runs gateways as processes of this test binary, so that they can be killed. What they do is told on
// their standard output, line by line, each written before what follows from it: that pipe outlives
// the process, and is the outside from which everything is counted.
const (
	soakNodeEnv  = "GATEMESH_SOAK_NODE"
	soakStoreEnv = "GATEMESH_SOAK_STORE"
	soakClockEnv = "GATEMESH_SOAK_CLOCK" // what its clock is wrong by
)

// soakAgents may each run on every node; node i goes first for agent i.
const soakAgents = 3

func soakAgent(i int) string { return fmt.Sprintf("agent-%d", i%soakAgents) }

// soakOrder is a line on a node's standard input: send this.
type soakOrder struct {
	ID   string `json:"id"`
	To   string `json:"to"`
	Text string `json:"text"`
	Conv string `json:"conv,omitempty"`
	Big  int    `json:"big,omitempty"`
}

// soakLine is a line on its standard output.
type soakLine struct {
	// What: accepted, refused, unknown (of a send); effect; acked, dead, replied (learned by the sender);
	// ready, error.
	What    string    `json:"what"`
	ID      string    `json:"id,omitempty"`
	Conv    string    `json:"conv,omitempty"`
	Text    string    `json:"text,omitempty"`
	Attempt int       `json:"attempt,omitempty"`
	Class   string    `json:"class,omitempty"`
	At      time.Time `json:"at"`
}

// soakNode is the whole life of such a process.
func soakNode(name, store string) int {
	out := bufio.NewWriterSize(os.Stdout, 1<<16)
	var mu sync.Mutex
	tell := func(l soakLine) {
		l.At = time.Now()
		b, err := json.Marshal(l)
		if err != nil {
			panic(err)
		}
		mu.Lock()
		defer mu.Unlock()
		_, _ = out.Write(append(b, '\n'))
		_ = out.Flush() // one write to a pipe: it is there although the process dies next
	}
	fail := func(err error) int {
		tell(soakLine{What: "error", Text: err.Error()})
		return 1
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	s, err := consul.New(consul.Options{Address: store})
	if err != nil {
		return fail(err)
	}
	skew, err := time.ParseDuration(os.Getenv(soakClockEnv))
	if err != nil {
		return fail(err)
	}
	b, err := bus.New(bus.Config{
		Clock:   func() time.Time { return time.Now().Add(skew) },
		Gateway: name, Store: s, SessionTTL: 10 * time.Second, TTL: time.Hour, MaxInbox: 20000,
		Retry: bus.RetryPolicy{MaxAttempts: 3, Initial: 20 * time.Millisecond, Max: 100 * time.Millisecond},
		Observe: func(ev bus.Event) {
			switch {
			case ev.Event == bus.EventReceipt && ev.State == envelope.Acked:
				tell(soakLine{What: "acked", ID: ev.MessageID})
			case ev.Event == bus.EventReceipt && ev.State == envelope.DeadLetter:
				tell(soakLine{What: "dead", ID: ev.MessageID, Class: string(ev.Class)})
			case ev.Event == bus.EventReplied:
				tell(soakLine{What: "replied", ID: ev.MessageID, Text: ev.Text})
			}
		},
	})
	if err != nil {
		return fail(err)
	}
	var own int
	if _, err := fmt.Sscanf(name, "node-%d", &own); err != nil {
		return fail(err)
	}
	for i := range soakAgents {
		spec := bus.AgentSpec{ID: soakAgent(i), Rank: (own - i + soakAgents) % soakAgents, AckTimeout: 20 * time.Second}
		if err := b.Serve(spec, soakHandler(i, tell)); err != nil {
			return fail(err)
		}
	}
	for {
		start, cancel := context.WithTimeout(ctx, 20*time.Second)
		err = b.Start(start)
		cancel()
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return fail(err)
		}
	}
	tell(soakLine{What: "ready"})
	var sends sync.WaitGroup
	slots := make(chan struct{}, 256)
	go func() {
		in := bufio.NewScanner(os.Stdin)
		for in.Scan() {
			var o soakOrder
			if json.Unmarshal(in.Bytes(), &o) != nil {
				continue
			}
			slots <- struct{}{}
			sends.Add(1)
			go func() {
				defer sends.Done()
				defer func() { <-slots }()
				tell(soakSend(ctx, b, o))
			}()
		}
		stop() // the test is gone, or wants this node to end
	}()
	select {
	case <-ctx.Done():
	case err := <-b.Fatal():
		return fail(err)
	}
	sends.Wait()
	end, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := b.Stop(end); err != nil {
		return fail(err)
	}
	return 0
}

func soakSend(ctx context.Context, b *bus.Bus, o soakOrder) soakLine {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	text := o.Text
	if o.Big > 0 {
		text += " " + strings.Repeat("x", o.Big)
	}
	_, err := b.AskAPI(ctx, bus.Outgoing{ID: o.ID, To: envelope.Address{Agent: o.To}, From: "soak", Payload: envelope.TextPayload(text), ConversationID: o.Conv})
	l := soakLine{ID: o.ID, What: "accepted"}
	if err != nil {
		l.What, l.Text = "refused", err.Error()
		if errors.Is(err, bus.ErrOutcomeUnknown) {
			l.What = "unknown"
		}
	}
	return l
}

// soakHandler does what the text's first word says.
func soakHandler(i int, tell func(soakLine)) bus.HandlerFunc {
	var once sync.Map
	var n atomic.Int64
	return func(ctx context.Context, m *bus.Incoming) error {
		e := m.Envelope()
		text := e.Text()
		word, _, _ := strings.Cut(text, " ")
		answer := "done"
		switch word {
		case "slow":
			t := time.NewTimer(time.Duration(12+n.Add(1)%20) * time.Millisecond)
			defer t.Stop()
			select {
			case <-t.C:
			case <-ctx.Done():
				return ctx.Err()
			}
		case "once":
			if _, before := once.LoadOrStore(e.MessageID, true); !before && m.Attempt() == 1 {
				return errors.New("fails once")
			}
		case "fails":
			return errors.New("fails always")
		case "never":
			return bus.Never(envelope.ClassPoison, errors.New("makes no sense"))
		case "asks":
			a, err := m.Ask(ctx, bus.Outgoing{To: envelope.Address{Agent: soakAgent(i + 1)}, Payload: envelope.TextPayload("quick question")})
			if err != nil {
				return err
			}
			answer = a.Text()
		}
		if err := m.Guard(); err != nil {
			return err
		}
		if e.SourceAgent == "soak" {
			tell(soakLine{What: "effect", ID: e.MessageID, Conv: e.ConversationID, Attempt: m.Attempt(), Text: word})
		}
		return m.Reply(envelope.TextPayload(answer))
	}
}
