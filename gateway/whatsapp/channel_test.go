package whatsapp_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/gateway"
	"github.com/gatemesh/gatemesh/gateway/whatsapp/whatsapptest"
)

func TestGroupMentionAndReaction(t *testing.T) {
	s := newServer(t)
	ann, bob := person(t, s, annPhone), person(t, s, bobPhone)
	o := own(t, s, bot(t, s).Own()).connected(t)
	jid := s.Group("120363000000000001", botPhone, annPhone, bobPhone).String()
	group := gateway.ChannelPeer{Kind: gateway.PeerGroup, ID: jid}
	id := say(t, ann, group, "hello all")
	say(t, bob, group, "@"+botPhone+" are you there?")
	o.hears(t, "hello all", "@"+botPhone+" are you there?")
	first, second := o.events[0], o.events[1]
	if first.ID != jid+"/"+id || first.Peer != group || first.Sender.ID != ann.JID() || first.Mentioned || first.Message != id+"/"+ann.JID() {
		t.Errorf("the first event: %+v", first)
	}
	if !second.Mentioned || second.Sender.ID != bob.JID() || second.Sender.Name == "" {
		t.Errorf("the second event: %+v", second)
	}
	mustPost(t, o, post(group, "**yes**"))
	hears(t, bob, "hello all", "*yes*")
	reactor := o.ch.(gateway.ChannelReactor)
	for _, on := range []bool{true, true, false} {
		if err := reactor.React(within(t), gateway.PostTarget{Peer: group, Message: second.Message}, on); err != nil {
			t.Fatal(err)
		}
	}
	if err := o.stop(t); err != nil {
		t.Error(err)
	}
}

// WhatsApp hears that a message was received only when it is taken in; until then it sends it again, to whoever connects.
func TestAcknowledgedOnceTakenIn(t *testing.T) {
	s := newServer(t)
	ann := person(t, s, annPhone)
	store := bot(t, s)
	o := own(t, s, store.Own()).connected(t)
	o.change(func() { o.refuse = errors.New("the bus is full") })
	before := s.Connects(botPhone)
	first := say(t, ann, dm(botPhone), "first")
	second := say(t, ann, dm(botPhone), "second")
	o.until(t, "a new connection", func() bool { return s.Connects(botPhone) > before })
	if s.Acknowledged(botPhone, first) || s.Acknowledged(botPhone, second) {
		t.Fatal("acknowledged what was not taken in")
	}
	_ = o.stop(t) // whatever it was at
	b := own(t, s, store.Own()).connected(t)
	b.hears(t, "first", "second")
	poll(t, "the acknowledgement", func() bool { return s.Acknowledged(botPhone, first) && s.Acknowledged(botPhone, second) })
	// A message that comes again cannot be decrypted again, and need not: it is acknowledged.
	s.Redeliver(botPhone, first)
	say(t, ann, dm(botPhone), "third")
	b.hears(t, "first", "second", "third")
	if err := b.stop(t); err != nil {
		t.Error(err)
	}
}

// poll waits for what the fake alone knows.
func poll(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	late := time.NewTimer(longest)
	defer late.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-late.C:
			t.Fatal("waited in vain for " + what)
		}
	}
}

func TestPostOutcomes(t *testing.T) {
	s := newServer(t)
	ann := person(t, s, annPhone)
	o := own(t, s, bot(t, s).Own()).connected(t)
	mustPost(t, o, post(dm(annPhone), "before"))
	for _, c := range []struct {
		fault whatsapptest.Fault
		kind  string
	}{
		{whatsapptest.FaultRateLimit, "not sent"},
		{whatsapptest.FaultServer, "not sent"},
		{whatsapptest.FaultRejected, "rejected"},
		{whatsapptest.FaultSlow, "unknown"},
		{whatsapptest.FaultGarbage, "unknown"},
		{whatsapptest.FaultLostReply, "unknown"},
	} {
		connects := s.Connects(botPhone)
		s.Misbehave(botPhone, c.fault)
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		p := post(dm(annPhone), string(c.fault))
		_, err := o.ch.Post(ctx, p)
		cancel()
		if kind := kindOf(err); kind != c.kind {
			t.Errorf("%s: %s, not %s: %v", c.fault, kind, c.kind, err)
		}
		if c.kind != "unknown" {
			continue
		}
		// WhatsApp cannot be asked: the outcome stays unknown, and nothing is sent.
		sent := len(s.Sent(botPhone))
		if _, found, err := o.ch.(gateway.ChannelFinder).Find(within(t), p); found || err == nil || kindOf(err) != "unknown" {
			t.Errorf("%s: found %v, %v", c.fault, found, err)
		}
		if now := len(s.Sent(botPhone)); now != sent {
			t.Errorf("%s: %d messages were sent again", c.fault, now-sent)
		}
		if c.fault != whatsapptest.FaultSlow {
			poll(t, "a new connection", func() bool { return s.Connects(botPhone) > connects })
			o.connected(t)
		}
	}
	hears(t, ann, "before", string(whatsapptest.FaultSlow), string(whatsapptest.FaultGarbage), string(whatsapptest.FaultLostReply))
	for _, to := range []gateway.ChannelPeer{{Kind: gateway.PeerDM, ID: "somebody"}, {Kind: gateway.PeerGroup, ID: "1203@g.us"}, dm("491799999999")} {
		if _, err := o.ch.Post(within(t), post(to, "x")); !gateway.IsRejected(err) {
			t.Errorf("to %v: %v", to, err)
		}
	}
	if err := o.stop(t); err != nil {
		t.Error(err)
	}
}

