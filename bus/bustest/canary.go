package bustest

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
)

// What every payload of [canary] says: where payloads are encrypted, and where they are not.
const (
	CanarySecret = "canary-that-is-a-secret-"
	CanaryPlain  = "canary-that-is-no-secret-"
)

// Exposed lists which of the texts can be read in bytes of a store: as they are, in base64, or inside what is
// packed with Zstandard anywhere in it.
func Exposed(raw []byte, texts ...string) []string {
	parts := [][]byte{raw}
	magic := []byte{0x28, 0xb5, 0x2f, 0xfd}
	for at := 0; ; {
		i := bytes.Index(raw[at:], magic)
		if i < 0 {
			break
		}
		at += i
		if dec, err := zstd.NewReader(bytes.NewReader(raw[at:]), zstd.WithDecoderConcurrency(1)); err == nil {
			var out bytes.Buffer
			_, _ = dec.WriteTo(&out) // what stands behind the frame is no frame
			dec.Close()
			parts = append(parts, out.Bytes())
		}
		at += len(magic)
	}
	var found []string
	for _, text := range texts {
		forms := [][]byte{[]byte(text)}
		for shift := range 3 {
			// Without the ends, in which the neighbours' bits are.
			in64 := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("x", shift) + text))
			forms = append(forms, []byte(in64[4:len(in64)-4]))
		}
		if slices.ContainsFunc(parts, func(p []byte) bool {
			return slices.ContainsFunc(forms, func(f []byte) bool { return bytes.Contains(p, f) })
		}) {
			found = append(found, text)
		}
	}
	return found
}

// recording is everything that is written to the store: what is deleted later was in it, and in its log.
type recording struct {
	mu     sync.Mutex
	values []bus.Pair
}

func (r *recording) hook(_ string, ops []bus.Op) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, o := range ops {
		if len(o.Value) > 0 {
			r.values = append(r.values, bus.Pair{Key: o.Key, Value: bytes.Clone(o.Value)})
		}
	}
	return nil
}

// wrote reports whether something was written at a key that holds all parts.
func (r *recording) wrote(parts ...string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.ContainsFunc(r.values, func(p bus.Pair) bool {
		return !slices.ContainsFunc(parts, func(s string) bool { return !strings.Contains(p.Key, s) })
	})
}

