package bustest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
)

// RandomRun is one behaviour of the real bus to be held against the model: which messages there are, what their
// handlers say, and what is done and goes wrong, in order. All of it is drawn before anything
// runs, so a seed says everything that was chosen; what the scheduler does is not chosen.
type RandomRun struct {
	messages []randomMessage
	ops      []randomOp
	faulty   bool
}

type randomMessage struct {
	Conversation int
	Verdict      Verdict
	Slow         bool
}

type randomOp struct {
	What    string
	Gateway int // 0: jerry, who sends; 1: bobby
	Message int
	N       int // the how-manieth store call from now is lost; milliseconds to pass
}

// What may be done in a run, and how often at most (0: any number of times): no more than the model knows.
var randomOps = []struct {
	what string
	most int
}{
	{"send", 0}, {"send", 0}, {"send", 0}, {"pass", 0}, {"pass", 0}, {"duplicate", 0}, {"lose a request", 0}, {"lose a reply", 0},
	{"crash", 3}, {"depose", 2}, {"hand over", 2}, {"redrive", 2}, {"cancel", 2},
}

// DrawRun draws a run of up to so many operations.
func DrawRun(t *rapid.T, most int) *RandomRun {
	r := &RandomRun{}
	message := rapid.Custom(func(t *rapid.T) randomMessage {
		return randomMessage{
			rapid.IntRange(0, 1).Draw(t, "conversation"),
			rapid.SampledFrom([]Verdict{VerdictAck, VerdictFail, VerdictNever, VerdictAsk}).Draw(t, "verdict"),
			rapid.Bool().Draw(t, "slow"),
		}
	})
	r.messages = rapid.SliceOfN(message, 1, 5).Draw(t, "messages")
	op := rapid.Custom(func(t *rapid.T) randomOp {
		return randomOp{
			randomOps[rapid.IntRange(0, len(randomOps)-1).Draw(t, "what")].what,
			rapid.IntRange(0, 1).Draw(t, "gateway"),
			rapid.IntRange(0, len(r.messages)-1).Draw(t, "message"),
			rapid.SampledFrom([]int{0, 1, 2, 3, 5, 15, 40, 1200}).Draw(t, "n"),
		}
	})
	left := map[string]int{}
	for _, o := range randomOps {
		left[o.what] = o.most
	}
	for _, o := range rapid.SliceOfN(op, 1, most).Draw(t, "operations") {
		if n, bounded := left[o.What], left[o.What] != 0; bounded {
			if n < 0 {
				continue
			}
			if left[o.What]--; left[o.What] == 0 {
				left[o.What] = -1
			}
		}
		r.faulty = r.faulty || o.What != "send" && o.What != "pass"
		r.ops = append(r.ops, o)
	}
	return r
}

// Operations is how many there are.
func (r *RandomRun) Operations() int { return len(r.ops) }

var (
	permittedMu sync.Mutex
	permitted   = map[string]*Exploration{}
)

// explored is all that the model permits for one message of a kind, whatever else there is.
func explored(v Verdict, faulty bool) (*Exploration, error) {
	permittedMu.Lock()
	defer permittedMu.Unlock()
	key := fmt.Sprint(v, faulty)
	if e := permitted[key]; e != nil {
		return e, nil
	}
	faults := []Faults{{}}
	if faulty {
		// A life after a redrive begins as the first did, so not everything needs everything else.
		faults = []Faults{{Crashes: 3, Redrives: 1, Cancels: 1}, {Crashes: 2, Handovers: 1, Cancels: 1}, {Depositions: 1, Duplicates: 1, Cancels: 1}}
	}
	scripts := [][]Verdict{{v}}
	if v == VerdictFail {
		// The first run of its handler fails and no other. What ended with a process before or after that may count as a
		// failure, or leave no trace.
		scripts = [][]Verdict{{VerdictFail, VerdictAck}}
		if faulty {
			scripts = append(scripts, []Verdict{VerdictAck}, []Verdict{VerdictAck, VerdictFail, VerdictAck}, []Verdict{VerdictAck, VerdictAck, VerdictFail})
		}
	}
	all := &Exploration{views: map[[2]modelView]bool{}, ends: map[modelView]bool{}}
	for _, script := range scripts {
		for _, f := range faults {
			m := &Model{Messages: []ModelMessage{{0, script}}, Attempts: 3, MaxCrashes: 3, Faults: f}
			e := m.Explore(nil)
			if err := e.Err(); err != nil {
				return nil, err
			}
			maps.Copy(all.views, e.views)
			maps.Copy(all.ends, e.ends)
		}
	}
	permitted[key] = all
	return all, nil
}

