package agent

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
)

// What an agent that thinks sends itself. A run (sessions_spawn) is a message of the agent to itself, in a conversation of its own, which leaves in the
// transaction that acks the turn that asked for it. Its handler asks whoever is to do the work, in a sub-session, and waits: the question is recorded, so a
// takeover goes on waiting and asks nobody twice. What came of it, also that nothing did, is announced by another message to itself, in the
// conversation that asked, sent in the transaction that acks the run: once.
const (
	CapabilitySpawn    = "sessions.spawn"
	CapabilityRun      = "sessions.run"
	CapabilityAnnounce = "sessions.announce"
)

// Waits reports whether the handling of a message does nothing but wait for others: it needs no place beside those that work, and no bound but its lifetime.
func Waits(e *envelope.Envelope) bool { return e.Capability == CapabilitySpawn && toItself(e) }

// Continues reports whether a capability is one of those by which an agent goes on with its own work: what it says to itself under them needs no rule, also when its
// inbox has another owner by now.
func Continues(capability string) bool {
	return capability == CapabilitySpawn || capability == CapabilityRun || capability == CapabilityAnnounce
}

func toItself(e *envelope.Envelope) bool {
	return e.InReplyTo == "" && e.SourceAgent == e.TargetAgent
}

const (
	// subPrefix begins the conversations of sub-sessions.
	subPrefix = "subagent-"
	// maxSpawns is how many runs one message may begin.
	maxSpawns = 8
	// maxRounds is how often runs may follow from announcements of runs before somebody else says something.
	maxRounds = 5
	maxTask   = 64 << 10
	maxLabel  = 120
	// A run without a time of its own is waited for defaultRunLife; one with it, queueLife longer: it may have to wait for its turn.
	defaultRunLife = time.Hour
	queueLife      = 5 * time.Minute
	longestRun     = 23 * time.Hour
	// announceLife is how long an announcement may wait for its turn.
	announceLife = time.Hour
)

// subPolicy is what a sub-session may not use: OpenClaw's rule.
var subPolicy = ToolPolicy{Deny: []string{"group:sessions"}}

// errRunTime is why a run is stopped.
var errRunTime = errors.New("the time of the run is over (runTimeoutSeconds)")

// silent are answers by which an agent says that an announcement is for nobody else.
var silent = []string{"ANNOUNCE_SKIP", "NO_REPLY"}

// isSub reports whether a message belongs to a sub-session. Whoever writes into one is bound by its rules.
func isSub(m *bus.Incoming) bool { return strings.HasPrefix(m.Envelope().ConversationID, subPrefix) }

// sessionKey is OpenClaw's form of a session's key; of a sub-session agent:<id>:subagent:<uuid>. [SessionName] is the way back.
func sessionKey(id, name string) string {
	if rest, ok := strings.CutPrefix(name, subPrefix); ok {
		name = "subagent:" + rest
	}
	return "agent:" + id + ":" + name
}

// SessionName is the name in the store of what stands behind agent:<id>: in a session's key.
func SessionName(conversation string) string {
	if rest, ok := strings.CutPrefix(conversation, "subagent:"); ok {
		return subPrefix + rest
	}
	return conversation
}

// spawnOrder is the payload of CapabilitySpawn.
type spawnOrder struct {
	Text  string `json:"text"` // for people
	Agent string `json:"agent"`
	runOrder
	// Conversation is the one that asked, and Place the chat that it was asked in; nil: in none.
	Conversation string `json:"conversation"`
	Place        *Place `json:"place,omitempty"`
	// Round is 1 for what anybody else caused, more for what an announcement did.
	Round int `json:"round"`
}

// runOrder is what the one who does the work is told.
type runOrder struct {
	Task      string  `json:"task"`
	Label     string  `json:"label,omitempty"`
	Model     string  `json:"model,omitempty"`
	Seconds   float64 `json:"seconds,omitempty"`
	Delete    bool    `json:"delete,omitempty"`
	SpawnedBy string  `json:"spawnedBy"`
}

// bound gives a run its time.
func (r *runOrder) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	if r == nil || r.Seconds <= 0 {
		return ctx, func() {}
	}
	return context.WithTimeoutCause(ctx, time.Duration(r.Seconds*float64(time.Second)), errRunTime)
}

// runPayload is the payload of the question in a sub-session: a text for whatever runner, and the order for one that thinks.
type runPayload struct {
	Text string    `json:"text"`
	Run  *runOrder `json:"run"`
}

