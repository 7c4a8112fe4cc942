package bustest

import "fmt"

// modelStep names what happened: enough to read a trace.
type modelStep struct {
	what    string
	gateway uint8
	msg     int8 // -1: none
	fault   bool
}

func (t modelStep) String() string {
	who := [...]string{"jerry", "bobby", "the mesh"}[t.gateway]
	if t.msg >= 0 {
		return fmt.Sprintf("%s: %s message %d", who, t.what, t.msg+1)
	}
	return who + ": " + t.what
}

// around is the gateway of a step that no gateway makes.
const around = modelGateways

// next calls emit with every step that can be taken in s and where it leads.
func (m *Model) next(s modelState, emit func(modelStep, modelState)) {
	do := func(what string, g uint8, msg int, change func(*modelState)) {
		n := s
		change(&n)
		emit(modelStep{what: what, gateway: g, msg: int8(msg)}, n)
	}
	fault := func(what string, g uint8, msg int, left func(*Faults) *uint8, change func(*modelState)) {
		n := s
		if c := left(&n.Left); *c > 0 {
			*c--
			change(&n)
			emit(modelStep{what: what, gateway: g, msg: int8(msg), fault: true}, n)
		}
	}
	if s.Late.Kind != txnNone {
		do("a late "+txnNames[s.Late.Kind]+" arrives for", around, int(s.Late.Msg), func(n *modelState) {
			n.Late = modelTxn{}
			m.apply(n, s.Late)
		})
	}
	for i := range m.Messages {
		if msg := &s.Msg[i]; msg.Asked > 0 && msg.Answer == 0 {
			do("the question is answered of", around, i, func(n *modelState) { n.Msg[i].Answer = 1 })
		}
	}
	for g := range uint8(modelGateways) {
		gw := &s.Gw[g]
		if !gw.Up {
			if s.Live[g] != 0 {
				do("its session ends", g, -1, func(n *modelState) { n.end(g) })
			}
			do("starts again", g, -1, func(n *modelState) { n.end(g); n.boot(g) })
			continue
		}
		fault("crashes", g, -1, func(f *Faults) *uint8 { return &f.Crashes }, func(n *modelState) { n.Gw[g] = modelGateway{} })
		if gw.Session != s.Live[g] {
			do("notices that its session ended", g, -1, func(n *modelState) { n.renew(g) })
		} else {
			fault("loses its session", g, -1, func(f *Faults) *uint8 { return &f.Depositions }, func(n *modelState) { n.end(g) })
		}
		if gw.Wait.Kind != txnNone {
			m.resolve(s, g, do, emit)
		}
		if g == 0 {
			m.sender(s, do, emit)
		}
		switch {
		case gw.Owner:
			m.ownerSteps(s, g, do, fault, emit)
		case gw.Session == s.Live[g] && (s.Lock == 0 || s.Lock == gw.Session) && gw.Wait.Kind == txnNone:
			take := func(n *modelState) { n.Lock, n.Term = gw.Session, true }
			do("takes the inbox", g, -1, func(n *modelState) {
				take(n)
				n.Gw[g].Owner, n.Gw[g].Unclean = true, s.Term
			})
			if s.Lock == 0 {
				fault("takes the inbox and is not told", g, -1, func(f *Faults) *uint8 { return &f.Lost }, take)
			}
		}
	}
}

// renew replaces a session that ended. What is owned is given up; what was to be sent is sent on.
func (s *modelState) renew(g uint8) {
	s.Gw[g].depose()
	s.Born[g]++
	s.Live[g] = s.Born[g]*modelGateways + g
	s.Gw[g].Session = s.Live[g]
}

// depose ends a term in memory.
func (gw *modelGateway) depose() {
	kept := modelGateway{Up: gw.Up, Session: gw.Session, Bell: gw.Bell, Known: gw.Known, Sending: gw.Sending}
	if gw.Wait.Kind == txnSend {
		kept.Wait = gw.Wait
	}
	*gw = kept
}

