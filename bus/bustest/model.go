package bustest

// The delivery protocol as ARCHITECTURE.md states it, once more and as plainly as it can be put: a
// value that is compared and copied, and steps that each are one transaction of the store or one thing
// that a process does by itself. Nothing here uses the bus's code. Explore visits every state; the
// real bus is held against the same steps by Random.

const (
	modelMessages = 3
	modelEntries  = 7
	modelGateways = 2
)

// Verdict is what a handler makes of one attempt at a message.
type Verdict uint8

// The verdicts. All that succeed also reply.
const (
	VerdictAck Verdict = iota
	VerdictFail
	VerdictNever
	// VerdictAsk asks another agent, waits for the answer and acks.
	VerdictAsk
)

// Where a receipt or a record says that its message is.
const (
	modelNone uint8 = iota
	modelQueued
	modelDelivered
	modelFailed
	modelAcked
	modelDead
)

// ModelMessage is a message of the model: its conversation, and what its handler says at each
// attempt (the last verdict holds for all that follow).
type ModelMessage struct {
	Conversation int
	Verdicts     []Verdict
}

func (m ModelMessage) verdict(retries uint8) Verdict {
	return m.Verdicts[min(int(retries), len(m.Verdicts)-1)]
}

// Faults is how often each thing may go wrong (or be done by an operator) in one behaviour.
type Faults struct {
	Crashes     uint8 // a process ends, and its session with it
	Depositions uint8 // a session ends while its process runs on
	Duplicates  uint8 // a client sends the same message again
	Lost        uint8 // a transaction's request or reply is lost
	Late        uint8 // a request counts as lost and arrives later
	Redrives    uint8
	Cancels     uint8
	Handovers   uint8 // an owner stops in order
}

// Model is a bounded instance of the protocol.
type Model struct {
	Messages   []ModelMessage
	Attempts   uint8 // after so many failures a message is dead
	MaxCrashes uint8 // after so many attempts that ended with the process it is poison
	Faults     Faults
	Mutation   Mutation
	// MaxStates stops an exploration that grows beyond it; 0: never.
	MaxStates int
}

// modelState is the store, two gateways, and what an observer noted.
type modelState struct {
	// The sender's lane: the bell's number, whether the newest entry lies only in the bell, which message
	// each entry holds (1 based; index is seq-1), which slots exist.
	Bell   uint8
	Inline bool
	Lane   [modelEntries]uint8
	Slots  uint8
	// The receiver's page: cursor, version, who wrote it last.
	Cursor, Page, PageBy uint8
	// Lock is the session that owns the inbox; Term the mark of a term that runs or did not end in order.
	Lock uint8
	Term bool
	// Live is the session of each gateway that the store holds alive (0: none), Born the newest made.
	Live, Born [modelGateways]uint8
	Msg        [modelMessages]modelStored
	// Late is a request on its way that its sender has given up.
	Late modelTxn
	Gw   [modelGateways]modelGateway
	Left Faults
	// Broken is an invariant of a step (not of a state) that was broken.
	Broken uint8
}

// modelStored is what the store holds of one message, and what its client was told.
type modelStored struct {
	Receipt          uint8
	Replies, Asked   uint8
	Answer           uint8 // to its question: 1 in the lane, 2 in a record, 3 taken
	Rec              modelRecord
	Versions         uint8 // of the record so far
	Dead             bool
	Accepted, Buried bool // told to the client; was a dead letter once
}

// modelRecord is a pending record.
type modelRecord struct {
	Version, By, State, Retries, Crashes, Lane uint8
	Asked                                      bool
}

// modelGateway is one process.
type modelGateway struct {
	Up      bool
	Session uint8
	// As a sender (gateway 0): the bell as it knows it, the cursor as it knows it, what its client waits for.
	Bell, Known uint8
	Sending     uint8
	// As an owner.
	Owner, Unclean, Loaded, Stopping bool
	Fetched, Done, Page              uint8
	Seen, Skip                       uint8
	Job                              [modelMessages]modelJob
	// Wait is a transaction whose outcome is unknown; Read: the store was asked and had not got it.
	Wait modelTxn
	Read bool
}

// Phases of a job.
const (
	jobNone uint8 = iota
	jobQueued
	jobRunning
	jobAsking
	// jobHalf: a mutation has written the first half of what belongs together.
	jobHalf
)

// modelJob is a message in an owner's memory.
type modelJob struct {
	Phase, Entry, Lane, Version, State, Retries, Crashes uint8
	Asked, Answer, Kept, Careful                         bool
}

// Kinds of transactions.
const (
	txnNone uint8 = iota
	txnSend
	txnRecord // the message gets, or renews, its record
	txnAsk
	txnAnswer // the taking of an answer, by itself
	txnAck
	txnRetry
	txnDead
	txnSkip // a duplicate's entry
	txnBack // given back at a handover
	txnRelease
	txnRedrive
	txnReceipt // second halves, of mutations
	txnReply
	txnQuestion
)

var txnNames = [...]string{"-", "send", "record", "ask", "answer", "ack", "retry", "dead", "skip", "give back", "release", "redrive", "receipt", "reply", "question"}

// modelTxn is one transaction with the versions that its compare-and-swaps name.
type modelTxn struct {
	Kind, Msg, Gateway, Session uint8
	Bell, Page, Version         uint8
	Known                       uint8 // the cursor as the sender knows it
	Cursor, Resolves            uint8
	Rec                         modelRecord
	Touch                       bool // it writes the page
	Holds                       bool // it ends an answer's stay
}