// runAnswer is the answer of a run that was stopped.
type runAnswer struct {
	Text   string `json:"text"`
	Status string `json:"status"`
}

// announcement is the payload of CapabilityAnnounce. Its text is what the model reads.
type announcement struct {
	Text   string `json:"text"`
	RunID  string `json:"runId"`
	Status string `json:"status"`
	Place  *Place `json:"place,omitempty"`
	Round  int    `json:"round"`
}

// spawned is a run that begins when the turn is over.
type spawned struct {
	RunID string     `json:"runId"`
	Order spawnOrder `json:"order"`
}

// send has the run begin with the ack of the message.
func (s *spawned) send(m *bus.Incoming) error {
	life := defaultRunLife
	if d := time.Duration(s.Order.Seconds * float64(time.Second)); d > 0 {
		life = d + queueLife
	}
	_, err := m.Send(bus.Outgoing{ID: s.RunID, To: envelope.Address{Agent: m.Term().Agent()}, Capability: CapabilitySpawn, ConversationID: s.RunID,
		Payload: mustJSON(s.Order), TTL: life, Branch: true})
	return err
}

func (t *thinker) spawnTools() []Tool {
	return []Tool{{ToolDef: ToolDef{"sessions_spawn", "Starts a task in a sub-session of its own and returns at once. The task begins when this turn is over; its result is announced to this conversation: do not wait or ask for it.", json.RawMessage(`{
		"type": "object", "required": ["task"], "properties": {
			"task": {"type": "string", "description": "What is to be done, with all that is needed to know: nothing else of this conversation is seen there"},
			"label": {"type": "string", "description": "A short name for it"},
			"agentId": {"type": "string", "description": "Another agent that is to do it, if you may have it do things; you, if left out"},
			"model": {"type": "string", "description": "Another one of the agent's models, as provider/model"},
			"runTimeoutSeconds": {"type": "number", "description": "Stops the run after so many seconds"},
			"cleanup": {"type": "string", "enum": ["keep", "delete"], "description": "Whether the transcript is kept; keep, if left out"}}}`)}, Effect: EffectMesh, Run: t.spawn}}
}

// spawnResult is what sessions_spawn tells the model.
type spawnResult struct {
	Status  string `json:"status"`
	RunID   string `json:"runId,omitempty"`
	Session string `json:"childSessionKey,omitempty"`
	Error   string `json:"error,omitempty"`
}

func notSpawned(status, format string, args ...any) (ToolOutput, error) {
	return ToolOutput{Text: string(mustJSON(spawnResult{Status: status, Error: fmt.Sprintf(format, args...)})), Failed: true, Undone: true}, nil
}