type doer func(what string, g uint8, msg int, change func(*modelState))

// write is a transaction with all that can happen to it on its way.
func (m *Model) write(s modelState, t modelTxn, emit func(modelStep, modelState)) {
	name := txnNames[t.Kind]
	step := modelStep{what: name, gateway: t.Gateway, msg: int8(t.Msg)}
	if t.Kind == txnSkip || t.Kind == txnRelease {
		step.msg = -1
	}
	lost := func(how string, n modelState) {
		n.Gw[t.Gateway].Wait, n.Gw[t.Gateway].Read = t, false
		emit(modelStep{what: name + " (" + how + ")", gateway: t.Gateway, msg: step.msg, fault: true}, n)
	}
	n := s
	ok, fenced := m.apply(&n, t)
	if s.Left.Lost > 0 {
		l := s
		l.Left.Lost--
		lost("request lost", l)
		if ok {
			l = n
			l.Left.Lost--
			lost("reply lost", l)
		}
	}
	if s.Left.Late > 0 && s.Late.Kind == txnNone {
		l := s
		l.Left.Late--
		l.Late = t
		lost("on its way", l)
	}
	if ok {
		m.applied(&n, t)
	} else {
		step.what += " (refused)"
		m.refused(&n, t, fenced)
	}
	emit(step, n)
}

// refused is what a gateway makes of a transaction that the store refused.
func (m *Model) refused(n *modelState, t modelTxn, fenced bool) {
	gw := &n.Gw[t.Gateway]
	switch {
	case fenced && t.owner():
		gw.depose()
		if n.Live[t.Gateway] != gw.Session {
			n.renew(t.Gateway)
		}
	case fenced:
		n.renew(t.Gateway) // and the send is tried again
	case gw.Wait.Kind != txnNone:
		gw.Read = false // an earlier try may have landed between reading and writing
	case t.Kind == txnSend:
		gw.Bell = n.Bell
	default:
		gw.depose() // the next term reads everything again
	}
}

// resolve finds out what became of a transaction whose outcome is unknown, and tries again if nothing.
func (m *Model) resolve(s modelState, g uint8, do doer, emit func(modelStep, modelState)) {
	gw := &s.Gw[g]
	t := gw.Wait
	switch {
	case m.Mutation == LostIsDone, m.Mutation != BlindRetry && !gw.Read && m.witness(&s, t):
		do("finds the transaction done for", g, int(t.Msg), func(n *modelState) {
			n.Gw[g].Wait = modelTxn{}
			m.applied(n, t)
		})
	case m.Mutation != BlindRetry && !gw.Read:
		do("finds the transaction not done for", g, int(t.Msg), func(n *modelState) { n.Gw[g].Read = true })
	default:
		t.Session = gw.Session
		m.write(s, t, emit)
	}
}

// witness reports whether the store shows that t was applied.
func (m *Model) witness(s *modelState, t modelTxn) bool {
	msg := &s.Msg[t.Msg]
	switch {
	case t.Kind == txnSend:
		return s.Bell > t.Bell && s.Lane[t.Bell] == t.Msg+1
	case t.Touch:
		return s.Page == t.Page+1 && s.PageBy == t.Session
	case t.Kind == txnAnswer:
		return msg.Answer >= 2
	case t.Kind == txnQuestion:
		return msg.Asked > 0
	default:
		return msg.Rec.By == t.Session && msg.Rec.Version > t.Version
	}
}

