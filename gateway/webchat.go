package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
)

// webchatName is the channel of our own page. It has no vendor: what is posted lies in the room of the account's inbox, in the
// same transaction as the check of the ownership, so its outcome is always known.
const webchatName = "webchat"

const (
	chatPrefix = "chat/"
	bellName   = "chat-bell"
	// maxChatEntries and maxChatBytes bound what is kept of a conversation: the oldest go first.
	maxChatEntries = 200
	maxChatBytes   = 64 << 10
	// maxChats is how many conversations are kept, and chatRetention for how long after the last word.
	maxChats      = 1000
	chatRetention = 30 * 24 * time.Hour
	// chatSweepEvery is how often old conversations are looked for.
	chatSweepEvery = time.Hour
	// maxBell is how many changes the bell remembers: who missed more reads all that it shows.
	maxBell = 32
)

// ChatEntry is one message of a conversation on our own page. Seq counts from 1 within it, and has no gaps.
type ChatEntry struct {
	Seq  uint64        `json:"seq"`
	ID   string        `json:"id"`
	Who  string        `json:"who"` // user or agent
	Text string        `json:"text"`
	At   envelope.Time `json:"at"`
}

// transcript is what is kept of a conversation.
type transcript struct {
	Seq     uint64        `json:"seq"` // of the newest
	At      envelope.Time `json:"at"`
	Entries []ChatEntry   `json:"entries"`
}

// bell says which conversations changed lately: a small key that all gateways watch.
type bell struct {
	N       uint64   `json:"n"` // changes so far
	Changed []string `json:"changed"`
}

// webchat is the channel of one term.
type webchat struct {
	term *bus.Term
	mu   sync.Mutex
	bell *bell
}

func (g *Gateway) webchatFactory() ChannelFactory {
	return ChannelFactory{New: func(ChannelDeps) (Channel, error) { return &webchat{}, nil }, Limits: ChannelLimits{Text: 16000}}
}

// Run implements Channel.
func (w *webchat) Run(ctx context.Context, in Ingress) error {
	if err := w.append(ctx, "", ChatEntry{}); err != nil { // the bell must be there to be watched
		return err
	}
	in.Status(ChannelStatus{State: ChannelConnected})
	t := time.NewTicker(chatSweepEvery)
	defer t.Stop()
	for {
		if err := w.sweep(ctx); err != nil {
			return err
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// heard puts what somebody said into the transcript.
func (w *webchat) heard(ctx context.Context, e ChannelEvent) error {
	return w.append(ctx, e.Peer.ID, ChatEntry{ID: e.Message, Who: "user", Text: e.Text, At: envelope.At(e.At)})
}

// Post implements Channel.
func (w *webchat) Post(ctx context.Context, p Post) (Posted, error) {
	if _, err := parseConversation(p.To.Peer.ID); err != nil {
		return Posted{}, Rejected(err)
	}
	if err := p.Check(); err != nil {
		return Posted{}, NotSent(0, err)
	}
	now := time.Now()
	err := w.append(ctx, p.To.Peer.ID, ChatEntry{ID: p.ID, Who: "agent", Text: p.Text, At: envelope.At(now)})
	switch {
	case err == nil:
		return Posted{Ref: p.ID, At: now}, nil
	case errors.Is(err, bus.ErrDeposed), errors.Is(err, bus.ErrTooLarge), errors.Is(err, envelope.ErrInvalid):
		return Posted{}, NotSent(0, err)
	}
	return Posted{}, err
}

// Find implements ChannelFinder.
func (w *webchat) Find(ctx context.Context, p Post) (Posted, bool, error) {
	tr, err := w.read(ctx, p.To.Peer.ID)
	if err != nil {
		return Posted{}, false, err
	}
	for _, e := range tr.Entries {
		if e.ID == p.ID {
			return Posted{Ref: e.ID, At: e.At.Time}, true, nil
		}
	}
	return Posted{}, false, nil
}

func (w *webchat) read(ctx context.Context, conversation string) (tr transcript, err error) {
	e, err := w.term.Get(ctx, chatPrefix+conversation)
	if err != nil || e == nil {
		return tr, err
	}
	if err := json.Unmarshal(e.Value, &tr); err != nil {
		return transcript{}, fmt.Errorf("%w: transcript %s: %w", envelope.ErrInvalid, conversation, err)
	}
	return tr, nil
}

// append adds an entry, unless it is there, and rings. Without a conversation it only sees to it that there is a bell.
func (w *webchat) append(ctx context.Context, conversation string, e ChatEntry) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.bell == nil {
		have, err := w.term.Get(ctx, bellName)
		if err != nil {
			return err
		}
		w.bell = &bell{}
		if have != nil {
			_ = json.Unmarshal(have.Value, w.bell) // one that is spoiled begins anew
		}
	}
	next := bell{N: w.bell.N + 1, Changed: append([]string{conversation}, w.bell.Changed[:min(len(w.bell.Changed), maxBell-1)]...)}
	var writes []bus.RoomEntry
	if conversation != "" {
		tr, err := w.read(ctx, conversation)
		if err != nil {
			return err
		}
		for _, have := range tr.Entries {
			if have.ID == e.ID {
				return nil
			}
		}
		tr.Seq++
		e.Seq, tr.At = tr.Seq, e.At
		tr.Entries = append(tr.Entries, e)
		value := tr.encode()
		writes = append(writes, bus.RoomEntry{Name: chatPrefix + conversation, Value: value})
	}
	b, err := json.Marshal(next)
	if err != nil {
		return err
	}
	if err := w.term.Write(ctx, append(writes, bus.RoomEntry{Name: bellName, Value: b})...); err != nil {
		w.bell = nil // whether it was written is not known
		return fmt.Errorf("write the conversation: %w", err)
	}
	w.bell = &next
	return nil
}

// encode keeps the newest that fit; the last entry always does.
func (tr *transcript) encode() []byte {
	if n := len(tr.Entries); n > maxChatEntries {
		tr.Entries = tr.Entries[n-maxChatEntries:]
	}
	for {
		b, err := json.Marshal(tr)
		if err != nil {
			return []byte("{}") // strings and numbers: never
		}
		if len(b) <= maxChatBytes || len(tr.Entries) == 1 {
			return b
		}
		tr.Entries = tr.Entries[(len(tr.Entries)+3)/4:]
	}
}

// sweep forgets conversations in which nothing was said for long, and the oldest of too many.
func (w *webchat) sweep(ctx context.Context) error {
	entries, err := w.term.List(ctx, chatPrefix)
	if err != nil {
		return err
	}
	type chat struct {
		name string
		at   time.Time
	}
	var old, kept []chat
	for _, e := range entries {
		var tr struct {
			At envelope.Time `json:"at"`
		}
		_ = json.Unmarshal(e.Value, &tr)
		c := chat{e.Name, tr.At.Time}
		if time.Since(c.at) > chatRetention {
			old = append(old, c)
		} else {
			kept = append(kept, c)
		}
	}
	for len(kept) > maxChats {
		oldest := 0
		for i := range kept {
			if kept[i].at.Before(kept[oldest].at) {
				oldest = i
			}
		}
		old = append(old, kept[oldest])
		kept = append(kept[:oldest], kept[oldest+1:]...)
	}
	for i, c := range old {
		if i == bus.MaxRoomWrites {
			break // the rest in an hour
		}
		w.mu.Lock()
		err := w.term.Write(ctx, bus.RoomEntry{Name: c.name})
		w.mu.Unlock()
		if err != nil {
			return err
		}
	}
	return nil
}
