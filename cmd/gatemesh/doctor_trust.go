package main

import (
	"context"
	"fmt"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope/trust"
)

// trustInStore compares the trust set that lies in the store with the one that the gateway goes by: gateways believe neither a spoilt nor an
// older one, and go on; but those that start anew, or were away, wait for the true one.
func (d *doctor) trustInStore(ctx context.Context, s bus.Store) {
	if d.trusts == 0 {
		return // open, or it did not answer
	}
	const (
		check = "trust set"
		fix   = "gatemesh trust publish on the operator's machine puts the newest back; then look who else may write openclaw/trust/"
	)
	p, err := s.Get(ctx, trust.SetKey)
	if err != nil {
		return // the store's own checks tell of that
	}
	if p == nil {
		d.fail(check, fmt.Sprintf("the store has none, and the gateway goes by number %d", d.trusts), fix)
		return
	}
	set, _, err := trust.DecodeSet(p.Value)
	switch {
	case err != nil:
		d.fail(check, fmt.Sprintf("the one in the store is spoilt (%v), and the gateway goes by number %d", err, d.trusts), fix)
	case set.Version < d.trusts:
		d.fail(check, fmt.Sprintf("somebody put number %d back into the store; the gateway goes by number %d", set.Version, d.trusts), fix)
	case set.Version > d.trusts:
		d.warn(check, fmt.Sprintf("the store has number %d, and the gateway still goes by number %d", set.Version, d.trusts),
			"look again in a second; if it stays, the gateway's log says why it refuses the set")
	default:
		d.ok(check, fmt.Sprintf("number %d, in the store and at the gateway", set.Version))
	}
}