// Where the settings say so, a post of unknown outcome is sent again, under the same id.
func TestResendSameID(t *testing.T) {
	s := newServer(t)
	ann := person(t, s, annPhone)
	settings := append(bytes.TrimSuffix(s.Settings(), []byte("}")), `,"resendSameId":true}`...)
	o := ownWith(t, settings, bot(t, s).Own()).connected(t)
	for _, fault := range []whatsapptest.Fault{whatsapptest.FaultSlow, whatsapptest.FaultGarbage, whatsapptest.FaultLostReply} {
		o.until(t, "a connection", o.state(gateway.ChannelConnected))
		before := len(s.Sent(botPhone))
		s.Misbehave(botPhone, fault)
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		p := post(dm(annPhone), string(fault))
		_, err := o.ch.Post(ctx, p)
		cancel()
		if kind := kindOf(err); kind != "unknown" {
			t.Errorf("%s: %s: %v", fault, kind, err)
		}
		poll(t, "the post's outcome", func() bool {
			_, found, err := o.ch.(gateway.ChannelFinder).Find(within(t), p)
			return found && err == nil
		})
		if sent := s.Sent(botPhone)[before:]; len(sent) != 2 || sent[0].ID != sent[1].ID {
			t.Errorf("%s: sent %+v", fault, sent)
		}
	}
	hears(t, ann, string(whatsapptest.FaultSlow), string(whatsapptest.FaultGarbage), string(whatsapptest.FaultLostReply))
	if err := o.stop(t); err != nil {
		t.Error(err)
	}
}

func kindOf(err error) string {
	var not *gateway.NotSentError
	switch {
	case err == nil:
		return "sent"
	case errors.As(err, &not):
		return "not sent"
	case gateway.IsRejected(err):
		return "rejected"
	}
	return "unknown"
}

// The check is asked once more when the ciphertext is about to leave: nothing has left when it fails then.
func TestCheckBeforeTheBytesLeave(t *testing.T) {
	s := newServer(t)
	ann := person(t, s, annPhone)
	store := bot(t, s)
	o := own(t, s, store.Own()).connected(t)
	mustPost(t, o, post(dm(annPhone), "before"))
	for name, spoil := range map[string]func(*gateway.Post){
		"check": func(p *gateway.Post) {
			var asked atomic.Int32
			p.Check = func() error {
				if asked.Add(1) > 1 {
					return bus.ErrDeposed
				}
				return nil
			}
		},
		"store": func(*gateway.Post) { store.Fail(bus.ErrUnavailable) },
	} {
		before := len(s.Sent(botPhone))
		p := post(dm(annPhone), "never")
		spoil(&p)
		_, err := o.ch.Post(within(t), p)
		if kindOf(err) != "not sent" {
			t.Errorf("%s: %v", name, err)
		}
		if len(s.Sent(botPhone)) != before {
			t.Errorf("%s: the message left", name)
		}
		store.Fail(nil)
		_ = o.stop(t)
		o = own(t, s, store.Own()).connected(t)
	}
	mustPost(t, o, post(dm(annPhone), "after"))
	hears(t, ann, "before", "after")
	if err := o.stop(t); err != nil {
		t.Error(err)
	}
}

// One message costs one write of the vault, in either direction.
func TestWritesPerMessage(t *testing.T) {
	s := newServer(t)
	ann := person(t, s, annPhone)
	store := bot(t, s)
	o := own(t, s, store.Own()).connected(t)
	linked, names := store.Writes()
	t.Logf("linking and the first connection: %d writes of %d names", linked, names)
	say(t, ann, dm(botPhone), "hi")
	o.hears(t, "hi")
	mustPost(t, o, post(dm(annPhone), "hi"))
	hears(t, ann, "hi")
	for _, c := range []struct {
		what string
		do   func()
	}{
		{"incoming", func() {
			id := say(t, ann, dm(botPhone), "again")
			poll(t, "the acknowledgement", func() bool { return s.Acknowledged(botPhone, id) })
		}},
		{"outgoing", func() { mustPost(t, o, post(dm(annPhone), "again")) }},
	} {
		writes, _ := store.Writes()
		c.do()
		if now, _ := store.Writes(); now-writes != 1 {
			t.Errorf("an %s message costs %d writes", c.what, now-writes)
		}
	}
	if err := o.stop(t); err != nil {
		t.Error(err)
	}
}