// applied is what a gateway remembers of its transaction that the store took.
func (m *Model) applied(n *modelState, t modelTxn) {
	gw := &n.Gw[t.Gateway]
	gw.Wait, gw.Read = modelTxn{}, false
	job := &gw.Job[t.Msg]
	if t.Touch {
		gw.Page = t.Page + 1
	}
	gw.Done |= t.Resolves
	switch t.Kind {
	case txnSend:
		gw.Bell = t.Bell + 1
		gw.Sending &^= 1 << t.Msg
		n.Msg[t.Msg].Accepted = true
	case txnRecord, txnAsk:
		*job = modelJob{Phase: job.Phase, Lane: job.Lane, Version: n.Msg[t.Msg].Rec.Version, State: t.Rec.State, Retries: job.Retries, Crashes: job.Crashes, Asked: t.Rec.Asked, Answer: job.Answer, Kept: true}
		if m.Mutation == CursorBeforeRecord && t.Resolves != 0 {
			job.Kept, job.State, job.Version = false, modelQueued, t.Version
		}
		if t.Kind == txnAsk {
			job.Phase = jobAsking
		} else if t.Rec.State == modelDelivered {
			job.Phase = jobRunning
		}
	case txnQuestion:
		job.Phase = jobHalf
	case txnAck:
		gw.Seen |= 1 << t.Msg
		*job = modelJob{}
		if m.Mutation == ReceiptApart || m.Mutation == ReplyApart {
			job.Phase = jobHalf
		}
	case txnDead, txnReceipt, txnReply:
		gw.Seen |= 1 << t.Msg
		*job = modelJob{}
	case txnBack:
		*job = modelJob{}
	case txnRetry, txnRedrive:
		gw.Seen |= 1 << t.Msg
		*job = modelJob{Phase: jobQueued, Lane: t.Rec.Lane, Version: n.Msg[t.Msg].Rec.Version, State: modelQueued, Retries: t.Rec.Retries, Crashes: t.Rec.Crashes,
			Asked: t.Rec.Asked, Answer: n.Msg[t.Msg].Answer == 2, Kept: true}
	case txnSkip:
		gw.Skip &^= t.Resolves
	case txnRelease:
		gw.depose()
	}
}

// sender is what the source gateway does.
func (m *Model) sender(s modelState, do doer, emit func(modelStep, modelState)) {
	gw := &s.Gw[0]
	for i := range m.Messages {
		msg := &s.Msg[i]
		if i > 0 && !s.Msg[i-1].Accepted || gw.Wait.Kind != txnNone || s.Bell == modelEntries {
			continue
		}
		send := modelTxn{Kind: txnSend, Msg: uint8(i), Session: gw.Session, Bell: gw.Bell, Known: gw.Known}
		switch {
		case m.Mutation == AcceptedEarly && !msg.Accepted:
			do("accepts", 0, i, func(n *modelState) {
				n.Msg[i].Accepted = true
				n.Gw[0].Sending |= 1 << i
			})
		case !msg.Accepted, gw.Sending&(1<<i) != 0:
			m.write(s, send, emit)
		case s.Left.Duplicates > 0:
			n := s
			n.Left.Duplicates--
			m.write(n, send, func(t modelStep, n modelState) {
				t.what, t.fault = "duplicate "+t.what, true
				emit(t, n)
			})
		}
	}
	if gw.Known < s.Cursor {
		do("learns the cursor", 0, -1, func(n *modelState) { n.Gw[0].Known = s.Cursor })
	}
	upTo := min(gw.Known, s.Bell)
	if m.Mutation == SweepAhead {
		upTo = s.Bell
	}
	if taken := s.Slots & (1<<upTo - 1); taken != 0 && gw.Session == s.Live[0] {
		do("deletes slots that were taken", 0, -1, func(n *modelState) { n.Slots &^= taken })
	}
}

// has reports whether an entry can be read.
func (s *modelState) has(seq uint8) bool {
	return s.Slots&(1<<(seq-1)) != 0 || s.Inline && seq == s.Bell
}