// mesh is what a run works with.
type mesh struct {
	r       *RandomRun
	ctx     context.Context
	open    func(gateway string) bus.Store
	fake    bool
	tag     string
	journal journal
	admin   bus.Store
	ids     []string
	sent    []bool // a send was begun
	told    []bool // a send was answered accepted

	mu       sync.Mutex
	attempts map[string]int
	gw       [modelGateways]*process
	old      []*process
	billy    *process
	orders   sync.WaitGroup
}

// process is one start of a gateway.
type process struct {
	*bus.Bus
	store *FaultyStore
}

var errByPlan = fmt.Errorf("%w: the run's plan", bus.ErrUnavailable)

// Play runs it on real gateways over the stores that open returns, and returns what the model does not permit. fake says
// that it runs inside testing/synctest.
func (r *RandomRun) Play(ctx context.Context, open func() bus.Store, fake bool) error {
	return r.play(ctx, func(string) bus.Store { return open() }, fake)
}

// play is Play with a client for each gateway, by its name; "" is who may do everything.
func (r *RandomRun) play(ctx context.Context, open func(gateway string) bus.Store, fake bool) error {
	w := &mesh{r: r, ctx: ctx, open: open, fake: fake, attempts: map[string]int{}, tag: envelope.NewID()[24:],
		sent: make([]bool, len(r.messages)), told: make([]bool, len(r.messages))}
	w.admin = open("")
	for range r.messages {
		w.ids = append(w.ids, envelope.NewID())
	}
	err := w.start()
	if err == nil {
		for _, o := range r.ops {
			w.do(o)
			w.rest()
		}
		err = w.drain()
	}
	w.stop()
	if cerr := w.check(); err == nil {
		err = cerr
	} else if cerr != nil {
		err = errors.Join(err, cerr)
	}
	return err
}

func (w *mesh) name(s string) string { return s + "-" + w.tag }

// rest lets happen what is to happen now.
func (w *mesh) rest() {
	if w.fake {
		synctest.Wait()
	}
}

func (w *mesh) pass(d time.Duration) {
	if !w.fake {
		d = min(d, 50*time.Millisecond)
	}
	<-time.After(d)
	w.rest()
}

func (w *mesh) start() (err error) {
	if w.billy, err = w.boot("billy"); err != nil {
		return err
	}
	for g := range w.gw {
		if w.gw[g], err = w.boot([...]string{"jerry", "bobby"}[g]); err != nil {
			return err
		}
	}
	return nil
}

// boot starts a gateway; all but billy may run the agent, billy runs its helper.
func (w *mesh) boot(name string) (*process, error) {
	p := &process{store: Faulty(journaled{w.open(w.name(name)), &w.journal})}
	b, err := bus.New(bus.Config{Gateway: w.name(name), Store: p.store, Heartbeat: time.Hour, DrainGrace: 10 * time.Millisecond, TTL: 24 * time.Hour,
		Retry: bus.RetryPolicy{MaxAttempts: 3, Initial: 10 * time.Millisecond, Max: 20 * time.Millisecond}})
	if err != nil {
		return nil, err
	}
	p.Bus = b
	if name == "billy" {
		err = b.Serve(bus.AgentSpec{ID: w.name("helper")}, bus.HandlerFunc(func(_ context.Context, m *bus.Incoming) error { return m.Reply(m.Envelope().Payload) }))
	} else {
		// Few places, so that messages wait for one too.
		err = b.Serve(bus.AgentSpec{ID: w.name("bob"), MaxConcurrent: 2}, bus.HandlerFunc(w.handle))
	}
	if err == nil {
		err = b.Start(w.ctx)
	}
	return p, err
}

