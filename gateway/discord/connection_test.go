package discord

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/gatemesh/gatemesh/gateway"
	"github.com/gatemesh/gatemesh/gateway/discord/discordtest"
)

func say(b *bed, text string) string { return b.fake.Say(discordtest.Message{Content: text}) }

func sayDM(b *bed, text string) string {
	return b.fake.Say(discordtest.Message{Channel: discordtest.AliceDM, Content: text})
}

func TestResumeBringsWhatWasMissed(t *testing.T) {
	b := newBed(t)
	r := b.connected()
	ids := []string{say(b, "one")}
	r.want(ids...)
	b.fake.Refuse(true)
	b.fake.Cut()
	ids = append(ids, say(b, "two"), sayDM(b, "three"))
	b.fake.Refuse(false)
	ids = append(ids, say(b, "four"))
	r.want(ids...)
	if n := b.fake.Counts(); n.Identifies != 1 || n.Resumes == 0 {
		t.Errorf("%+v: want one session, resumed", n)
	}
}

func TestManyCutsLoseNothing(t *testing.T) {
	b := newBed(t)
	r := b.connected()
	var ids []string
	for i := range 60 {
		ids = append(ids, say(b, fmt.Sprint("number ", i)))
		if i%7 == 0 {
			b.fake.Cut()
		}
		if i == 30 {
			b.fake.Forget()
			b.fake.Cut()
		}
	}
	r.want(ids...)
}

// What the bus did not take is told again, whatever becomes of the connection.
func TestNotAcceptedComesAgain(t *testing.T) {
	for _, forget := range []bool{false, true} {
		t.Run(fmt.Sprint("session forgotten ", forget), func(t *testing.T) {
			b := newBed(t)
			r := b.connected()
			first := say(b, "taken")
			r.want(first)
			stuck := make(chan struct{}, 100)
			r.setFail(func(ctx context.Context, _ gateway.ChannelEvent) error {
				stuck <- struct{}{}
				<-ctx.Done()
				return ctx.Err()
			})
			second := say(b, "not taken")
			third := say(b, "behind it")
			<-stuck
			r.setFail(nil)
			if forget {
				b.fake.Forget()
			}
			b.fake.Cut()
			r.want(first, second, third)
		})
	}
}

// A heartbeat names what the bus has, not what was read: the fake, as Discord may, keeps nothing that a heartbeat has named.
func TestHeartbeatsNameWhatTheBusHas(t *testing.T) {
	b := newBed(t)
	b.fake.Heartbeat(4 * time.Millisecond)
	r := b.connected()
	stuck := make(chan struct{}, 100)
	r.setFail(func(ctx context.Context, _ gateway.ChannelEvent) error {
		stuck <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	})
	id := say(b, "held back")
	<-stuck
	before := b.fake.Counts().Beats
	eventually(t, "some heartbeats", func() bool { return b.fake.Counts().Beats > before+3 })
	r.setFail(nil)
	b.fake.Cut()
	r.want(id)
	if n := b.fake.Counts().Identifies; n != 1 {
		t.Errorf("%d sessions, want 1", n)
	}
}

func TestAcceptIsTriedAgainOnTheSameConnection(t *testing.T) {
	b := newBed(t)
	r := b.connected()
	failures := 0
	r.setFail(func(context.Context, gateway.ChannelEvent) error {
		if failures++; failures < 4 {
			return errors.New("the store is away")
		}
		return nil
	})
	r.want(say(b, "one"), say(b, "two"))
	if n := b.fake.Counts().Connects; n != 1 {
		t.Errorf("%d connections, want 1", n)
	}
}

