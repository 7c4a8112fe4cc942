package gateway

import (
	"github.com/hashicorp/go-hclog"

	"github.com/gatemesh/gatemesh/agent"
	"github.com/gatemesh/gatemesh/bus"
)

// observe is the one path of events: metrics, log, stream, audit log. It is called from the bus's own
// goroutines and does not wait for anybody. b may be nil.
func (g *Gateway) observe(b *bus.Bus, ev bus.Event) {
	if ev.Event == bus.EventReplied && b != nil {
		// The bus shows a payload as it is; people want an object's text.
		if tr, _, ok := b.Track(ev.MessageID); ok && tr.Reply != nil && !tr.Reply.Encrypted() {
			ev.Text = clipText(agent.Text(tr.Reply.Payload), maxEventText)
		}
	}
	g.metrics.observe(ev)
	g.logEvent(ev)
	g.hub.publish(ev)
	g.audit.event(ev)
}

// maxEventText bounds the text of an event, in bytes.
const maxEventText = 4 << 10

// clipText cuts at a rune's boundary.
func clipText(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && s[n]&0xC0 == 0x80 {
		n--
	}
	return s[:n]
}

// eventLevels are those of events that are not debug.
var eventLevels = map[string]hclog.Level{
	bus.EventFailed: hclog.Warn, bus.EventDeadLetter: hclog.Warn, bus.EventRefused: hclog.Warn, bus.EventGap: hclog.Warn,
	bus.EventDeposed: hclog.Warn, bus.EventStoreDown: hclog.Warn, EventForeign: hclog.Warn,
	bus.EventOwned: hclog.Info, bus.EventReleased: hclog.Info, bus.EventStoreUp: hclog.Info, bus.EventRetry: hclog.Info,
	EventChannel: hclog.Info,
}

// logEvent writes an event as one line of key=value. Payloads and texts are not logged.
func (g *Gateway) logEvent(ev bus.Event) {
	level, ok := eventLevels[ev.Event]
	if !ok {
		level = hclog.Debug
	}
	if g.log.GetLevel() > level && g.log.GetLevel() != hclog.NoLevel {
		return
	}
	if ev.Event == bus.EventRefused && !g.refusals.Allow() {
		return // counted, streamed, and too many to write down: whoever floods the store must not flood the disk
	}
	kv := []any{}
	add := func(key, value string) {
		if value != "" {
			kv = append(kv, key, value)
		}
	}
	add("message_id", ev.MessageID)
	add("from", ev.From)
	add("to", ev.To)
	add("capability", ev.Capability)
	add("state", string(ev.State))
	add("class", string(ev.Class))
	add("reason", ev.Reason)
	add("refusal", ev.Refusal)
	add("key", ev.Key)
	add("by", ev.By)
	add("effect", ev.Effect)
	add("effect_state", string(ev.EffectState))
	if ev.Attempt > 1 {
		kv = append(kv, "attempt", ev.Attempt)
	}
	if ev.Millis > 0 {
		kv = append(kv, "ms", ev.Millis)
	}
	if ev.WindowMillis > 0 {
		kv = append(kv, "window_ms", ev.WindowMillis)
	}
	g.log.Log(level, ev.Event, kv...)
}
