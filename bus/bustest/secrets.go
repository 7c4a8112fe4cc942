package bustest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/envelope/trust"
)

// secrets are what must hold where payloads are encrypted.
var secrets = []contract{
	{"NothingCanBeRead", canary},
	{"SpoiltCiphertext", spoilt},
	{"MissingKeys", missingKeys},
	{"ForgedKeys", forgedKeys},
	{"LetInLater", letInLater},
	{"NewKeys", newKeys},
	{"InTheClearIsRefused", clearRefused},
	{"SentTwice", sentTwice},
	{"IdsTellNothing", idsTellNothing},
}

// spoilt: what a gateway that may send makes of its own ciphertext, or of another one's, is never handed over, and the event
// names the gateway. (Who holds no key cannot even do that: the signature is over the ciphertext.)
func spoilt(w *world) {
	jerry, bobby := w.node("jerry"), w.node("bobby")
	var c tally
	bobby.serve("bob", c.handle)
	jerry.until(jerry.sendTexts("bob", "good")[0], acked)
	mallory := w.trust.signer(w.name("user")) // in the set, and may send
	readers := func() []*trust.Reader {
		var list []*trust.Reader
		for _, gw := range []string{"jerry", "bobby", "billy", "first", "second", "third"} {
			r, err := trust.DecodeReader(w.name(gw), w.trust.rings[w.name(gw)].Statement(w.name(gw)))
			if err != nil {
				w.Fatal(err)
			}
			list = append(list, r)
		}
		return list
	}()
	type parts struct {
		env    envelope.Envelope
		cipher string
	}
	mail := func(text string) parts {
		e := envelope.Envelope{
			SchemaVersion: envelope.EncryptedVersion, MessageID: envelope.NewID(), CorrelationID: envelope.NewID(), ConversationID: envelope.NewID(),
			SourceGateway: mallory.Gateway, SourceAgent: "somebody", TargetAgent: w.name("bob"), CreatedAt: envelope.At(time.Now()), TTL: envelope.MillisOf(time.Hour), MaxHops: 4,
		}
		key, err := trust.NewSendingKey(mallory.Gateway, readers)
		if err != nil {
			w.Fatal(err)
		}
		c, cipher, err := key.Encrypt(e.Binding(), envelope.TextPayload(text))
		if err != nil {
			w.Fatal(err)
		}
		e.Encryption = c
		return parts{e, cipher}
	}
	for i, attack := range []struct {
		what  string
		spoil func(p *parts)
		good  bool
	}{
		{"as it should be", func(*parts) {}, true},
		{"the keys of another message", func(p *parts) { p.env.Encryption = mail("other").env.Encryption }, false},
		{"the salt of another message", func(p *parts) { p.env.Encryption.Salt = mail("other").env.Encryption.Salt }, false},
		{"the keys of another gateway", func(p *parts) {
			key, err := trust.NewSendingKey(jerry.Gateway(), readers)
			if err == nil {
				p.env.Encryption, p.cipher, err = key.Encrypt(p.env.Binding(), envelope.TextPayload("x"))
			}
			if err != nil {
				w.Fatal(err)
			}
		}, false},
		{"the ciphertext of another message", func(p *parts) { p.cipher = mail("other").cipher }, false},
		{"keys and ciphertext of another message", func(p *parts) {
			o := mail("other")
			p.cipher, p.env.Encryption = o.cipher, o.env.Encryption
		}, false},
		{"cut off", func(p *parts) { p.cipher = p.cipher[:len(p.cipher)-4] }, false},
		{"changed", func(p *parts) {
			first := "A"
			if p.cipher[:1] == first {
				first = "B"
			}
			p.cipher = first + p.cipher[1:]
		}, false},
		{"another capability", func(p *parts) { p.env.Capability = "launch.missiles" }, false},
		{"another sender", func(p *parts) { p.env.SourceAgent = "somebody-else" }, false},
		{"a longer life", func(p *parts) { p.env.TTL *= 2 }, false},
		{"another suite", func(p *parts) { p.env.Encryption.Suite = "rot13" }, false},
		{"another one's key", func(p *parts) {
			k := p.env.Encryption.Keys
			for i := range k {
				_, mine, _ := strings.Cut(k[i], "/")
				id, _, _ := strings.Cut(mine, "/")
				k[i] = k[i][:strings.Index(k[i], id)+17] + k[(i+1)%len(k)][strings.LastIndex(k[(i+1)%len(k)], "/")+1:]
			}
		}, false},
		{"no payload inside", func(p *parts) {
			key, err := trust.NewSendingKey(mallory.Gateway, readers)
			if err == nil {
				p.env.Encryption, p.cipher, err = key.Encrypt(p.env.Binding(), []byte("{"))
			}
			if err != nil {
				w.Fatal(err)
			}
		}, false},
	} {
		p := mail(attack.what)
		attack.spoil(&p)
		s, err := envelope.SealEncrypted(p.env, p.cipher, json.RawMessage(`""`))
		if err != nil {
			w.Fatalf("%s: %v", attack.what, err)
		}
		w.forgeLane(mallory, uint64(i+1), []byte(`{"envelope":`+string(s.Canonical())+`}`), s.Canonical())
		if attack.good {
			bobby.waitFor(func(ev bus.Event) bool { return ev.Event == bus.EventAcked && ev.MessageID == s.MessageID })
			continue
		}
		ev := bobby.refuses(trust.Unreadable)
		if ev.MessageID != s.MessageID || !strings.HasSuffix(ev.From, mallory.Gateway) {
			w.Errorf("%s: whose it was is not told: %+v", attack.what, ev)
		}
		ev = bobby.waitFor(func(ev bus.Event) bool { return ev.Event == bus.EventDeadLetter })
		if ev.MessageID != s.MessageID || ev.Class != envelope.ClassUnreadable {
			w.Errorf("%s: %+v", attack.what, ev)
		}
	}
	jerry.until(jerry.sendTexts("bob", "good too")[0], acked)
	c.want(w, "good", "as it should be", "good too")
}