func TestInvalidSessionIsReadFromTheHistory(t *testing.T) {
	b := newBed(t)
	r := b.connected()
	ids := []string{say(b, "one"), sayDM(b, "in private")}
	r.want(ids...)
	b.fake.FailReads(discordtest.PostFault{Status: 500}, discordtest.PostFault{Status: 429, After: 10 * time.Millisecond}, discordtest.PostFault{Status: 502, Page: true},
		discordtest.PostFault{Status: 403, Page: true})
	b.fake.Refuse(true)
	b.fake.Forget()
	b.fake.Cut()
	missed := map[string]bool{sayDM(b, "two"): true, say(b, "three"): true, b.fake.Say(discordtest.Message{Channel: discordtest.Branch, Content: "four"}): true}
	b.fake.Refuse(false)
	eventually(t, "what was missed", func() bool { return len(r.ids()) == 5 })
	for _, id := range r.ids()[2:] {
		if !missed[id] {
			t.Errorf("%s was not missed", id)
		}
	}
	if n := b.fake.Counts(); n.Identifies != 2 {
		t.Errorf("%+v: want a second session", n)
	}
}

// Where the bot may not read, it asks once.
func TestHistoryThatIsNotForTheBot(t *testing.T) {
	b := newBed(t)
	r := b.connected()
	hidden := say(b, "in a private room, before the bot's time")
	r.want(hidden)
	b.fake.FailReads(discordtest.PostFault{Status: 403, Code: 50001})
	b.fake.Refuse(true)
	b.fake.Forget()
	b.fake.Cut()
	say(b, "not for the bot")
	b.fake.Refuse(false)
	eventually(t, "a second session", func() bool { return b.fake.Counts().Identifies == 2 })
	elsewhere := b.fake.Say(discordtest.Message{Channel: discordtest.Ops, Content: "behind the history"})
	r.find(elsewhere)
	b.fake.Forget()
	b.fake.Cut()
	eventually(t, "a third session", func() bool { return b.fake.Counts().Identifies == 3 })
	r.want(hidden, elsewhere, say(b, "after it"))
}

func TestMoreThanAPageWasMissed(t *testing.T) {
	b := newBed(t)
	r := b.connected()
	ids := []string{say(b, "known")}
	r.want(ids...)
	b.fake.Refuse(true)
	b.fake.Forget()
	b.fake.Cut()
	for i := range 250 {
		ids = append(ids, say(b, fmt.Sprint("missed ", i)))
	}
	b.fake.Refuse(false)
	r.want(ids...)
}

func TestSuccessor(t *testing.T) {
	t.Run("resumes the session of its predecessor", func(t *testing.T) {
		b := newBed(t)
		v := &memoryVault{}
		b.vault = v
		old := b.connected()
		first := sayDM(b, "one")
		old.want(first)
		eventually(t, "the position in the vault", func() bool { p := v.saved(); return p.Session != "" && p.Seq >= 3 })
		_ = old.stop()
		second := sayDM(b, "two")
		next := b.connected()
		next.want(second)
		if n := b.fake.Counts(); n.Identifies != 1 || n.Resumes != 1 {
			t.Errorf("%+v: want one session, resumed once", n)
		}
	})
	t.Run("reads the history when the session is gone", func(t *testing.T) {
		b := newBed(t)
		v := &memoryVault{}
		b.vault = v
		old := b.connected()
		first := sayDM(b, "one")
		old.want(first)
		eventually(t, "the position in the vault", func() bool { return len(v.saved().Rooms) == 1 })
		_ = old.stop()
		b.fake.Forget()
		second := sayDM(b, "two")
		next := b.connected()
		next.want(second)
	})
	t.Run("of another bot begins anew", func(t *testing.T) {
		b := newBed(t)
		v := &memoryVault{}
		b.vault = v
		other := newMemory("another token")
		other.setSession("session-of-another", b.fake.URL+"/nowhere")
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { defer close(done); other.keepSaved(ctx, v, time.Hour, nil) }()
		eventually(t, "the other's position", func() bool { return v.saved().Session != "" })
		cancel()
		<-done
		r := b.connected()
		r.want(say(b, "hello"))
		if n := b.fake.Counts(); n.Identifies != 1 || n.Connects != 1 {
			t.Errorf("%+v: want a new session at once", n)
		}
	})
	t.Run("without a vault reads the last minutes of the rooms", func(t *testing.T) {
		b := newBed(t)
		old := b.connected()
		_ = old.stop()
		before := b.fake.Say(discordtest.Message{Content: "long ago", ID: fmt.Sprint(snowflakeAt(time.Now().Add(-2 * lookBack)))})
		missed := say(b, "just now")
		next := b.connected()
		next.want(missed)
		if got := next.ids(); len(got) != 1 {
			t.Errorf("%v: %s is too old", got, before)
		}
	})
}