// until waits, on the goroutine of a handler, for a write.
func (r *recording) until(ctx context.Context, parts ...string) error {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !r.wrote(parts...) {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// canary sends recognisable payloads on every way that there is, and looks for them in all that was written. The same ways
// without encryption show that it would find them, on each.
func canary(w *world) {
	w.exposes(CanarySecret, nil)
	plain := &world{T: w.T, open: w.open, tag: w.tag + "p", slow: w.slow}
	plain.trust = newTrusted(plain.tag)
	plain.exposes(CanaryPlain, []string{"blobs", "deadletters", "inbox", "lanes", "pending", "results"})
}

// exposes checks under which prefixes the payloads of a mesh can be read, and that each way's can or cannot.
func (w *world) exposes(text string, where []string) {
	rec := &recording{}
	sent := w.everyWay(rec, text)
	pairs, err := w.admin().List(w.ctx(), bus.Root)
	if err != nil {
		w.Fatal(err)
	}
	got, ways := map[string]bool{}, map[string]bool{}
	for _, p := range append(rec.values, pairs...) {
		for _, way := range Exposed(p.Value, sent...) {
			kind, _, _ := strings.Cut(strings.TrimPrefix(p.Key, bus.Root), "/")
			got[kind], ways[way] = true, true
		}
	}
	if list := slices.Sorted(maps.Keys(got)); !slices.Equal(list, where) {
		w.Errorf("%s can be read under %q, want %q", text, list, where)
	}
	if where != nil && len(ways) != len(sent) {
		w.Errorf("of %q only %q were found", sent, slices.Sorted(maps.Keys(ways)))
	}
}

// everyWay has payloads that begin with text take every way through a mesh, and returns them.
func (w *world) everyWay(rec *recording, text string) (sent []string) {
	node := func(name string) *node {
		n := w.node(name)
		n.store.Before(rec.hook)
		return n
	}
	say := func(way string) string {
		sent = append(sent, text+way)
		return text + way
	}
	jerry, bobby, billy := node("jerry"), node("bobby"), node("billy")
	billy.serve("helper", func(_ context.Context, m *bus.Incoming) error {
		return m.Reply(envelope.TextPayload(strings.Replace(m.Envelope().Text(), "question", "answer", 1)))
	})
	forwarded := make(chan string, 8)
	billy.serve("bob2", func(_ context.Context, m *bus.Incoming) error {
		forwarded <- m.Envelope().Text()
		return nil
	})
	died := false
	bobby.serve("bob", func(ctx context.Context, m *bus.Incoming) error {
		switch way := strings.TrimPrefix(m.Envelope().Text(), text); {
		case way == "nested":
			// Its answer is written down by itself when the handler goes on for long, and so is the message.
			a, err := m.Ask(ctx, bus.Outgoing{To: envelope.Address{Agent: w.name("helper")}, Payload: envelope.TextPayload(text + "nested-question")})
			if err != nil {
				return err
			}
			if err := rec.until(ctx, "/pending/", "/answers/"); err != nil {
				return err
			}
			if _, err := m.Send(bus.Outgoing{To: envelope.Address{Agent: w.name("helper")}, Payload: envelope.TextPayload(text + "sent-on")}); err != nil {
				return err
			}
			return m.Reply(envelope.TextPayload(strings.Replace(a.Text(), "nested", "final", 1)))
		case way == "forwarded":
			return m.Forward(envelope.Address{Agent: w.name("bob2")})
		case way == "retried" && m.Attempt() == 1:
			return errors.New("not yet")
		case way == "dies" && !died:
			died = true
			return bus.Never(envelope.ClassPoison, errors.New("no"))
		case strings.HasPrefix(way, "large"):
			return m.Reply(m.Envelope().Payload)
		}
		return nil
	})
	ask := func(way string) bus.Track {
		w.Helper()
		s, err := jerry.AskAPI(w.ctx(), jerry.out("bob", say(way)))
		if err != nil {
			w.Fatal(err)
		}
		return jerry.until(s.MessageID, replied)
	}
	if got := ask("nested").Reply.Text(); got != text+"final-answer" {
		w.Errorf("the answer is %q", got)
	}
	sent = append(sent, text+"nested-question", text+"nested-answer", text+"sent-on", text+"final-answer")

	jerry.send(jerry.out("bob", say("forwarded")))
	if got := wait(w, forwarded, "what was passed on"); got != text+"forwarded" {
		w.Errorf("passed on: %q", got)
	}
	jerry.until(jerry.send(jerry.out("bob", say("retried"))).MessageID, acked)

	large := say("large") + strings.Repeat(" 0123456789", 30_000)
	tr := jerry.until(func() string {
		s, err := jerry.AskAPI(w.ctx(), jerry.out("bob", large))
		if err != nil {
			w.Fatal(err)
		}
		return s.MessageID
	}(), replied)
	if full, err := jerry.Resolve(w.ctx(), tr.Reply); err != nil || full.Text() != large {
		w.Errorf("the large answer: %v", err)
	}

	id := jerry.send(jerry.out("bob", say("dies"))).MessageID
	jerry.until(id, dead)
	if got, err := jerry.Redrive(w.ctx(), bus.DeadLetterFilter{Agent: w.name("bob"), IDs: []string{id}}, bus.RedriveOptions{By: "op"}); err != nil || len(got) != 1 || !got[0].Done {
		w.Errorf("redrive: %+v, %v", got, err)
	}
	bobby.waitFor(func(ev bus.Event) bool { return ev.Event == bus.EventAcked && ev.MessageID == id })

	if _, err := jerry.SendAll(w.ctx(), bus.Fan{To: []envelope.Address{{Agent: w.name("bob")}, {Agent: w.name("helper")}}, Message: jerry.out("bob", say("fan"))}, true); err != nil {
		w.Error(err)
	}
	// A flood shares entries, which are packed when they are big.
	var wg sync.WaitGroup
	flood := say("flood")
	for range 40 {
		wg.Go(func() {
			if _, err := jerry.Send(w.ctx(), jerry.out("helper", flood+strings.Repeat(" all the same", 200))); err != nil {
				w.Error(err)
			}
		})
	}
	wg.Wait()

	owner, one := node("owner"), node("one")
	if err := owner.ServeQueue(bus.QueueSpec{ID: w.name("chores")}); err != nil {
		w.Fatal(err)
	}
	if err := one.Work(bus.WorkerSpec{Queue: w.name("chores"), Agent: "billy", Slots: 1}, bus.HandlerFunc(func(_ context.Context, m *bus.Incoming) error {
		return m.Reply(envelope.TextPayload(text + "result of " + strings.TrimPrefix(m.Envelope().Text(), text)))
	})); err != nil {
		w.Fatal(err)
	}
	owner.waitFor(func(ev bus.Event) bool { return ev.Event == bus.EventOwned && ev.To == w.name("chores") })
	s, err := jerry.AskAPI(w.ctx(), jerry.out("chores", say("task")))
	if err != nil {
		w.Fatal(err)
	}
	if got := jerry.until(s.MessageID, replied).Reply.Text(); got != text+"result of task" {
		w.Errorf("the task's result is %q", got)
	}
	sent = append(sent, text+"result of task")
	for _, n := range w.nodes {
		for len(n.events) > 0 {
			if ev := *<-n.events; w.trust.rings != nil && len(Exposed(fmt.Appendf(nil, "%+v", ev), text)) > 0 {
				w.Errorf("an event shows a payload: %+v", ev)
			}
		}
	}
	return sent
}