// spawn is sessions_spawn.
func (t *thinker) spawn(_ context.Context, c *Call) (ToolOutput, error) {
	var in struct {
		Task    string  `json:"task"`
		Label   string  `json:"label"`
		Agent   string  `json:"agentId"`
		Model   string  `json:"model"`
		Seconds float64 `json:"runTimeoutSeconds"`
		Cleanup string  `json:"cleanup"`
	}
	if err := c.Decode(&in); err != nil {
		return Failed("%v", err), nil
	}
	m, tn := c.Message, c.turn
	e := m.Envelope()
	to, round := cmp.Or(in.Agent, t.spec.ID), 1
	a, announced := announcedBy(e)
	if announced {
		round = a.Round + 1
	}
	switch {
	case strings.TrimSpace(in.Task) == "" || len(in.Task) > maxTask:
		return notSpawned("error", "wrong arguments: task is what is to be done, at most %d KiB", maxTask>>10)
	case in.Seconds < 0 || in.Seconds > longestRun.Seconds():
		return notSpawned("error", "wrong arguments: runTimeoutSeconds is %g, want 0 to %g", in.Seconds, longestRun.Seconds())
	case in.Cleanup != "" && in.Cleanup != "keep" && in.Cleanup != "delete":
		return notSpawned("error", "wrong arguments: cleanup is keep or delete")
	case isSub(m):
		return notSpawned("forbidden", "a sub-session cannot start another one")
	case tn.s.foreign:
		return notSpawned("forbidden", "a task of a queue has no conversation that a result could be announced to")
	case e.Terminal:
		return notSpawned("forbidden", "the message at hand is an answer, and must not cause work")
	case !t.maySpawn(to):
		return notSpawned("forbidden", "%s is not an agent that you may have do things (subagents.allowAgents)", clip(to, 80))
	case to != t.spec.ID && !slices.ContainsFunc(t.deps.Directory.Agents(""), func(a bus.AgentInfo) bool { return a.ID == to }):
		return notSpawned("error", "there is no agent %s: agents_list names them", clip(to, 80))
	case in.Model != "" && to == t.spec.ID && !slices.ContainsFunc(t.chain.Choices, func(x Choice) bool { return x.Name == in.Model }):
		return notSpawned("error", "%s is none of your models", clip(in.Model, 80))
	case len(tn.rec.Spawns) >= maxSpawns:
		return notSpawned("error", "one message may start %d runs", maxSpawns)
	case round > maxRounds:
		return notSpawned("forbidden", "runs have followed from results of runs %d times: somebody has to say something first", maxRounds)
	}
	sp := spawned{RunID: envelope.DerivedID(e.MessageID, fmt.Sprintf("spawn/%d", len(tn.rec.Spawns))), Order: spawnOrder{
		Text: "run: " + clip(cmp.Or(in.Label, in.Task), maxLabel), Agent: to, Conversation: e.ConversationID, Round: round,
		runOrder: runOrder{Task: in.Task, Label: clip(in.Label, maxLabel), Model: in.Model, Seconds: in.Seconds, Delete: in.Cleanup == "delete", SpawnedBy: c.Session},
	}}
	if announced {
		sp.Order.Place = a.Place
	} else if t.deps.Place != nil {
		if place, ok := t.deps.Place(e); ok {
			sp.Order.Place = &place
		}
	}
	if err := sp.send(m); err != nil {
		if out, known := unanswered(err); known {
			return notSpawned("error", "%s", out.Error)
		}
		return ToolOutput{}, fmt.Errorf("start a run: %w", err)
	}
	tn.rec.Spawns = append(tn.rec.Spawns, sp)
	return ToolOutput{Text: string(mustJSON(spawnResult{Status: "accepted", RunID: sp.RunID, Session: sessionKey(to, subPrefix+sp.RunID)}))}, nil
}

// maySpawn reports whether the agent may have another one do things: itself always.
func (t *thinker) maySpawn(agent string) bool {
	return agent == t.spec.ID || slices.ContainsFunc(t.spec.SpawnAgents, func(p string) bool { return matchTool(p, agent) })
}

// supervise is a run: it has the work done, and announces what came of it.
func (t *thinker) supervise(ctx context.Context, m *bus.Incoming) error {
	e := m.Envelope()
	var o spawnOrder
	switch {
	case !Waits(&e.Envelope):
		return bus.Never(envelope.ClassUnauthorised, fmt.Errorf("%s is what an agent says to itself, not for %s", CapabilitySpawn, e.SourceAgent))
	case json.Unmarshal(e.Payload, &o) != nil || o.Agent == "" || o.Conversation == "":
		return bus.Never(envelope.ClassPoison, errors.New("the order of a run is not readable"))
	}
	status, result, err := t.run(ctx, m, &o)
	if err != nil {
		return err
	}
	name := cmp.Or(o.Label, o.Task)
	a := announcement{RunID: e.MessageID, Status: status, Place: o.Place, Round: o.Round, Text: fmt.Sprintf(
		"[The run %q that you started has ended: %s. Run %s, session %s.]\n%s\n[Tell whom you talk with what matters of it, in your own words. If nothing does, answer only %s.]",
		clip(name, maxLabel), status, e.MessageID, sessionKey(o.Agent, subPrefix+e.MessageID), cutMiddle(result, MaxToolOutput), silent[0])}
	if _, err := m.Send(bus.Outgoing{To: envelope.Address{Agent: t.spec.ID}, Capability: CapabilityAnnounce, ConversationID: o.Conversation,
		Payload: mustJSON(a), TTL: announceLife, Branch: true}); err != nil {
		return fmt.Errorf("announce the run %s: %w", e.MessageID, err)
	}
	return nil
}