// Every session of a token gets every event, each under the same id.
func TestTwoSessions(t *testing.T) {
	b := newBed(t)
	one, two := b.connected(), b.connected()
	id := say(b, "to both")
	one.want(id)
	two.want(id)
	b.fake.Redeliver(id)
	next := say(b, "after the duplicate")
	one.want(id, next)
}

func TestConnectionsThatMustBeMadeAnew(t *testing.T) {
	for name, spoil := range map[string]func(*discordtest.Server){
		"op 7":                      (*discordtest.Server).AskReconnect,
		"invalid session, resume":   func(s *discordtest.Server) { s.Invalidate(true) },
		"invalid session, for good": func(s *discordtest.Server) { s.Invalidate(false) },
		"null":                      func(s *discordtest.Server) { s.Raw("null") },
		"half a frame":              func(s *discordtest.Server) { s.Raw(`{"op":0,"t":"MESSAGE_CREATE","s":`) },
		"a page":                    func(s *discordtest.Server) { s.Raw("<html>" + canary) },
		"a list":                    func(s *discordtest.Server) { s.Raw("[]") },
		"closed with 4000":          func(s *discordtest.Server) { s.CloseAll(4000) },
		"invalid seq":               func(s *discordtest.Server) { s.CloseAll(4007) },
		"rate limited":              func(s *discordtest.Server) { s.CloseAll(4008) },
		"session timed out":         func(s *discordtest.Server) { s.CloseAll(4009) },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			r := b.connected()
			first := say(b, "before")
			r.want(first)
			spoil(b.fake)
			second := say(b, "after")
			r.want(first, second)
			if n := b.fake.Counts(); n.Connects < 2 {
				t.Errorf("%+v: want another connection", n)
			} else if anew := strings.HasPrefix(name, "invalid seq") || strings.HasPrefix(name, "session timed out") || strings.HasSuffix(name, "for good"); anew != (n.Identifies > 1) {
				t.Errorf("%+v: want a new session: %v", n, anew)
			}
		})
	}
}

// What is a frame, but makes no sense, is left out; the connection goes on.
func TestOddEvents(t *testing.T) {
	b := newBed(t)
	r := b.connected()
	for _, raw := range []string{
		`{"op":0,"s":100,"t":"MESSAGE_CREATE","d":"` + canary + `"}`, `{"op":0,"s":101,"t":"MESSAGE_CREATE","d":null}`,
		`{"op":0,"s":102,"t":"GUILD_CREATE","d":{"channels":[null]}}`, `{"op":0,"s":103,"t":"NEW_THING","d":{}}`, `{"op":99,"d":{}}`, `{"op":1,"d":null}`,
	} {
		b.fake.Raw(raw)
	}
	r.want(say(b, "still there"))
	if n := b.fake.Counts().Connects; n != 1 {
		t.Errorf("%d connections, want 1", n)
	}
}

func TestZombie(t *testing.T) {
	b := newBed(t)
	b.fake.Heartbeat(20 * time.Millisecond)
	r := b.connected()
	b.fake.Deafen(true)
	eventually(t, "another connection", func() bool { return b.fake.Counts().Connects > 1 })
	b.fake.Deafen(false)
	r.want(say(b, "alive"))
}

