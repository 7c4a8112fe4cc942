package bustest

import (
	"errors"
	"fmt"
	"strings"
)

// Mutation is one deliberate mistake in the protocol. The model finds each: else it would show nothing.
type Mutation uint8

// The mutations; the zero value is the protocol as it is.
const (
	NoMutation Mutation = iota
	ReceiptApart
	ReplyApart
	NoCheckSession
	NoCompareAndSwap
	BlindRetry
	LostIsDone
	DedupeForgotten
	RecordsForgotten
	CursorBeforeRecord
	CursorSkipsOpen
	BellOverwritten
	SweepAhead
	AcceptedEarly
	NoOrder
	RecordStays
	RedriveKeepsDead
	AnswerApart
	QuestionApart
	RecordOvertakes
	SameQuestion
	CancelUnwritten
	RedriveOvertakes
)

// Mutations are all of them, by name.
var Mutations = map[Mutation]string{
	ReceiptApart:       "the receipt is not in the transaction of the cursor",
	ReplyApart:         "the reply has a transaction of its own",
	NoCheckSession:     "an owner's transaction does not check its lock",
	NoCompareAndSwap:   "transactions do not compare before they swap",
	BlindRetry:         "a transaction without an answer is repeated unread",
	LostIsDone:         "a transaction without an answer counts as done",
	DedupeForgotten:    "a new owner does not read the receipts",
	RecordsForgotten:   "a new owner does not read the pending records",
	CursorBeforeRecord: "the cursor moves before the pending record is written",
	CursorSkipsOpen:    "the cursor moves over what is not taken",
	BellOverwritten:    "an entry that is only in the bell is written over",
	SweepAhead:         "slots are deleted before they are taken",
	AcceptedEarly:      "accepted is said before it is written",
	NoOrder:            "messages of a conversation do not wait for each other",
	RecordStays:        "the pending record outlives the dead letter's writing",
	RedriveKeepsDead:   "a redrive leaves the dead letter",
	AnswerApart:        "an answer is taken without being kept",
	QuestionApart:      "the question has a transaction of its own",
	SameQuestion:       "a redriven message asks under the id of its last life",
	CancelUnwritten:    "a cancelled message is only forgotten",
	RedriveOvertakes:   "a message that was cancelled behind others is redriven before those have records",
	RecordOvertakes:    "a message that waits is recorded before the one that it waits for",
}

// What a step, not a state, can break.
const (
	brokenFence uint8 = 1 << iota
	brokenOrder
	brokenGap
	brokenAgain
)

// Exploration is what visiting every state came to.
type Exploration struct {
	States, Transitions, Depth int
	// Broken says what does not hold in the state that the trace leads to; empty: all does.
	Broken string
	// Trace is a shortest way there.
	Trace []string
	// views are the steps that a single message's view made, and ends those views that were final.
	views map[[2]modelView]bool
	ends  map[modelView]bool
}

// Err is nil when everything holds, and else tells the whole story.
func (e *Exploration) Err() error {
	if e.Broken == "" {
		return nil
	}
	return errors.New(e.Broken + ":\n  " + strings.Join(e.Trace, "\n  "))
}

// modelView is what the store says of one message, as an observer of the real store can read it too.
type modelView struct {
	Place            uint8 // modelNone, modelQueued (in the lane), a record's state + modelKept, modelAcked, modelDead
	Retries, Crashes uint8
	Replies, Asked   uint8
}

// modelKept is added to the state that a record holds.
const modelKept = 16

func (v modelView) String() string {
	place := map[uint8]string{modelNone: "nowhere", modelQueued: "in its lane", modelKept + modelQueued: "recorded as queued", modelKept + modelDelivered: "recorded as delivered", modelAcked: "acked", modelDead: "dead letter"}[v.Place]
	return fmt.Sprintf("%s (%d retries, %d crashes, %d replies, %d questions)", place, v.Retries, v.Crashes, v.Replies, v.Asked)
}

func (s *modelState) view(i int) modelView {
	msg := &s.Msg[i]
	v := modelView{Replies: msg.Replies, Asked: msg.Asked}
	switch {
	case msg.Dead:
		v.Place = modelDead
	case msg.Receipt == modelAcked:
		v.Place = modelAcked
	case msg.Rec.Version != 0:
		v.Place, v.Retries, v.Crashes = modelKept+msg.Rec.State, msg.Rec.Retries, msg.Rec.Crashes
	case s.sent(i):
		v.Place = modelQueued
	}
	return v
}

func (s *modelState) sent(i int) bool {
	for _, held := range s.Lane[:s.Bell] {
		if int(held) == i+1 {
			return true
		}
	}
	return false
}