// run has the work of a run done. Its error is the bus's: the message is handled again.
func (t *thinker) run(ctx context.Context, m *bus.Incoming, o *spawnOrder) (status, result string, err error) {
	e := m.Envelope()
	if !t.maySpawn(o.Agent) {
		return "forbidden", fmt.Sprintf("%s is not an agent that may be had do things any more (subagents.allowAgents)", o.Agent), nil
	}
	left := time.Until(e.ExpiresAt())
	end := e.ExpiresAt().Add(-min(10*time.Second, left/10)) // so that there is time to tell
	wait, cancel := context.WithDeadline(ctx, end)
	defer cancel()
	question := bus.Outgoing{To: envelope.Address{Agent: o.Agent}, ConversationID: subPrefix + e.MessageID, Branch: true,
		Payload: mustJSON(runPayload{Text: o.Task, Run: &o.runOrder}), TTL: max(time.Until(end).Truncate(time.Second), time.Second)}
	if o.Agent == t.spec.ID {
		question.Capability = CapabilityRun
	}
	if b := m.Budget(); b != nil {
		question.Budget = b.Split(2)[0] // the other half is for telling of it
	}
	answer, err := m.Ask(wait, question)
	if err == nil {
		var stopped runAnswer
		if json.Unmarshal(answer.Payload, &stopped) == nil && stopped.Status == SubTimeout {
			return SubTimeout, stopped.Text, nil
		}
		return "ok", Text(answer.Payload), nil
	}
	if ctx.Err() != nil {
		return "", "", context.Cause(ctx)
	}
	out, known := unanswered(err)
	switch {
	case !known:
		return "", "", fmt.Errorf("have %s do the run: %w", o.Agent, err)
	case out.Status == "timeout":
		return SubTimeout, "There was no answer in the time of the run; known is: " + noAnswerFacts(err), nil
	}
	return "error", out.Error, nil
}

func noAnswerFacts(err error) string {
	var e *bus.NoAnswerError
	if errors.As(err, &e) {
		return e.Facts.String()
	}
	return "nothing"
}

// beginRun writes down that the run of a sub-session goes on; nil: the message is not one of a run.
func (t *thinker) beginRun(ctx context.Context, m *bus.Incoming, s *session) (*runOrder, error) {
	if !isSub(m) || s.foreign {
		return nil, nil //nolint:nilnil // documented
	}
	e := m.Envelope()
	var p runPayload
	if readable := json.Unmarshal(e.Payload, &p) == nil; !readable || p.Run == nil {
		return nil, nil //nolint:nilnil // somebody says something in it
	}
	s.rec.Sub = &SubSession{Label: clip(p.Run.Label, maxLabel), SpawnedBy: clip(p.Run.SpawnedBy, 200), Status: SubRunning, Until: e.ExpiresAt().UTC()}
	rec := s.rec
	rec.Updated = time.Now().UTC()
	if err := m.Term().Write(ctx, bus.RoomEntry{Name: SessionsPrefix + s.name, Value: mustJSON(rec)}); err != nil {
		return nil, err
	}
	s.rec.Sub.Status, s.drop = SubDone, p.Run.Delete
	return p.Run, nil
}

// runOver is the end of a run that took too long: what it did so far is forgotten, but for what it cost.
func (t *thinker) runOver(tn *turn, run *runOrder) error {
	tn.s.forgetTurn()
	tn.s.rec.Sub.Status = SubTimeout
	if err := tn.s.keep(tn.m, tn.over()...); err != nil {
		return err
	}
	return tn.m.Reply(mustJSON(runAnswer{Text: fmt.Sprintf("The run was stopped after %g seconds.", run.Seconds), Status: SubTimeout}))
}

// announcedBy reads an announcement; false: the message is none of the agent's own.
func announcedBy(e *envelope.Sealed) (a announcement, ok bool) {
	ok = e.Capability == CapabilityAnnounce && toItself(&e.Envelope) && json.Unmarshal(e.Payload, &a) == nil
	return a, ok
}

// post has what an agent makes of an announcement said in the chat that asked for the run, with the ack.
func (t *thinker) post(m *bus.Incoming, text string) error {
	a, ok := announcedBy(m.Envelope())
	if !ok || a.Place == nil || t.deps.Post == nil || slices.Contains(silent, strings.TrimSpace(text)) {
		return nil
	}
	out := t.deps.Post(*a.Place, text)
	out.Branch = true // the chat is where all of it came from
	if _, err := m.Send(out); err != nil {
		return fmt.Errorf("have the result of run %s posted by %s: %w", a.RunID, a.Place.Inbox, err)
	}
	return nil
}