// load begins a term: what the last owner left.
func (m *Model) load(n *modelState, g uint8) {
	gw := &n.Gw[g]
	gw.Loaded, gw.Fetched, gw.Done, gw.Page = true, n.Cursor, 1<<n.Cursor-1, n.Page
	for i := range m.Messages {
		msg := &n.Msg[i]
		if msg.Receipt != modelNone && m.Mutation != DedupeForgotten {
			gw.Seen |= 1 << i
		}
		if r := msg.Rec; r.Version != 0 && m.Mutation != RecordsForgotten {
			gw.Job[i] = modelJob{Phase: jobQueued, Lane: r.Lane, Version: r.Version, State: r.State, Retries: r.Retries, Crashes: r.Crashes, Asked: r.Asked, Answer: msg.Answer == 2, Kept: true, Careful: gw.Unclean}
		}
	}
}

// fetch takes the next entry of the lane into memory.
func (m *Model) fetch(n *modelState, g uint8) {
	gw := &n.Gw[g]
	gw.Fetched++
	seq := gw.Fetched
	msg := n.Lane[seq-1] - 1
	switch {
	case !n.has(seq):
		if gw.Session == n.Lock && n.Cursor < seq {
			n.Broken |= brokenGap
		}
		gw.Skip |= 1 << (seq - 1)
	case gw.Seen&(1<<msg) != 0 || gw.Job[msg].Phase != jobNone:
		gw.Skip |= 1 << (seq - 1)
	default:
		gw.Job[msg] = modelJob{Phase: jobQueued, Entry: seq, Lane: seq, State: modelQueued, Careful: gw.Unclean}
	}
}

// txn lays out an owner's transaction about a message.
func (m *Model) txn(s *modelState, g, kind, msg uint8) modelTxn {
	gw := &s.Gw[g]
	job := &gw.Job[msg]
	t := modelTxn{Kind: kind, Msg: msg, Gateway: g, Session: gw.Session, Page: gw.Page, Version: job.Version}
	if job.Entry > 0 {
		t.Resolves = 1 << (job.Entry - 1)
	}
	switch kind {
	case txnRecord, txnAsk:
		t.Touch = t.Resolves != 0
	case txnAck, txnRetry, txnDead, txnSkip, txnRedrive, txnReceipt, txnReply:
		t.Touch = true
	}
	t.Rec = modelRecord{Lane: job.Lane, State: modelDelivered, Retries: job.Retries, Crashes: job.Crashes, Asked: job.Asked}
	t.Holds = job.Answer
	return t
}

// behind is the cursor once t has resolved what it resolves.
func (m *Model) behind(s *modelState, t modelTxn) modelTxn {
	all := s.Gw[t.Gateway].Done | t.Resolves
	for n := range uint8(modelEntries) {
		if all&(1<<n) != 0 {
			t.Cursor = n + 1
		} else if m.Mutation != CursorSkipsOpen {
			break
		}
	}
	return t
}

// ownerSteps is what a gateway does that believes it owns the inbox, be it so or not.
func (m *Model) ownerSteps(s modelState, g uint8, do doer, fault func(string, uint8, int, func(*Faults) *uint8, func(*modelState)), emit func(modelStep, modelState)) {
	gw := &s.Gw[g]
	if s.Lock != gw.Session {
		do("notices that it is deposed", g, -1, func(n *modelState) { n.Gw[g].depose() })
	}
	if !gw.Loaded {
		do("reads what the last owner left", g, -1, func(n *modelState) { m.load(n, g) })
		return
	}
	if !gw.Stopping {
		fault("begins to stop", g, -1, func(f *Faults) *uint8 { return &f.Handovers }, func(n *modelState) { n.Gw[g].Stopping = true })
		if gw.Fetched < s.Bell {
			do("reads an entry", g, -1, func(n *modelState) { m.fetch(n, g) })
		}
	}
	write := func(t modelTxn) {
		if gw.Wait.Kind == txnNone {
			m.write(s, m.behind(&s, t), emit)
		}
	}
	if gw.Skip != 0 {
		write(modelTxn{Kind: txnSkip, Gateway: g, Session: gw.Session, Page: gw.Page, Resolves: gw.Skip & -gw.Skip, Touch: true})
	}
	busy := false
	for i := range m.Messages {
		m.jobSteps(&s, g, uint8(i), do, write)
		busy = busy || gw.Job[i].Phase > jobQueued
		if msg := &s.Msg[i]; msg.Dead && !gw.Stopping && gw.Job[i].Phase == jobNone && s.Left.Redrives > 0 && gw.Wait.Kind == txnNone && m.keptBefore(&s, gw, uint8(i)) {
			t := m.txn(&s, g, txnRedrive, uint8(i))
			t.Version, t.Rec = msg.Rec.Version, modelRecord{State: modelQueued, Lane: s.place(i)}
			n := s
			n.Left.Redrives--
			m.write(n, m.behind(&s, t), func(t modelStep, n modelState) { t.fault = true; emit(t, n) })
		}
		m.cancelSteps(s, g, uint8(i), fault, emit)
	}
	if gw.Stopping && !busy && gw.Skip == 0 {
		write(modelTxn{Kind: txnRelease, Gateway: g, Session: gw.Session})
	}
}