// missingKeys: without the key of a gateway that may run the target nothing is sent, and nothing written.
func missingKeys(w *world) {
	gone := trust.EncryptionKeysPrefix + w.name("billy")
	if _, err := w.admin().Txn(w.ctx(), []bus.Op{{Verb: bus.OpDelete, Key: gone}}); err != nil {
		w.Fatal(err)
	}
	jerry, bobby := w.node("jerry"), w.node("bobby")
	var c tally
	bobby.serve("bob", c.handle)
	before := jerry.store.Writes()
	_, err := jerry.Send(w.ctx(), jerry.out("bob", "too early"))
	if !errors.Is(err, bus.ErrNoEncryptionKey) || !strings.Contains(err.Error(), w.name("billy")) || !strings.Contains(err.Error(), "gatemesh trust revoke") || strings.Contains(err.Error(), "\n") {
		w.Errorf("without a key: %v", err)
	}
	if n := jerry.store.Writes() - before; n != 0 {
		w.Errorf("%d writes for what was refused", n)
	}
	pinned := jerry.out("bob", "pinned")
	pinned.To.Gateway = bobby.Gateway() // nobody else need read it
	jerry.until(jerry.send(pinned).MessageID, acked)
	for _, k := range jerry.EncryptionKeys() {
		if (k.Key == "") != (k.Gateway == w.name("billy")) {
			w.Errorf("keys: %+v", k)
		}
	}
	w.node("billy") // publishes it when it starts
	jerry.until(jerry.sendTexts("bob", "now")[0], acked)
	c.want(w, "pinned", "now")
}

