package whatsapp_test

import (
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/gatemesh/gatemesh/gateway"
	"github.com/gatemesh/gatemesh/gateway/whatsapp/whatsapptest"
)

// Two people write to each other at the same time, as an account does that answers one message while the next one comes. Both directions go
// through one Signal session: were it stored by one from what it was before the other, a key would encrypt twice, and the receiver drops the
// second message without a word.
func TestBothWaysAtOnce(t *testing.T) {
	s, err := whatsapptest.Start("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	bot, err := s.Person(t.Context(), botPhone)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = bot.Close() })
	ann, err := s.Person(t.Context(), annPhone)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ann.Close() })
	say := func(from, to *whatsapptest.Person, i int) error {
		_, err := from.Say(t.Context(), gateway.ChannelPeer{Kind: gateway.PeerDM, ID: to.JID()}, fmt.Sprint(i))
		return err
	}
	// They know each other: a session that both begin at once is another matter.
	if err := errors.Join(say(ann, bot, 0), bot.Wait(within(t), 1), say(bot, ann, 0), ann.Wait(within(t), 1)); err != nil {
		t.Fatal(err)
	}
	const n = 400
	var wg sync.WaitGroup
	for from, to := range map[*whatsapptest.Person]*whatsapptest.Person{bot: ann, ann: bot} {
		wg.Go(func() {
			for i := 1; i < n; i++ {
				if err := say(from, to, i); err != nil {
					t.Errorf("%s: %v", from.Phone, err)
					return
				}
			}
		})
	}
	wg.Wait()
	for _, p := range []*whatsapptest.Person{bot, ann} {
		if err := p.Wait(within(t), n); err != nil {
			t.Error(err)
		}
		for i, e := range p.Heard() {
			if e.Text != fmt.Sprint(i) {
				t.Fatalf("%s hears %q as number %d", p.Phone, e.Text, i)
			}
		}
	}
}