func TestReconnects(t *testing.T) {
	s := newServer(t)
	ann := person(t, s, annPhone)
	o := own(t, s, bot(t, s).Own()).connected(t)
	var want []string
	for name, cut := range map[string]func(){
		"drop":    func() { s.Drop(botPhone) },
		"503":     func() { s.StreamError("503", botPhone) },
		"unknown": func() { s.StreamError("599", botPhone) },
		"garbage": func() { s.Garbage(botPhone); s.Drop(botPhone) },
	} {
		before := s.Connects(botPhone)
		cut()
		want = append(want, name)
		id := say(t, ann, dm(botPhone), name)
		o.until(t, "a new connection after "+name, func() bool { return s.Connects(botPhone) > before })
		o.hears(t, want...)
		poll(t, "the acknowledgement", func() bool { return s.Acknowledged(botPhone, id) })
		o.connected(t)
	}
	if n := s.Connections(botPhone); n != 1 {
		t.Errorf("%d connections", n)
	}
	if err := o.stop(t); err != nil {
		t.Error(err)
	}
	poll(t, "the end of the connection", func() bool { return s.Connections(botPhone) == 0 })
}

// Somebody else with the same credentials: the alarm is raised, and the account is left to them.
func TestForeign(t *testing.T) {
	s := newServer(t)
	store := bot(t, s)
	v := store.Own()
	a := own(t, s, v).connected(t)
	b := own(t, s, v).connected(t)
	a.until(t, "the alarm", func() bool { return len(a.foreign) == 1 })
	if n := s.Connects(botPhone); n != 2 {
		t.Errorf("%d logins: they fight for it", n)
	}
	if len(b.foreign) != 0 {
		t.Error("the newcomer raised the alarm")
	}
	// One's own successor is no foreigner.
	c := own(t, s, store.Own()).connected(t)
	if err := b.end(t); !errors.Is(err, bus.ErrDeposed) {
		t.Errorf("the deposed owner ended with %v", err)
	}
	if len(b.foreign) != 0 {
		t.Error("a successor was taken for a foreigner")
	}
	for _, o := range []*owner{a, c} {
		if err := o.stop(t); err != nil {
			t.Error(err)
		}
	}
}

func TestUnlinkedOnThePhone(t *testing.T) {
	s := newServer(t)
	store := bot(t, s)
	o := own(t, s, store.Own()).connected(t)
	s.Remove(botPhone)
	err := o.end(t)
	if !gateway.IsBadCredentials(err) || !strings.Contains(err.Error(), "gatemesh channels pair") {
		t.Errorf("ended with %v", err)
	}
	if !o.state(gateway.ChannelLoggedOut)() {
		t.Errorf("the states: %v", o.states)
	}
	if rows := store.Rows(); len(rows) != 0 {
		t.Errorf("%d rows are left", len(rows))
	}
}

func TestPairWhileRunningAndLogout(t *testing.T) {
	s := newServer(t)
	store := whatsapptest.NewStore()
	o := own(t, s, store.Own())
	o.until(t, "pairing", o.state(gateway.ChannelPairing))
	if _, err := o.ch.Post(within(t), post(dm(annPhone), "x")); kindOf(err) != "not sent" {
		t.Errorf("a post of an account that is not linked: %v", err)
	}
	if err := s.Pair(within(t), o.ch, botPhone); err != nil {
		t.Fatal(err)
	}
	o.connected(t)
	if err := o.ch.(gateway.ChannelPairer).Logout(within(t)); err != nil {
		t.Fatal(err)
	}
	o.until(t, "pairing", o.state(gateway.ChannelPairing))
	if rows := store.Rows(); len(rows) != 0 {
		t.Errorf("%d rows are left", len(rows))
	}
	if err := o.stop(t); err != nil {
		t.Error(err)
	}
}

// The library waits 20 seconds for a handshake, whatever it is told: Run does not.
func TestEndsWhileTheServerSaysNothing(t *testing.T) {
	s := newServer(t)
	store := bot(t, s)
	s.Mute(true)
	o := own(t, s, store.Own())
	o.until(t, "connecting", o.state(gateway.ChannelConnecting))
	poll(t, "the server's silence", func() bool { return s.Waiting() == 1 })
	if err := o.stop(t); err != nil {
		t.Error(err)
	}
}