// forgedKeys: nobody is encrypted for because he says so.
func forgedKeys(w *world) {
	jerry, bobby := w.node("jerry"), w.node("bobby")
	var c tally
	bobby.serve("bob", c.handle)
	jerry.until(jerry.sendTexts("bob", "one")[0], acked)
	key := trust.EncryptionKeysPrefix + bobby.Gateway()
	evil, _ := trust.OpenKeyring("")
	if _, err := evil.Tend("evil", time.Now()); err != nil {
		w.Fatal(err)
	}
	was := w.value(key)
	mallory := w.trust.signer(w.name("user"))
	for _, forged := range []struct {
		value []byte
		want  trust.Reason
	}{
		{evil.Statement(bobby.Gateway()), trust.Unsigned},
		{mallory.SignRecord(trust.KindEncryption, key, time.Now(), evil.Statement(bobby.Gateway())), trust.WrongGateway},
		{mallory.SignRecord(trust.KindEncryption, trust.EncryptionKeysPrefix+mallory.Gateway, time.Now(), evil.Statement(mallory.Gateway)), trust.BadSignature},
		{w.trust.signer(bobby.Gateway()).SignRecord(trust.KindRecord, key, time.Now(), evil.Statement(bobby.Gateway())), trust.BadSignature},
		{w.trust.signer(bobby.Gateway()).SignRecord(trust.KindEncryption, key, time.Now(), evil.Statement(mallory.Gateway)), trust.WrongGateway},
		{w.trust.signer(bobby.Gateway()).SignRecord(trust.KindEncryption, key, time.Now().Add(-time.Hour), evil.Statement(bobby.Gateway())), trust.Replay},
	} {
		w.put(key, forged.value)
		jerry.refuses(forged.want)
	}
	s := jerry.send(jerry.out("bob", "two"))
	jerry.until(s.MessageID, acked)
	if _, err := evil.Unwrap(s.SourceGateway, s.Encryption, s.Binding(), nil); !errors.Is(err, trust.ErrNotForHere) {
		w.Errorf("mallory can read it: %v", err)
	}
	w.put(key, was)
	c.want(w, "one", "two")
}

// letInLater: a gateway that was let in after a message was sent cannot read it. It says so, and one that can may have it again.
func letInLater(w *world) {
	jerry, bobby := w.node("jerry"), w.node("bobby")
	bobby.serve("bob", func(context.Context, *bus.Incoming) error { return nil })
	crash(w, bobby)
	id := jerry.send(jerry.out("bob", "old mail")).MessageID
	late := w.name("late")
	w.trust.only[late] = []string{w.name("bob")}
	w.trust.publish(w, late)
	var c tally
	n := w.node("late")
	n.serve("bob", c.handle)
	tr := jerry.until(id, dead)
	if tr.Facts.Class != envelope.ClassUnreadable || !strings.Contains(tr.Facts.Reason, "not encrypted for this gateway, "+late) || !strings.Contains(tr.Facts.Reason, bobby.Gateway()) {
		w.Errorf("told the sender %+v", tr.Facts)
	}
	jerry.until(jerry.sendTexts("bob", "new mail")[0], acked)
	n.stop()
	again := w.node("bobby")
	again.serve("bob", c.handle)
	if got, err := jerry.Redrive(w.ctx(), bus.DeadLetterFilter{Agent: w.name("bob"), IDs: []string{id}}, bus.RedriveOptions{By: "op"}); err != nil || len(got) != 1 || !got[0].Done {
		w.Errorf("redrive: %+v, %v", got, err)
	}
	again.waitFor(func(ev bus.Event) bool { return ev.Event == bus.EventAcked && ev.MessageID == id })
	c.want(w, "new mail", "old mail")
}

// sentTwice: a large message that is sent again under its id, because nobody knows whether it was accepted, is other bytes when it is
// encrypted again. Those must not take the place of the first ones.
func sentTwice(w *world) {
	jerry, bobby := w.node("jerry"), w.node("bobby")
	bobby.serve("bob", func(context.Context, *bus.Incoming) error { return nil })
	crash(w, bobby)
	o := jerry.out("bob", strings.Repeat("0123456789", 40_000))
	o.ID = envelope.NewID()
	jerry.send(o)
	jerry.send(o)
	var handled atomic.Int64
	again := w.node("bobby")
	again.serve("bob", func(_ context.Context, m *bus.Incoming) error {
		if string(m.Envelope().Payload) == string(o.Payload) {
			handled.Add(1)
		}
		return nil
	})
	if tr := jerry.until(o.ID, func(t bus.Track) bool { return t.Facts.Acked || t.Facts.Dead }); tr.Facts.Dead || handled.Load() != 1 {
		w.Errorf("handled %d times: %+v", handled.Load(), tr.Facts)
	}
}