// broken says which invariant a state breaks, if one.
func (m *Model) broken(s *modelState) string {
	for bit, what := range map[uint8]string{
		brokenFence: "the store took what a deposed owner wrote", brokenOrder: "a message was acked before an older one of its conversation had an end",
		brokenGap: "an entry that nobody took is gone", brokenAgain: "an owner began a message that has an end",
	} {
		if s.Broken&bit != 0 {
			return what
		}
	}
	for i := range m.Messages {
		msg := &s.Msg[i]
		var what string
		switch {
		case msg.Replies > 1:
			what = "was answered twice"
		case msg.Asked > 1:
			what = "asked its question twice"
		case (msg.Receipt == modelAcked) != (msg.Replies == 1):
			what = "has a receipt without its reply, or a reply without its receipt"
		case msg.Dead && msg.Receipt != modelDead:
			what = "is a dead letter, and its receipt says something else"
		case msg.Rec.Version != 0 && (msg.Dead || msg.Receipt == modelAcked):
			what = "has an end, and a pending record"
		case msg.Accepted && !s.there(i):
			what = "was accepted and is nowhere"
		default:
			continue
		}
		return fmt.Sprintf("message %d %s", i+1, what)
	}
	return ""
}

// there reports whether a message is somewhere: at its end, in a record, or in the lane for the next owner.
func (s *modelState) there(i int) bool {
	msg := &s.Msg[i]
	if msg.Dead || msg.Receipt == modelAcked || msg.Rec.Version != 0 {
		return true
	}
	for n := s.Cursor; n < s.Bell; n++ {
		if int(s.Lane[n]) == i+1 && s.has(n+1) {
			return true
		}
	}
	return false
}

// settled says what is not as it should be when nothing can happen any more.
func (m *Model) settled(s *modelState) string {
	for i := range m.Messages {
		if msg := &s.Msg[i]; !msg.Accepted || msg.Dead == (msg.Receipt == modelAcked) {
			return fmt.Sprintf("nothing can happen any more, and message %d has no end: %s", i+1, s.view(i))
		}
	}
	if s.Cursor != s.Bell {
		return fmt.Sprintf("nothing can happen any more, and the cursor stands at %d of %d", s.Cursor, s.Bell)
	}
	return ""
}

// Explore visits every state, breadth first, until something is broken. progress, if there is one, is called now
// and then.
func (m *Model) Explore(progress func(states, depth int)) *Exploration {
	e := &Exploration{views: map[[2]modelView]bool{}, ends: map[modelView]bool{}}
	type from struct {
		state int32
		step  modelStep
	}
	start := m.start()
	index := map[modelState]int32{start: 0}
	states, parents := []modelState{start}, []from{{state: -1}}
	// calm counts, for each state, the steps without a fault that lead to it: a circle of those would be a mesh that
	// never comes to rest.
	var calm [][]int32
	trace := func(at int32) {
		for ; at >= 0 && parents[at].state >= 0; at = parents[at].state {
			e.Trace = append(e.Trace, parents[at].step.String())
		}
		for i, j := 0, len(e.Trace)-1; i < j; i, j = i+1, j-1 {
			e.Trace[i], e.Trace[j] = e.Trace[j], e.Trace[i]
		}
	}
	levelEnd := 1
	for at := 0; at < len(states); at++ {
		if at == levelEnd {
			e.Depth++
			levelEnd = len(states)
			if progress != nil {
				progress(len(states), e.Depth)
			}
		}
		s := states[at]
		if e.Broken = m.broken(&s); e.Broken == "" && m.MaxStates > 0 && len(states) > m.MaxStates {
			e.Broken = fmt.Sprintf("more than %d states", m.MaxStates)
		}
		if e.Broken != "" {
			e.States = len(states)
			trace(int32(at))
			return e
		}
		var quiet []int32
		rest := true
		m.next(s, func(step modelStep, n modelState) {
			e.Transitions++
			to, seen := index[n]
			if !seen {
				to = int32(len(states))
				index[n] = to
				states = append(states, n)
				parents = append(parents, from{int32(at), step})
			}
			if !step.fault {
				rest = false
				quiet = append(quiet, to)
			}
			for i := range m.Messages {
				if a, b := s.view(i), n.view(i); a != b {
					e.views[[2]modelView{a, b}] = true
				}
			}
		})
		calm = append(calm, quiet)
		if rest {
			if e.Broken = m.settled(&s); e.Broken != "" {
				e.States = len(states)
				trace(int32(at))
				return e
			}
			for i := range m.Messages {
				e.ends[s.view(i)] = true
			}
		}
	}
	e.States = len(states)
	if at := circle(calm); at >= 0 {
		e.Broken = "the mesh never comes to rest"
		trace(at)
	}
	return e
}

// circle returns a state from which steps without faults lead back to itself or to another such, or -1.
func circle(calm [][]int32) int32 {
	into := make([]int32, len(calm))
	for _, to := range calm {
		for _, t := range to {
			into[t]++
		}
	}
	var free []int32
	for i, n := range into {
		if n == 0 {
			free = append(free, int32(i))
		}
	}
	for len(free) > 0 {
		at := free[len(free)-1]
		free = free[:len(free)-1]
		for _, t := range calm[at] {
			if into[t]--; into[t] == 0 {
				free = append(free, t)
			}
		}
	}
	for i, n := range into {
		if n > 0 {
			return int32(i)
		}
	}
	return -1
}