func (t modelTxn) owner() bool { return t.Kind != txnSend }

// start is the state before anything happened: two gateways, nothing sent.
func (m *Model) start() modelState {
	var s modelState
	for g := range s.Gw {
		s.boot(uint8(g))
	}
	s.Left = m.Faults
	return s
}

// boot starts a gateway's process with a session of its own. Odd and even tell the gateways' sessions apart.
func (s *modelState) boot(g uint8) {
	s.Born[g]++
	id := s.Born[g]*modelGateways + g
	s.Live[g] = id
	s.Gw[g] = modelGateway{Up: true, Session: id, Bell: s.Bell}
	if g == 0 {
		s.Gw[g].Known = s.Cursor
	}
}

// end ends a gateway's session: the store frees what it held.
func (s *modelState) end(g uint8) {
	if s.Lock != 0 && s.Lock == s.Live[g] {
		s.Lock = 0
	}
	s.Live[g] = 0
}

// apply is the store's part: all of a transaction or nothing. fenced says that a check of a session
// refused it.
func (m *Model) apply(s *modelState, t modelTxn) (ok, fenced bool) {
	cas := m.Mutation != NoCompareAndSwap && m.Mutation != BlindRetry
	if s.Live[t.Gateway] != t.Session && (!t.owner() || m.Mutation != NoCheckSession) {
		return false, true
	}
	if t.owner() && s.Lock != t.Session {
		if m.Mutation != NoCheckSession {
			return false, true
		}
		s.Broken |= brokenFence
	}
	msg := &s.Msg[t.Msg]
	if cas && (t.Kind == txnSend && t.Bell != s.Bell || t.Touch && t.Page != s.Page || recordTxn(t.Kind) && t.Version != msg.Rec.Version) {
		return false, false
	}
	if t.Touch {
		s.Page++
		s.PageBy = t.Session
	}
	if t.Resolves != 0 && t.Cursor > s.Cursor {
		s.Cursor = t.Cursor
	}
	record := func() {
		msg.Versions++
		msg.Rec = t.Rec
		msg.Rec.Version, msg.Rec.By = msg.Versions, t.Session
	}
	switch t.Kind {
	case txnSend:
		if s.Bell == modelEntries {
			return false, false
		}
		if s.Inline && t.Known < s.Bell && m.Mutation != BellOverwritten {
			s.Slots |= 1 << (s.Bell - 1)
		}
		s.Inline = t.Known >= s.Bell || m.Mutation == BellOverwritten
		s.Bell++
		s.Lane[s.Bell-1] = t.Msg + 1
		if !s.Inline {
			s.Slots |= 1 << (s.Bell - 1)
		}
	case txnRecord, txnAsk:
		if m.Mutation != CursorBeforeRecord || t.Resolves == 0 {
			record()
		}
		if t.Rec.State == modelDelivered && t.Touch {
			msg.Receipt = modelDelivered
		}
		if t.Kind == txnAsk && m.Mutation != QuestionApart {
			msg.Asked++
		}
	case txnQuestion:
		msg.Asked++
	case txnAnswer:
		msg.Answer = 2
		if m.Mutation == AnswerApart {
			msg.Answer = 3
		}
	case txnAck:
		m.close(s, t)
		if m.Mutation != ReceiptApart {
			m.acked(s, t.Msg)
			msg.Receipt = modelAcked
		}
		if m.Mutation != ReplyApart {
			msg.Replies++
		}
	case txnReceipt:
		m.acked(s, t.Msg)
		msg.Receipt = modelAcked
	case txnReply:
		msg.Replies++
	case txnRetry:
		record()
		msg.Receipt = modelFailed
	case txnDead:
		m.close(s, t)
		msg.Receipt, msg.Dead, msg.Buried = modelDead, true, true
	case txnBack:
		record()
	case txnRelease:
		s.Lock, s.Term = 0, false
	case txnRedrive:
		record()
		msg.Receipt = modelQueued
		if m.Mutation != RedriveKeepsDead {
			msg.Dead = false
		}
		if m.Mutation != SameQuestion {
			msg.Asked, msg.Answer = 0, 0 // what it asks in its new life is another question
		}
	}
	return true, false
}

func recordTxn(kind uint8) bool {
	switch kind {
	case txnRecord, txnAsk, txnAck, txnRetry, txnDead, txnBack, txnRedrive:
		return true
	}
	return false
}

// close ends a message's record and the answers that it held.
func (m *Model) close(s *modelState, t modelTxn) {
	msg := &s.Msg[t.Msg]
	if m.Mutation != RecordStays || t.Kind != txnDead {
		msg.Rec = modelRecord{}
	}
	if t.Holds && msg.Answer != 0 {
		msg.Answer = 3
	}
}

// acked notes a conversation that was overtaken: an older message of it has no end yet.
func (m *Model) acked(s *modelState, msg uint8) {
	for _, held := range s.Lane[:s.Bell] {
		o := held - 1
		if o == msg {
			return
		}
		if m.Messages[o].Conversation == m.Messages[msg].Conversation && s.Msg[o].Receipt != modelAcked && !s.Msg[o].Buried {
			s.Broken |= brokenOrder
		}
	}
}