// cancelSteps gives a message up, whatever it waits for and whoever works on it: the dead letter is written before anything else is done with it.
func (m *Model) cancelSteps(s modelState, g, i uint8, fault func(string, uint8, int, func(*Faults) *uint8, func(*modelState)), emit func(modelStep, modelState)) {
	gw := &s.Gw[g]
	if p := gw.Job[i].Phase; p == jobNone || p == jobHalf || gw.Stopping || gw.Wait.Kind != txnNone || s.Left.Cancels == 0 {
		return
	}
	if m.Mutation == CancelUnwritten {
		fault("cancels", g, int(i), func(f *Faults) *uint8 { return &f.Cancels }, func(n *modelState) { n.Gw[g].Job[i] = modelJob{} })
		return
	}
	n := s
	n.Left.Cancels--
	m.write(n, m.behind(&s, m.txn(&s, g, txnDead, i)), func(t modelStep, n modelState) { t.fault = true; emit(t, n) })
}

// jobSteps is what can happen to one message in an owner's hands.
func (m *Model) jobSteps(s *modelState, g, i uint8, do doer, write func(modelTxn)) {
	gw := &s.Gw[g]
	job := &gw.Job[i]
	if gw.Wait.Kind == txnDead && gw.Wait.Msg == i {
		return // in memory it has ended
	}
	record := func(state uint8) {
		t := m.txn(s, g, txnRecord, i)
		t.Rec.State = state
		write(t)
	}
	failed := func(crashes uint8) {
		t := m.txn(s, g, txnRetry, i)
		t.Rec.Retries, t.Rec.Crashes, t.Rec.State = job.Retries+1, job.Crashes+crashes, modelQueued
		if t.Rec.Retries >= m.Attempts || t.Rec.Crashes >= m.MaxCrashes {
			t.Kind = txnDead
		}
		write(t)
	}
	switch job.Phase {
	case jobQueued:
		if gw.Stopping {
			return
		}
		if m.waits(gw, i) {
			if !job.Kept && m.mayRecord(gw, i) {
				record(modelQueued)
			}
			return
		}
		if m.Faults.Cancels > 0 && m.Faults.Redrives > 0 && !job.Kept && job.State == modelQueued && m.mayRecord(gw, i) {
			record(modelQueued) // a younger one that was cancelled is to be redriven
		}
		switch {
		case job.State == modelDelivered: // its last owner died at work
			failed(1)
		case job.Careful:
			record(modelDelivered)
		default:
			do("begins", g, int(i), func(n *modelState) {
				n.Gw[g].Job[i].Phase = jobRunning
				if n.Lock == gw.Session && (n.Msg[i].Receipt == modelAcked || n.Msg[i].Dead) {
					n.Broken |= brokenAgain
				}
			})
		}
	case jobRunning, jobAsking:
		m.working(s, g, i, do, write, record, failed)
	case jobHalf:
		kind := txnReceipt
		switch m.Mutation {
		case ReplyApart:
			kind = txnReply
		case QuestionApart:
			kind = txnAsk
		}
		t := m.txn(s, g, kind, i)
		t.Rec.Asked = true
		write(t)
	}
}

