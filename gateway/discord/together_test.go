package discord

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/gatemesh/gatemesh/gateway"
	"github.com/gatemesh/gatemesh/gateway/channeltest"
	"github.com/gatemesh/gatemesh/gateway/discord/discordtest"
)

// Whatever Discord answers, a caller who tries again what was not sent, and asks for what is unknown, has each post seen once and in order;
// also when another owner goes on with it.
func TestEveryPostIsSeenOnce(t *testing.T) {
	b := newBed(t)
	faults := []discordtest.PostFault{
		{Status: 500}, {Lose: true}, {Garbage: true}, {Hang: true}, {Status: 429, After: 3 * time.Millisecond}, {Status: 502, Page: true},
		{Status: 429, After: 3 * time.Millisecond, Global: true}, {Status: 408},
	}
	owners := []*channel{b.open(), b.open()}
	var want []string
	for i := range 10 * len(faults) {
		f := faults[i%len(faults)]
		b.fake.FailPosts(f)
		if i%3 == 0 {
			b.fake.FailPosts(faults[(i/3)%len(faults)]) // and the next attempt fails, too
		}
		p := newPost(fmt.Sprint("answer ", i))
		want = append(want, p.Text)
		owner := i % 2
		unknown := false
		for {
			ctx, cancel := context.WithTimeout(within(t), 100*time.Millisecond)
			var err error
			if unknown {
				var found bool
				_, found, err = owners[owner].Find(ctx, p)
				unknown = err != nil || !found
			} else {
				_, err = owners[owner].Post(ctx, p)
			}
			cancel()
			if err == nil {
				break
			}
			b.noSecret(err.Error())
			var ns *gateway.NotSentError
			if !errors.As(err, &ns) {
				unknown, owner = true, 1-owner
			} else if !sleep(within(t), ns.After) {
				t.Fatal("it takes too long")
			}
		}
	}
	var seen []string
	for _, m := range b.fake.Posted() {
		seen = append(seen, m.Content)
	}
	if !slices.Equal(seen, want) {
		t.Errorf("people see %d posts, want %d:\n%q", len(seen), len(want), seen)
	}
}

// The adapter as it is outside of tests.
func TestWithTheUsualTimes(t *testing.T) {
	v := newVendor(t)
	c, err := Factory().New(gateway.ChannelDeps{Account: "default", Settings: v.Settings(), Logger: hclog.NewNullLogger()})
	if err != nil {
		t.Fatal(err)
	}
	in := newIngress(&bed{t: t})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx, in) }()
	in.until(gateway.ChannelConnected)
	for _, kind := range []string{gateway.PeerChannel, gateway.PeerDM} {
		peer, _ := v.Peer(kind)
		for _, thread := range []string{"", "800000000000000001"} {
			if kind == gateway.PeerDM && thread != "" {
				continue
			}
			id := v.Say(channeltest.Said{Peer: peer, Thread: thread, Text: "hello", Mention: true})
			if e := in.find(id); e.Peer != peer || e.Thread != thread || !e.Mentioned || e.Text != "hello" {
				t.Errorf("%+v", e)
			}
			p := newPost("yes?")
			p.To = gateway.PostTarget{Peer: peer, Thread: thread, Message: id}
			if _, err := c.Post(ctx, p); err != nil {
				t.Error(err)
			}
			if last := v.Posts()[len(v.Posts())-1]; last.Peer != peer.ID || last.Thread != thread {
				t.Errorf("%+v", last)
			}
		}
	}
	v.Misbehave(channeltest.FaultDrop)
	peer, _ := v.Peer(gateway.PeerDM)
	in.find(v.Say(channeltest.Said{Peer: peer, Text: "after the cut"}))
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
