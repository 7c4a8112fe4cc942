package test

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/gateway"
	"github.com/gatemesh/gatemesh/gateway/discord/discordtest"
	"github.com/gatemesh/gatemesh/gateway/slack/slacktest"
)

// chatPerson is one conversation of somebody with an account. Each question has a text of its own, which is its answer.
type chatPerson struct {
	name, inbox string
	// say hands a question to the vendor; an error says that the vendor did not take it.
	say func(text string) error
	// heard is what the person saw of the account, in order.
	heard func() []string
	// again says that the vendor delivered a question more than once; nil: this vendor does not, or keeps the order.
	again func(text string) bool

	mu    sync.Mutex
	asked []string
	// took is when each question was taken by the vendor, and as what, for whoever looks for a lost one.
	took map[string]string
}

// maxOpen is how many questions a person has open before waiting: people do.
const maxOpen = 30

func (p *chatPerson) ask() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.asked)-len(p.heard()) > maxOpen {
		return
	}
	text := fmt.Sprintf("%s %d", p.name, len(p.asked))
	if p.say(text) == nil {
		p.asked = append(p.asked, text)
		p.note(text, "taken "+time.Now().UTC().Format("15:04:05.000"))
	}
}

// note adds what is known of a question. p.mu is held.
func (p *chatPerson) note(text, what string) {
	if p.took == nil {
		p.took = map[string]string{}
	}
	p.took[text] = strings.TrimSpace(p.took[text] + " " + what)
}

// burst asks three things at once.
func (p *chatPerson) burst() {
	for range 3 {
		p.ask()
	}
}

func (p *chatPerson) questions() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.asked...)
}

// everybody brings the people: two in Slack, one in Discord, one in WhatsApp, two on our own page.
func (m *chatMesh) everybody() {
	m.t.Helper()
	for _, who := range []string{slacktest.Alice, slacktest.Bob} {
		var mu sync.Mutex
		keys := map[string]string{}
		m.people = append(m.people, &chatPerson{
			name: "slack-" + who, inbox: "channel-slack-default",
			say: func(text string) error {
				channel, ts := m.slack.Say(slacktest.Said{Channel: who, Text: text})
				mu.Lock()
				defer mu.Unlock()
				keys[text] = slacktest.Key(channel, ts, "")
				return nil
			},
			again: func(text string) bool {
				mu.Lock()
				defer mu.Unlock()
				return m.slack.Deliveries(keys[text]) > 1
			},
			heard: func() (list []string) {
				for _, p := range m.slack.Posts() {
					if p.User == who {
						list = append(list, p.Text)
					}
				}
				return list
			},
		})
	}
	m.people = append(m.people, &chatPerson{
		name: "discord", inbox: "channel-discord-default",
		say: func(text string) error {
			m.discord.Say(discordtest.Message{Channel: discordtest.AliceDM, Content: text})
			return nil
		},
		heard: func() (list []string) {
			for _, p := range m.discord.Posted() {
				if p.Channel == discordtest.AliceDM {
					list = append(list, p.Content)
				}
			}
			return list
		},
	})
	ann, err := m.whatsapp.Person(m.t.Context(), chatAnn)
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { _ = ann.Close() })
	var inWhatsApp *chatPerson
	inWhatsApp = &chatPerson{
		name: "whatsapp", inbox: "channel-whatsapp-default",
		say: func(text string) error {
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			id, err := ann.Say(ctx, gateway.ChannelPeer{Kind: gateway.PeerDM, ID: chatBot + "@s.whatsapp.net"}, text)
			inWhatsApp.note(text, "as "+id)
			return err
		},
		heard: func() (list []string) {
			for _, e := range ann.Heard() {
				list = append(list, e.Text)
			}
			return list
		},
	}
	m.people = append(m.people, inWhatsApp)
	for i := range 2 {
		m.people = append(m.people, m.visitor(i))
	}
}

// chatVisitor is a page of our own: it goes to another gateway when one does not answer, and sends again what it does not see in the conversation.
type chatVisitor struct {
	m            *chatMesh
	conversation string

	mu      sync.Mutex
	pending []gateway.ChatSaid
	entries []gateway.ChatEntry
	more    chan struct{} // capacity 1
	// heardSome, if it is there, has a token for each word of the agent.
	heardSome chan struct{}
}