// idsTellNothing: what a handler sends is named by its content, so that it is the same when the handler runs again; whoever
// guesses an encrypted content must not be able to see in the name that he is right.
func idsTellNothing(w *world) {
	jerry, bobby := w.node("jerry"), w.node("bobby")
	out := bus.Outgoing{To: envelope.Address{Agent: w.name("one")}, Payload: envelope.TextPayload("yes")}
	ids := make(chan string, 2)
	bobby.serve("one", func(context.Context, *bus.Incoming) error { return nil })
	bobby.serve("bob", func(_ context.Context, m *bus.Incoming) error {
		id, err := m.Send(out)
		if err != nil {
			return err
		}
		ids <- id
		if m.Attempt() == 1 {
			return errors.New("once more")
		}
		return nil
	})
	s := jerry.send(jerry.out("bob", "well?"))
	jerry.until(s.MessageID, acked)
	first, second := <-ids, <-ids
	h := sha256.Sum256(append([]byte(out.To.String()+"\x00\x00"), out.Payload...))
	if guess := envelope.DerivedID(s.MessageID, "send/1/"+hex.EncodeToString(h[:8])); first == guess || first != second {
		w.Errorf("ids %s and %s, guessed %s", first, second, guess)
	}
}

// newKeys: what was sent for an old key is read after another one followed.
func newKeys(w *world) {
	jerry, bobby := w.node("jerry"), w.node("bobby")
	var c tally
	bobby.serve("bob", c.handle)
	crash(w, bobby)
	old := w.trust.rings[bobby.Gateway()].ID()
	id := jerry.sendTexts("bob", "for the old key")[0]
	if made, err := w.trust.rings[bobby.Gateway()].Tend("another identity", time.Now()); err != nil || !made {
		w.Fatal(made, err)
	}
	if _, err := w.trust.rings[bobby.Gateway()].Tend(w.trust.signer(bobby.Gateway()).Key.ID(), time.Now()); err != nil {
		w.Fatal(err)
	}
	again := w.node("bobby")
	again.serve("bob", c.handle)
	jerry.until(id, acked)
	w.soon("the new key", func() bool {
		return slices.ContainsFunc(jerry.EncryptionKeys(), func(k bus.EncryptionKey) bool { return k.Gateway == bobby.Gateway() && k.Key != old })
	})
	s := jerry.send(jerry.out("bob", "for the new key"))
	jerry.until(s.MessageID, acked)
	if strings.Contains(fmt.Sprint(s.Encryption.Keys), old) {
		w.Error("the old key is used still")
	}
	c.want(w, "for the old key", "for the new key")
}

// clearRefused: where encryption is required, what is in the clear is refused; where it is not, only what is asked for is
// encrypted, and what comes of it.
func clearRefused(w *world) {
	some := func(level bus.Confidentiality) option {
		return func(c *bus.Config) {
			c.Confidential = func(capability string) bus.Confidentiality {
				if capability == "diagnosis" {
					return level
				}
				return bus.InTheClear
			}
		}
	}
	jerry := w.node("jerry", some(bus.Encrypt))
	lax := w.node("billy", some(bus.InTheClear), func(c *bus.Config) { c.Confidential = nil })
	bobby := w.node("bobby", some(bus.RequireEncrypted))
	var encrypted atomic.Int64
	bobby.serve("bob", func(_ context.Context, m *bus.Incoming) error {
		if m.Envelope().Encrypted() {
			encrypted.Add(1)
		}
		return m.Reply(m.Envelope().Payload)
	})
	send := func(n *node, capability string) bus.Track {
		o := n.out("bob", "text")
		o.Capability = capability
		s, err := n.AskAPI(w.ctx(), o)
		if err != nil {
			w.Fatal(err)
		}
		return n.until(s.MessageID, func(t bus.Track) bool { return t.Facts.Replied || t.Facts.Dead })
	}
	if tr := send(jerry, "weather"); tr.Reply == nil || tr.Reply.Encrypted() || encrypted.Load() != 0 {
		w.Errorf("in the clear: %+v", tr.Facts)
	}
	if tr := send(jerry, "diagnosis"); tr.Reply == nil || !tr.Reply.Encrypted() || tr.Reply.Text() != "text" || encrypted.Load() != 1 {
		w.Errorf("encrypted: %+v", tr.Facts)
	}
	tr := send(lax, "diagnosis")
	if tr.Facts.Class != envelope.ClassUnauthorised || !strings.Contains(tr.Facts.Reason, "mesh.confidentiality") {
		w.Errorf("in the clear, where that is refused: %+v", tr.Facts)
	}
}
