package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
)

// CapabilityAlert is what an agent that watches asks of the one that is to be told: take notice of an [Alert].
const CapabilityAlert = "infra.alert"

// Alert is its payload: something is wrong, or no longer.
type Alert struct {
	// Text is all of it for people; [Text] finds it.
	Text string `json:"text"`
	// State is "alert" or "all-clear"; Result the line of the check.
	State  string `json:"state"`
	Result string `json:"result"`
	// Number counts the changes that this agent has told of. Since is when the state before this one began; zero for the first.
	Number int           `json:"number"`
	Since  envelope.Time `json:"since,omitzero"`
}

const (
	stateAlert, stateClear = "alert", "all-clear"
	// healthy and wrong are how the result of a check of the infrastructure begins (plan, "Bobby Heartbeat Skill").
	healthy, wrong = "all-healthy", "alert:"
	// watchName is the entry of the room that says what was told last.
	watchName = "watch/checks"
	// alertTTL is how long an alert waits for who is to be told.
	alertTTL = 24 * time.Hour
	// alertHops lets an alert go from a schedule by the agent that watches and the one that is told to an account.
	alertHops = 8
)

// watcher tells an agent when what the checks find changes: once for each change. What was told last is written, and the alert sent, in the
// transaction that acks the check; so neither is without the other, whichever gateway goes on after whatever death. Checks that run at the same time and find
// the same change send one message: its id is that of the change.
type watcher struct {
	spec Spec
	deps Deps
}

// watched is what was told last.
type watched struct {
	Number int           `json:"number"`
	Alert  bool          `json:"alert"`
	Result string        `json:"result"`
	Since  envelope.Time `json:"since"`
}

func (w *watcher) observe(ctx context.Context, m *bus.Incoming, f Finding) error {
	bad := strings.HasPrefix(f.Result, wrong)
	term := m.Term()
	if !bad && f.Result != healthy || term.Agent() != w.spec.ID {
		return nil // another kind of check, or somebody else's inbox (a task)
	}
	if w.deps.NoteCheck != nil {
		n := bus.CheckNote{Result: f.Result}
		if bad {
			n.Alert = f.Result
		}
		if err := w.deps.NoteCheck(ctx, w.spec.ID, n); err != nil && w.deps.Logger != nil {
			w.deps.Logger.Warn("the result of a check is not beside the agent's registry entry", "agent", w.spec.ID, "error", err)
		}
	}
	if w.spec.Runner.Alert == "" {
		return nil
	}
	var was watched
	e, err := term.Get(ctx, watchName)
	if err != nil {
		return err
	}
	if e != nil {
		if err := json.Unmarshal(e.Value, &was); err != nil {
			return bus.Never(envelope.ClassPoison, fmt.Errorf("%s of %s is not readable: %w", watchName, w.spec.ID, err))
		}
	}
	if bad == was.Alert {
		return nil
	}
	next := watched{Number: was.Number + 1, Alert: bad, Result: f.Result, Since: envelope.At(time.Now())}
	a := Alert{State: stateAlert, Text: w.spec.DisplayName() + ": " + f.Text, Result: f.Result, Number: next.Number, Since: was.Since}
	if !bad {
		a.State, a.Text = stateClear, fmt.Sprintf("%s: all clear again. It was: %s (%s)", w.spec.DisplayName(), was.Result, time.Since(was.Since.Time).Round(time.Second))
	}
	payload, err := encode(a)
	if err != nil {
		return bus.Never(envelope.ClassPoison, err)
	}
	_, err = m.Send(bus.Outgoing{
		ID: envelope.DerivedID(w.spec.ID, fmt.Sprintf("alert/%d/%s", next.Number, a.State)), To: envelope.Address{Agent: w.spec.Runner.Alert}, Capability: CapabilityAlert,
		Payload: payload, ConversationID: envelope.DerivedID(w.spec.ID, "alerts"), TTL: alertTTL, MaxHops: alertHops,
	})
	var hops *envelope.HopsError
	switch {
	case errors.As(err, &hops):
		return nil // who is to be told asked for this check, and reads its answer; the change is told with the next one
	case err != nil:
		return fmt.Errorf("tell %s: %w", w.spec.Runner.Alert, err)
	}
	return m.Keep(bus.RoomEntry{Name: watchName, Value: mustJSON(next)})
}