// waits reports whether an older message of the conversation is in the same hands.
func (m *Model) waits(gw *modelGateway, i uint8) bool {
	for o := range m.Messages {
		if j := &gw.Job[o]; uint8(o) != i && j.Phase != jobNone && m.Messages[o].Conversation == m.Messages[i].Conversation &&
			(j.Lane < gw.Job[i].Lane || j.Phase > jobQueued) && m.Mutation != NoOrder {
			return true
		}
	}
	return false
}

// mayRecord reports whether a message that waits may get a record: only behind older ones of its conversation
// that have one, or the next owner would find it before them.
func (m *Model) mayRecord(gw *modelGateway, i uint8) bool {
	for o := range m.Messages {
		if j := &gw.Job[o]; j.Phase != jobNone && m.Messages[o].Conversation == m.Messages[i].Conversation &&
			j.Lane < gw.Job[i].Lane && !j.Kept && m.Mutation != RecordOvertakes {
			return false
		}
	}
	return true
}

// keptBefore reports whether the older messages of a dead letter's conversation are here and have records, as far as they have no end: it
// may have been cancelled behind them, and its new record must not be found before them.
func (m *Model) keptBefore(s *modelState, gw *modelGateway, i uint8) bool {
	if gw.Fetched < s.place(int(i)) && m.Mutation != RedriveOvertakes {
		return false
	}
	for o := range m.Messages {
		if j := &gw.Job[o]; j.Phase != jobNone && m.Messages[o].Conversation == m.Messages[i].Conversation && j.Lane < s.place(int(i)) && !j.Kept && m.Mutation != RedriveOvertakes {
			return false
		}
	}
	return true
}

// place is a message's place in its lane.
func (s *modelState) place(i int) uint8 {
	for n, held := range s.Lane[:s.Bell] {
		if int(held) == i+1 {
			return uint8(n) + 1
		}
	}
	return 0
}

// working is what a handler and the clock make of a message.
func (m *Model) working(s *modelState, g, i uint8, do doer, write func(modelTxn), record func(uint8), failed func(uint8)) {
	gw := &s.Gw[g]
	job := &gw.Job[i]
	if job.State != modelDelivered && !job.Kept || job.State == modelQueued {
		record(modelDelivered) // it takes long
	}
	if gw.Stopping {
		if job.Kept {
			t := m.txn(s, g, txnBack, i)
			t.Rec.State = modelQueued
			write(t)
		} else {
			do("drops", g, int(i), func(n *modelState) { n.Gw[g].Job[i] = modelJob{} })
		}
	}
	if job.Phase == jobAsking {
		switch {
		case !job.Answer && s.Msg[i].Answer == 1:
			do("gets the answer for", g, int(i), func(n *modelState) { n.Gw[g].Job[i].Answer = true })
		case job.Answer && s.Msg[i].Answer == 1:
			write(m.txn(s, g, txnAnswer, i))
		}
		if job.Answer {
			write(m.txn(s, g, txnAck, i))
		}
		return
	}
	switch m.Messages[i].verdict(job.Retries) {
	case VerdictAck:
		write(m.txn(s, g, txnAck, i))
	case VerdictFail:
		failed(0)
	case VerdictNever:
		write(m.txn(s, g, txnDead, i))
	case VerdictAsk:
		if job.Asked {
			do("waits again for the answer of", g, int(i), func(n *modelState) { n.Gw[g].Job[i].Phase = jobAsking })
			return
		}
		t := m.txn(s, g, txnAsk, i)
		if m.Mutation == QuestionApart {
			t.Kind, t.Resolves, t.Touch = txnQuestion, 0, false
		}
		t.Rec.Asked = true
		write(t)
	}
}
