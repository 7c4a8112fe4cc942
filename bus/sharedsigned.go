package bus

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"

	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/envelope/trust"
)

// Shared state has many writers, so nothing in it is signed as a whole: each event carries the stamp of the gateway that recorded it,
// and the focus that of the gateway that set it, as a last line. Stamps do not count in the bounds.

// maySpeakOf reports why this gateway's event of an agent would be believed by nobody.
func (b *Bus) maySpeakOf(agent string) error {
	if b.enforced() && !b.cfg.Trust.MaySend(b.cfg.Gateway, agent) {
		return fmt.Errorf("%w: agent %s: the trust set does not let %s speak for it; record it at a gateway that may host it", envelope.ErrInvalid, agent, b.cfg.Gateway)
	}
	return nil
}

// believedEvents takes out of the ring what nobody may have said, and what stands there twice, and tells of the former.
func (b *Bus) believedEvents(raw []json.RawMessage, ring []StateEvent) []StateEvent {
	if !b.enforced() {
		return ring
	}
	believed, seen := []StateEvent{}, map[string]bool{}
	for i, e := range ring {
		if err := b.eventBelieved(raw[i], e.Agent); err != nil {
			h := sha256.Sum256(raw[i])
			b.refuse(RecentEventsKey+" event "+hex.EncodeToString(h[:4]), raw[i], err, "", e.Agent)
			continue
		}
		if e.ID == "" || !seen[e.ID] {
			believed = append(believed, e)
		}
		seen[e.ID] = true
	}
	return believed
}

func (b *Bus) eventBelieved(raw []byte, agent string) error {
	_, st, err := b.open(trust.KindState, RecentEventsKey, raw, "", "")
	if err == nil && !b.cfg.Trust.MaySend(st.Gateway, agent) {
		err = &trust.Refusal{Reason: trust.NotHost, Gateway: st.Gateway, Key: st.Key, Detail: fmt.Sprintf("%s may not speak for %s", st.Gateway, agent)}
	}
	return err
}

// maxFocusStamp is more than the last line of a signed focus has.
const maxFocusStamp = 1 << 10

// signFocus adds the line to a text.
func (b *Bus) signFocus(text string) []byte {
	if b.cfg.Signer == nil {
		return []byte(text)
	}
	st := b.cfg.Signer.Sign(trust.KindState, CurrentFocusKey, b.now(), []byte(text))
	line := trust.AppendStamp([]byte(text+"\n"+focusMark), &st)
	return append(line, '}')
}

const focusMark = `{"signed":`

// splitFocus takes the line off.
func splitFocus(raw []byte) (text []byte, st *trust.Stamp) {
	i := bytes.LastIndexByte(raw, '\n')
	line, ok := bytes.CutPrefix(raw[i+1:], []byte(focusMark))
	if i < 0 || !ok || !bytes.HasSuffix(line, []byte("}")) || len(line) > maxFocusStamp {
		return raw, nil
	}
	if st, ok = trust.ParseStamp(line[:len(line)-1]); !ok {
		return raw, nil
	}
	return raw[:i], st
}

// believedFocus is the text that lies there, if somebody may have said it.
func (b *Bus) believedFocus(raw []byte) (string, error) {
	text, st := splitFocus(raw)
	focus, err := decodeFocus(text)
	if err != nil || len(raw) == 0 || !b.enforced() {
		return focus, err
	}
	if err := b.cfg.Trust.Stamp(trust.KindState, CurrentFocusKey, text, st, "", ""); err != nil {
		b.refuse(CurrentFocusKey, raw, err, "", "")
		return "", nil
	}
	return focus, nil
}