func TestWhatAPersonMustMend(t *testing.T) {
	for code, fix := range map[int]string{4004: "token", 4014: "MESSAGE CONTENT INTENT", 4013: "update", 4011: "guilds", 4012: "update"} {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			b := newBed(t)
			b.fake.RefuseWith(code)
			err := b.open().Run(within(t), newIngress(b))
			if !gateway.IsBadCredentials(err) || !strings.Contains(err.Error(), fix) {
				t.Errorf("%v: want bad credentials, and a fix with %q", err, fix)
			}
		})
	}
	t.Run("HTTP 401", func(t *testing.T) {
		b := newBed(t)
		b.fake.Revoke()
		err := b.open().Run(within(t), newIngress(b))
		if !gateway.IsBadCredentials(err) {
			t.Errorf("%v: want bad credentials", err)
		}
		b.noSecret(fmt.Sprintf("%v %+v", err, err))
	})
	t.Run("HTTP 401 while the history is read", func(t *testing.T) {
		b := newBed(t)
		b.fake.FailReads(discordtest.PostFault{Status: 401})
		say(b, "missed")
		if err := b.open().Run(within(t), newIngress(b)); !gateway.IsBadCredentials(err) {
			t.Errorf("%v: want bad credentials", err)
		}
	})
	t.Run("revoked while connected", func(t *testing.T) {
		b := newBed(t)
		in := newIngress(b)
		done := make(chan error, 1)
		c := b.open()
		go func() { done <- c.Run(within(t), in) }()
		in.until(gateway.ChannelConnected)
		b.fake.Revoke()
		if err := <-done; !gateway.IsBadCredentials(err) {
			t.Errorf("%v: want bad credentials", err)
		}
	})
}

func TestForeign(t *testing.T) {
	t.Run("sessions that somebody else began", func(t *testing.T) {
		b := newBed(t)
		r := b.connected()
		b.fake.Starts(-2)
		eventually(t, "the alarm", func() bool { return len(r.alarms()) > 0 })
		if a := r.alarms()[0]; !strings.HasPrefix(a, "2 sessions") {
			t.Errorf("%q: want the number of sessions", a)
		}
	})
	t.Run("a post that no mesh made", func(t *testing.T) {
		b := newBed(t)
		r := b.connected()
		b.fake.Say(discordtest.Message{Content: "hi", Author: discordtest.User{ID: discordtest.BotID, Bot: true}, Nonce: "123"})
		b.fake.Say(discordtest.Message{Content: "again", Author: discordtest.User{ID: discordtest.BotID, Bot: true}, Nonce: "124"})
		r.want(say(b, "somebody"))
		if a := r.alarms(); len(a) != 1 {
			t.Errorf("%d alarms, want 1: %q", len(a), a)
		}
	})
	t.Run("no alarm at what is ours", func(t *testing.T) {
		b := newBed(t)
		r := b.connected()
		b.fake.Forget()
		b.fake.Cut()
		eventually(t, "a second session", func() bool { return b.fake.Counts().Identifies == 2 })
		other := b.open() // another gateway of the mesh
		if _, err := other.Post(within(t), newPost("from elsewhere")); err != nil {
			t.Fatal(err)
		}
		r.want(say(b, "after it"))
		if a := r.alarms(); len(a) > 0 {
			t.Errorf("alarms %q", a)
		}
	})
}

func TestRunEndsAtOnce(t *testing.T) {
	t.Run("while Discord is silent", func(t *testing.T) {
		b := newBed(t)
		b.fake.Refuse(true)
		r := b.run()
		r.until(gateway.ChannelReconnecting)
		if err := r.stop(); err != nil {
			t.Error(err)
		}
	})
	t.Run("while the bus is away", func(t *testing.T) {
		b := newBed(t)
		r := b.connected()
		stuck := make(chan struct{}, 1)
		r.setFail(func(ctx context.Context, _ gateway.ChannelEvent) error {
			select {
			case stuck <- struct{}{}:
			default:
			}
			<-ctx.Done()
			return ctx.Err()
		})
		say(b, "one")
		<-stuck
		if err := r.stop(); err != nil {
			t.Error(err)
		}
		eventually(t, "the connection's end", func() bool { return b.fake.Counts().Open == 0 })
	})
}

func TestTooManySessions(t *testing.T) {
	b := newBed(t)
	b.fake.Starts(-1000)
	r := b.run()
	eventually(t, "why it waits", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return len(r.states) > 0 && strings.Contains(r.states[len(r.states)-1].Detail, "sessions of today")
	})
	if n := b.fake.Counts().Connects; n != 0 {
		t.Errorf("%d connections, want none", n)
	}
}
