package envelope

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// EffectState is what is known of an effect outside of the mesh.
type EffectState string

// The states of an effect.
const (
	// EffectIntent: somebody was about to make it. Whether he did is not recorded.
	EffectIntent EffectState = "intent"
	// EffectSent: the other side was told, and did not refuse.
	EffectSent EffectState = "sent"
	// EffectConfirmed: the other side said that it has it.
	EffectConfirmed EffectState = "confirmed"
	// EffectFailed: it surely was not made, and may be tried again.
	EffectFailed EffectState = "failed"
	// EffectUnknown: whether it was made cannot be found out.
	EffectUnknown EffectState = "unknown"
	// EffectWaived: an operator redrove the message in spite of not knowing; it may be made again.
	EffectWaived EffectState = "waived"
)

// EffectStates lists all states of an effect.
var EffectStates = []EffectState{EffectIntent, EffectSent, EffectConfirmed, EffectFailed, EffectUnknown, EffectWaived}

// Open reports whether nobody knows if the effect was made.
func (s EffectState) Open() bool { return s == EffectIntent || s == EffectUnknown }

// Made reports whether the effect was made, as far as is known.
func (s EffectState) Made() bool { return s == EffectSent || s == EffectConfirmed }

// Effect is one thing outside of the mesh that the handling of a message does, and of which nobody there keeps it
// from happening twice.
type Effect struct {
	// Name is the handler's, the same however often it runs.
	Name  string      `json:"name"`
	State EffectState `json:"state"`
	// At, Gateway, Token (that of the term) and Attempt are those of the intent; SettledAt and SettledBy of what came of it.
	At        Time   `json:"at"`
	Gateway   string `json:"gateway"`
	Token     uint64 `json:"token"`
	Attempt   int    `json:"attempt"`
	SettledAt *Time  `json:"settled_at,omitempty"`
	SettledBy string `json:"settled_by,omitempty"`
	// Ref is the other side's name for it.
	Ref string `json:"ref,omitempty"`
	// Detail is what the handler needs to ask the other side about it.
	Detail json.RawMessage `json:"detail,omitempty"`
}

// Bounds of the effects of a message.
const (
	// MaxEffects is how many effects one message may have.
	MaxEffects = 32
	// MaxEffectName and MaxEffectRef are in bytes, MaxEffectDetail in bytes of JSON.
	MaxEffectName   = 128
	MaxEffectRef    = 512
	MaxEffectDetail = 2048
)

// Effect returns what is recorded of an effect.
func (d *Delivery) Effect(name string) (Effect, bool) {
	for _, e := range d.Effects {
		if e.Name == name {
			return e, true
		}
	}
	return Effect{}, false
}

// OpenEffects lists the effects of which nobody knows whether they were made.
func (d *Delivery) OpenEffects() []Effect {
	var open []Effect
	for _, e := range d.Effects {
		if e.State.Open() {
			open = append(open, e)
		}
	}
	return open
}

// Intend records that an effect is about to be made. One that is open or made is left as it is, and refused.
func (d *Delivery) Intend(e Effect) error {
	if e.Name == "" || len(e.Name) > MaxEffectName || strings.ContainsFunc(e.Name, unprintable) {
		return invalid("effect %q: want a name of 1 to %d printable characters", clip(e.Name, MaxEffectName), MaxEffectName)
	}
	if len(e.Detail) > MaxEffectDetail {
		return invalid("effect %s: its detail is %d bytes, at most %d", e.Name, len(e.Detail), MaxEffectDetail)
	}
	e.State = EffectIntent
	at := slices.IndexFunc(d.Effects, func(o Effect) bool { return o.Name == e.Name })
	if at < 0 && len(d.Effects) >= MaxEffects {
		return invalid("effect %s: a message has at most %d effects", e.Name, MaxEffects)
	}
	// A new array: copies of d share the old one.
	list := slices.Clone(d.Effects)
	if at < 0 {
		list = append(list, e)
		d.Effects = list
		return nil
	}
	if old := list[at]; old.State.Open() || old.State.Made() {
		return fmt.Errorf("effect %s is %s already", e.Name, old.State)
	}
	list[at] = e
	d.Effects = list
	return nil
}

// Settle records what came of an effect that was intended.
func (d *Delivery) Settle(name string, state EffectState, ref, by string, at Time) error {
	i := slices.IndexFunc(d.Effects, func(o Effect) bool { return o.Name == name })
	switch {
	case i < 0:
		return invalid("effect %s was never intended", clip(name, MaxEffectName))
	case !slices.Contains(EffectStates, state) || state == EffectIntent || state == EffectWaived:
		return invalid("effect %s cannot be settled as %q", name, clip(string(state), 32))
	case d.Effects[i].State.Made() && !state.Made():
		return invalid("effect %s is %s already, it cannot become %s", name, d.Effects[i].State, state)
	}
	list := slices.Clone(d.Effects)
	e := &list[i]
	e.State, e.SettledAt, e.SettledBy = state, &at, by
	if ref != "" {
		e.Ref = clip(ref, MaxEffectRef)
	}
	d.Effects = list
	return nil
}

// waive lets open effects be made again.
func (d *Delivery) waive(by string, at Time) {
	if len(d.OpenEffects()) == 0 {
		return
	}
	list := slices.Clone(d.Effects)
	for i := range list {
		if list[i].State.Open() {
			list[i].State, list[i].SettledAt, list[i].SettledBy = EffectWaived, &at, by
		}
	}
	d.Effects = list
}
