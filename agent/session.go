package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
)

// Where an agent's sessions and costs rest: in the room of its inbox ([bus.Bus.Room]), written by who owns it.
const (
	SessionsPrefix = "sessions/"
	CostsPrefix    = "costs/"
)

// Bounds of what is kept.
const (
	// maxTranscript is the bytes of a transcript in the store; the oldest turns go first.
	maxTranscript = 48 << 10
	// maxKeptResult is the bytes of a tool's result in it.
	maxKeptResult = 4 << 10
	// SessionRetention is how long a session lasts after its last message, CostRetention how long costs do.
	SessionRetention = 30 * 24 * time.Hour
	CostRetention    = 62 * 24 * time.Hour
	// maxPruned is how many entries one message clears away.
	maxPruned = 8
)

// Session is a conversation with an agent, as it rests in the store.
type Session struct {
	// Key is OpenClaw's form: agent:<id>:<conversation>.
	Key       string        `json:"key"`
	Updated   time.Time     `json:"updated"`
	Messages  []ChatMessage `json:"messages"`
	Forgotten int           `json:"forgotten,omitempty"` // messages that were left out for want of room
	// Sub is set of a sub-session ([CapabilitySpawn]).
	Sub *SubSession `json:"sub,omitempty"`
}

// SubSession is what a session knows of the run that it was begun for.
type SubSession struct {
	// Label is for people; SpawnedBy is the key of the session that asked for it.
	Label     string `json:"label,omitempty"`
	SpawnedBy string `json:"spawnedBy"`
	// Status is one of SubRunning, SubDone and SubTimeout as it was written; see [SubSession.StatusAt].
	Status string `json:"status"`
	// Until is when nobody waits for the run any more.
	Until time.Time `json:"until"`
}

// What the run of a sub-session can be.
const (
	SubRunning = "running"
	SubDone    = "done"
	SubTimeout = "timeout"
	// SubLost: it did not come to an end in its time. The conversation that asked for it was told why.
	SubLost = "lost"
)

// StatusAt is the status at a moment: a run that is not over when its time is, is lost.
func (s *SubSession) StatusAt(now time.Time) string {
	if s.Status == SubRunning && now.After(s.Until) {
		return SubLost
	}
	return s.Status
}

// Cost is what one conversation cost on one day (UTC), by model.
type Cost struct {
	Agent        string               `json:"agent"`
	Conversation string               `json:"conversation"`
	Day          string               `json:"day"`
	Models       map[string]ModelCost `json:"models"`
}

// ModelCost is calls, tokens and US dollars.
type ModelCost struct {
	Calls int64   `json:"calls"`
	Usage         // in, out
	USD   float64 `json:"usd"`
}

// session is a Session in work. A conversation's messages are handled one after another, so nobody else
// writes it meanwhile.
type session struct {
	rec      Session
	messages []ChatMessage
	// before is how many messages there were when the message at hand came.
	before int
	name   string
	cost   *Cost
	// foreign: the inbox is not this agent's (a task of a queue), so there is no place for a transcript.
	foreign bool
	// drop: the transcript is not kept.
	drop  bool
	stale []bus.RoomEntry
}