// handle does what the run says of the message.
func (w *mesh) handle(ctx context.Context, m *bus.Incoming) error {
	var msg randomMessage
	id := m.Envelope().MessageID
	for i := range w.ids {
		if w.ids[i] == id {
			msg = w.r.messages[i]
		}
	}
	w.mu.Lock()
	w.attempts[id]++
	attempt := w.attempts[id]
	w.mu.Unlock()
	if msg.Slow {
		select {
		case <-time.After(25 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	switch {
	case msg.Verdict == VerdictNever:
		return bus.Never(envelope.ClassPoison, errors.New("by the run's plan"))
	case msg.Verdict == VerdictFail && attempt == 1:
		return errors.New("by the run's plan")
	case msg.Verdict == VerdictAsk:
		if _, err := m.Ask(ctx, bus.Outgoing{To: envelope.Address{Agent: w.name("helper")}, Payload: m.Envelope().Payload}); err != nil {
			return err
		}
	}
	return m.Reply(m.Envelope().Payload)
}

// send sends a message, again if it must: a client knows only what it is told.
func (w *mesh) send(i int) {
	w.sent[i] = true
	ctx, cancel := context.WithTimeout(w.ctx, 20*time.Second)
	defer cancel()
	_, err := w.gw[0].AskAPI(ctx, bus.Outgoing{ID: w.ids[i], CorrelationID: w.ids[i], ConversationID: fmt.Sprint("c", w.r.messages[i].Conversation),
		To: envelope.Address{Agent: w.name("bob")}, From: "user", Payload: envelope.TextPayload(fmt.Sprint(i))})
	if err == nil {
		w.told[i] = true
	}
}

func (w *mesh) do(o randomOp) {
	p := w.gw[o.Gateway]
	switch o.What {
	case "send":
		for i := range w.sent { // in order, as one client would
			if !w.sent[i] {
				w.send(i)
				return
			}
		}
	case "duplicate":
		if w.sent[o.Message] {
			w.send(o.Message)
		}
	case "pass":
		w.pass(time.Duration(o.N) * time.Millisecond)
	case "lose a request":
		p.store.Before(once(o.N))
	case "lose a reply":
		p.store.After(once(o.N))
	case "crash":
		w.crash(o.Gateway)
	case "depose":
		w.endSession(p)
	case "hand over":
		w.halt(p)
		w.again(o.Gateway)
	case "cancel":
		w.orders.Go(func() {
			ctx, cancel := context.WithTimeout(w.ctx, 30*time.Second)
			defer cancel()
			_, _ = w.billy.CancelMessage(ctx, w.ids[o.Message], "the run")
		})
	case "redrive":
		w.orders.Go(func() {
			ctx, cancel := context.WithTimeout(w.ctx, 30*time.Second)
			defer cancel()
			_, _ = w.billy.Redrive(ctx, bus.DeadLetterFilter{Agent: w.name("bob")}, bus.RedriveOptions{By: "the run"})
		})
	}
}

// once loses the nth call from now on.
func once(n int) Hook {
	var seen atomic.Int64
	return func(call string, _ []bus.Op) error {
		if call == CallWatch || seen.Add(1)-1 != int64(n) {
			return nil
		}
		return errByPlan
	}
}

// endSession ends a gateway's session as the store would.
func (w *mesh) endSession(p *process) {
	pair, err := w.admin.Get(w.ctx, bus.Root+"owners/gateways/"+p.Gateway())
	if err == nil && pair != nil && pair.Session != "" {
		_ = w.admin.DestroySession(w.ctx, pair.Session)
	}
}

// crash ends a gateway as kill -9 would, and starts it again.
func (w *mesh) crash(g int) {
	p := w.gw[g]
	p.store.After(nil)
	p.store.Before(func(string, []bus.Op) error { return errByPlan })
	w.endSession(p)
	w.rest()
	w.again(g)
}

func (w *mesh) again(g int) {
	w.old = append(w.old, w.gw[g])
	p, err := w.boot([...]string{"jerry", "bobby"}[g])
	if err == nil {
		w.gw[g] = p
	}
}

func (w *mesh) halt(p *process) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(w.ctx), 2*time.Second)
	defer cancel()
	_ = p.Stop(ctx) // one whose store is gone ends with ctx
}

func (w *mesh) stop() {
	for _, p := range append(w.old, w.gw[0], w.gw[1], w.billy) {
		if p != nil {
			w.halt(p)
		}
	}
	w.orders.Wait()
	w.rest()
}

// drain lets everything come to rest: no fault any more, and time.
func (w *mesh) drain() error {
	for _, p := range w.gw {
		p.store.Before(nil)
		p.store.After(nil)
	}
	w.orders.Wait()
	ctx, cancel := context.WithTimeout(w.ctx, time.Minute)
	defer cancel()
	for {
		var open []string
		for i, id := range w.ids {
			if !w.told[i] {
				continue
			}
			st, err := w.billy.Lookup(ctx, id)
			if err != nil || !st.State.Terminal() {
				open = append(open, fmt.Sprintf("message %d: %+v, %v", i+1, st, err))
			}
		}
		boxes, err := w.billy.Inboxes(ctx, w.name("bob"))
		if err == nil && len(boxes) == 1 && (boxes[0].Waiting > 0 || boxes[0].Pending > 0) {
			open = append(open, fmt.Sprintf("the inbox: %+v", boxes[0]))
		}
		if len(open) == 0 {
			return err
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("it does not come to rest: %s", strings.Join(open, "; "))
		}
	}
}

// check holds the journal against the model.
func (w *mesh) check() error {
	models := map[string]*Exploration{}
	r := &journalReader{agent: w.name("bob"), helper: w.name("helper"), sender: w.name("jerry"), byID: map[string]*observed{}}
	for i, id := range w.ids {
		e, err := explored(w.r.messages[i].Verdict, w.r.faulty)
		if err != nil {
			return err
		}
		models[id] = e
		r.byID[id] = &observed{index: i, id: id, conversation: fmt.Sprint(w.r.messages[i].Conversation), replies: map[string]struct{}{}, asked: map[string]struct{}{}, past: map[string]struct{}{}}
	}
	r.permitted = func(o *observed) map[[2]modelView]bool { return models[o.id].views }
	r.read(&w.journal)
	for i, id := range w.ids {
		o := r.byID[id]
		switch end := o.view(); {
		case o.place == "" && w.told[i]:
			r.add("message %d was accepted and never written", i+1)
		case o.place != "" && !models[id].ends[end]:
			r.add("message %d ended as %q, which no behaviour of the model does", i+1, end)
		}
	}
	if len(r.wrong) == 0 {
		return nil
	}
	return errors.New(strings.Join(r.wrong, "\n"))
}

// randomRuns plays a few on the store as it is, in real time. They are the same ones every time: run N is number N.
func randomRuns(w *world) {
	runs := 5
	if w.slow {
		runs = 3
	}
	drawn := rapid.Custom(func(t *rapid.T) *RandomRun { return DrawRun(t, 12) })
	for n := range runs {
		var clients []bus.Store
		run := drawn.Example(n)
		err := run.play(w.Context(), func(gateway string) bus.Store {
			clients = append(clients, w.open(gateway))
			return clients[len(clients)-1]
		}, false)
		if err != nil {
			w.Errorf("run %d, %+v: %v", n, *run, err)
		}
		if w.slow { // a server takes only so many connections
			for _, c := range clients {
				_ = c.Close()
			}
		}
	}
}
