package bus

import "testing"

// A timeline begins with what came first, whoever is told of it first.
func TestTimelineBeginsWithQueued(t *testing.T) {
	tr := newTracks()
	for _, name := range []string{EventDelivered, EventQueued, EventAcked, EventQueued} {
		tr.note(trackRef{}, &Event{Event: name, MessageID: "m"})
	}
	got, _, ok := tr.get("m")
	if !ok || len(got.Events) != 4 || got.Events[0].Event != EventQueued || got.Events[1].Event != EventDelivered || got.Events[2].Event != EventAcked || got.Events[3].Event != EventQueued {
		t.Errorf("%+v", got.Events)
	}
}