var roomName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,99}$`)

func openSession(ctx context.Context, id string, runs time.Duration, m *bus.Incoming) (*session, error) {
	conversation := m.Envelope().ConversationID
	name := conversation
	if !roomName.MatchString(name) {
		name = envelope.DerivedID(conversation, "session")
	}
	s := &session{name: name, rec: Session{Key: sessionKey(id, name)}}
	s.cost = &Cost{Agent: id, Conversation: conversation, Day: time.Now().UTC().Format(time.DateOnly), Models: map[string]ModelCost{}}
	term := m.Term()
	if s.foreign = term.Agent() != id; s.foreign {
		return s, nil
	}
	e, err := term.Get(ctx, SessionsPrefix+name)
	if err != nil {
		return nil, err
	}
	if e != nil {
		if err := json.Unmarshal(e.Value, &s.rec); err != nil {
			return nil, bus.Never(envelope.ClassPoison, fmt.Errorf("the transcript of %s is not readable: %w", s.rec.Key, err))
		}
	}
	s.messages = s.rec.Messages
	s.before = len(s.messages)
	known, err := term.Get(ctx, s.costName())
	if err != nil {
		return nil, err
	}
	if known != nil {
		_ = json.Unmarshal(known.Value, s.cost) // one that is not readable begins anew
		if s.cost.Models == nil {
			s.cost.Models = map[string]ModelCost{}
		}
	} else if s.before == 0 {
		s.stale = stale(ctx, term, time.Now(), runs)
	}
	return s, nil
}

// RunPrefix begins the conversation of an isolated run of a job.
const RunPrefix = "cron-"

// stale finds some of what is past its retention; runs is that of a job's isolated runs, 0: as of every other session. It is looked for when a conversation begins, so that the common
// way costs no listing; what cannot be listed waits for the next one.
func stale(ctx context.Context, term *bus.Term, now time.Time, runs time.Duration) []bus.RoomEntry {
	var out []bus.RoomEntry
	sessions, _ := term.List(ctx, SessionsPrefix)
	for _, e := range sessions {
		var s Session
		keep := SessionRetention
		if runs > 0 && strings.HasPrefix(strings.TrimPrefix(e.Name, SessionsPrefix), RunPrefix) {
			keep = min(runs, keep)
		}
		if json.Unmarshal(e.Value, &s) == nil && now.Sub(s.Updated) > keep && len(out) < maxPruned {
			out = append(out, bus.RoomEntry{Name: e.Name})
		}
	}
	turns, _ := term.List(ctx, TurnsPrefix)
	for _, e := range turns {
		var t turnRecord
		if json.Unmarshal(e.Value, &t) == nil && now.Sub(t.At) > SessionRetention && len(out) < 2*maxPruned {
			out = append(out, bus.RoomEntry{Name: e.Name})
		}
	}
	costs, _ := term.List(ctx, CostsPrefix)
	for _, e := range costs {
		day, _, _ := strings.Cut(strings.TrimPrefix(e.Name, CostsPrefix), "/")
		if at, err := time.Parse(time.DateOnly, day); err == nil && now.Sub(at) > CostRetention && len(out) < 3*maxPruned {
			out = append(out, bus.RoomEntry{Name: e.Name})
		}
	}
	return out
}

func (s *session) costName() string { return CostsPrefix + s.cost.Day + "/" + s.name }

func (s *session) add(m ChatMessage) {
	s.messages = append(s.messages[:len(s.messages):len(s.messages)], m)
}

// forgetTurn drops what the message at hand added.
func (s *session) forgetTurn() { s.messages = s.messages[:s.before] }

func (s *session) spent(c Choice, u Usage) {
	mc := s.cost.Models[c.Name]
	mc.Calls++
	mc.Usage, mc.USD = mc.Add(u), mc.USD+c.Price.Of(u)
	s.cost.Models[c.Name] = mc
}

func (s *session) costEntry() []bus.RoomEntry {
	if len(s.cost.Models) == 0 {
		return nil
	}
	return []bus.RoomEntry{{Name: s.costName(), Value: mustJSON(s.cost)}}
}

// keep writes transcript and costs with the ack.
func (s *session) keep(m *bus.Incoming, more ...bus.RoomEntry) error {
	if s.foreign {
		return nil
	}
	s.rec.Updated = time.Now().UTC()
	s.rec.Messages = shortForStore(s.messages, maxKeptResult)
	for len(mustJSON(s.rec)) > maxTranscript {
		next := nextTurn(s.rec.Messages)
		if next == 0 {
			// One turn alone is too much: its beginning and its end are what later questions are about.
			last := s.rec.Messages[len(s.rec.Messages)-1]
			first := s.rec.Messages[0]
			first.Text, last.Text = cutText(first.Text, maxTranscript/4), cutText(last.Text, maxTranscript/4)
			s.rec.Forgotten += len(s.rec.Messages) - 2
			s.rec.Messages = []ChatMessage{first, last}
			break
		}
		s.rec.Messages = s.rec.Messages[next:]
		s.rec.Forgotten += next
	}
	entries := append([]bus.RoomEntry{{Name: SessionsPrefix + s.name, Value: mustJSON(s.rec)}}, s.costEntry()...)
	if s.drop {
		entries[0].Value = nil
	}
	return m.Keep(append(append(entries, s.stale...), more...)...)
}

// saveCost writes what an attempt cost that is not acked. It must not keep the attempt's own error from being told.
func (s *session) saveCost(m *bus.Incoming) {
	if e := s.costEntry(); e != nil && !s.foreign {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		_ = m.Term().Write(ctx, e...)
	}
}

// reset deletes the transcript with the ack.
func (s *session) reset(m *bus.Incoming) error {
	if s.foreign {
		return nil
	}
	return m.Keep(bus.RoomEntry{Name: SessionsPrefix + s.name})
}

// shortForStore copies messages with long results shortened.
func shortForStore(msgs []ChatMessage, most int) []ChatMessage {
	out := append([]ChatMessage(nil), msgs...)
	for i, m := range out {
		out[i].Results = shortResults(m.Results, most)
	}
	return out
}

func shortResults(results []ToolResult, most int) []ToolResult {
	if len(results) == 0 {
		return nil
	}
	out := append([]ToolResult(nil), results...)
	for i, r := range out {
		out[i].Text = cutText(r.Text, most)
	}
	return out
}

func cutText(text string, most int) string {
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most], "") + shortened
}

// mustJSON encodes what always can be.
func mustJSON(v any) []byte {
	b, err := envelope.Encode(v)
	if err != nil {
		return []byte("{}")
	}
	return b
}

// Plus returns the sum.
func (c ModelCost) Plus(d ModelCost) ModelCost {
	return ModelCost{c.Calls + d.Calls, c.Add(d.Usage), c.USD + d.USD}
}