// say has the page say something; a token in more wakes it.
func (v *chatVisitor) say(text string) {
	v.mu.Lock()
	v.pending = append(v.pending, gateway.ChatSaid{ID: envelope.NewID(), Text: text})
	v.mu.Unlock()
	select {
	case v.more <- struct{}{}:
	default:
	}
}

// agent is what the page shows of the agent.
func (v *chatVisitor) agent() (list []string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, e := range v.entries {
		if e.Who == "agent" {
			list = append(list, e.Text)
		}
	}
	return list
}

func (m *chatMesh) visitor(i int) *chatPerson {
	v := &chatVisitor{m: m, conversation: envelope.NewID(), more: make(chan struct{}, 1)}
	ctx, stop := context.WithCancel(context.Background())
	over := make(chan struct{})
	go func() {
		defer close(over)
		for at := i; ctx.Err() == nil; at++ {
			v.visit(ctx, m.nodes[at%3].address())
		}
	}()
	m.t.Cleanup(func() {
		stop()
		<-over
	})
	return &chatPerson{
		name: fmt.Sprintf("webchat-%d", i), inbox: "channel-webchat-default",
		say: func(text string) error {
			v.say(text)
			return nil
		},
		heard: v.agent,
	}
}

// visit is one connection of the page.
func (v *chatVisitor) visit(ctx context.Context, url string) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	v.mu.Lock()
	after := uint64(0)
	if len(v.entries) > 0 {
		after = v.entries[len(v.entries)-1].Seq
	}
	v.mu.Unlock()
	dial, end := context.WithTimeout(ctx, 2*time.Second)
	c, _, err := websocket.Dial(dial, fmt.Sprintf("ws%s/v1/webchat?conversation=%s&after=%d", strings.TrimPrefix(url, "http"), v.conversation, after), &websocket.DialOptions{Subprotocols: []string{gateway.StreamProtocol}})
	end()
	if err != nil {
		pause := time.NewTimer(100 * time.Millisecond)
		defer pause.Stop()
		select {
		case <-pause.C:
		case <-ctx.Done():
		}
		return
	}
	defer func() { _ = c.CloseNow() }()
	go func() {
		defer cancel()
		v.talk(ctx, c)
	}()
	for {
		_, b, err := c.Read(ctx)
		if err != nil {
			return
		}
		var f gateway.ChatFrame
		if json.Unmarshal(b, &f) != nil {
			return
		}
		v.mu.Lock()
		switch {
		case f.Gap || f.Refused != "" && f.Final:
			v.m.t.Errorf("webchat: %s", b)
		case f.Entry != nil:
			v.entries = append(v.entries, *f.Entry)
			if v.heardSome != nil && f.Entry.Who == "agent" {
				v.heardSome <- struct{}{}
			}
		}
		if f.Entry != nil || f.Accepted != "" {
			for i, s := range v.pending {
				if s.ID == f.Accepted || f.Entry != nil && s.ID == f.Entry.ID {
					v.pending = append(v.pending[:i:i], v.pending[i+1:]...)
					break
				}
			}
		}
		v.mu.Unlock()
	}
}

// talk says what is pending, in order, each until it is known to be safe; a gateway that does not take it in 5 s is left.
func (v *chatVisitor) talk(ctx context.Context, c *websocket.Conn) {
	said := map[string]time.Time{}
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	for {
		v.mu.Lock()
		pending := append([]gateway.ChatSaid(nil), v.pending...)
		v.mu.Unlock()
		for _, s := range pending {
			at, before := said[s.ID]
			if before {
				if time.Since(at) > 5*time.Second {
					return
				}
				continue
			}
			b, err := json.Marshal(s)
			if err != nil {
				panic(err)
			}
			if c.Write(ctx, websocket.MessageText, b) != nil {
				return
			}
			said[s.ID] = time.Now()
		}
		select {
		case <-v.more:
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// chatter has everybody ask now and then, until stop is called; it waits.
func (m *chatMesh) chatter(t *testing.T) (stop func()) {
	t.Helper()
	ctx, end := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for i, p := range m.people {
		rng := rand.New(rand.NewPCG(uint64(i), 7))
		wg.Go(func() {
			for {
				pause := time.NewTimer(time.Duration(200+rng.IntN(800)) * time.Millisecond)
				select {
				case <-pause.C:
				case <-ctx.Done():
					pause.Stop()
					return
				}
				p.ask()
			}
		})
	}
	return func() {
		end()
		wg.Wait()
	}
}
