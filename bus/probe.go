package bus

import (
	"context"
	"time"
)

const (
	// probeEvery is how often it is asked whether the store answers; probeAgain how often while it does not.
	probeEvery = time.Second
	probeAgain = 150 * time.Millisecond
	// probeTimeout is how long an answer may take.
	probeTimeout = 400 * time.Millisecond
)

// probe looks at the locks anew as soon as the store answers again. A Consul server that has no leader holds a request for up to 7 s
// and tries it again after pauses that double, so that one that came early, as a watch's, hears of the new leader
// seconds after one that comes now.
func (el *elector) probe(ctx context.Context) {
	t := time.NewTimer(probeEvery)
	defer t.Stop()
	silent, asked := false, time.Time{}
	for {
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
		next := probeEvery
		if err := el.look(ctx, silent); err == nil {
			silent = false
			if time.Since(asked) >= seatEvery {
				asked = time.Now()
				el.sit(ctx)
			}
		} else if ctx.Err() == nil {
			silent, next = true, probeAgain
		}
		t.Reset(next)
	}
}

const (
	// seatEvery is how often it is asked whether this gateway's own server leads.
	seatEvery = 5 * time.Second
	// leaveSeat is how long a server must have led before what resides at its gateway moves away.
	leaveSeat = 10 * time.Second
)

// sit finds out whether this gateway's own server leads, if the store knows such a thing. The loss of that node is the slowest
// of all: nobody can take anything over before the others have elected a leader.
func (el *elector) sit(ctx context.Context) {
	led := storeAs[Led](el.b.store)
	if led == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	leads, err := led.Leads(ctx)
	if err != nil {
		return
	}
	el.mu.Lock()
	changed := leads == el.leadsSince.IsZero()
	if changed {
		el.leadsSince = time.Time{}
		if leads {
			el.leadsSince = time.Now()
		}
	}
	el.mu.Unlock()
	if changed {
		el.b.registry.kick()
	}
	el.kick()
}

// leads reports whether this gateway's own server leads.
func (el *elector) leads() bool {
	el.mu.Lock()
	defer el.mu.Unlock()
	return !el.leadsSince.IsZero()
}

// awayLocked is who should have what resides here, because this gateway's own server leads and that one's does not; "": nobody.
// el.mu is held.
func (el *elector) awayLocked(ib *inbox, now time.Time, l loads) string {
	if _, ok := ib.handler.(Resident); !ok || ib.wanted || el.leadsSince.IsZero() || now.Sub(el.leadsSince) < leaveSeat {
		return ""
	}
	mine := el.serves[ib.spec.ID]
	rank := mine.spec.rank()
	for _, c := range el.lineWith(ib.spec.ID, l) {
		if c.Gateway == ib.from && now.Sub(ib.began) < handoffFor {
			continue // it may be stopping, and would not take it back
		}
		if c.Live && !c.Leads && !c.Unseen && c.Rank == rank && c.Gateway != el.b.cfg.Gateway {
			return c.Gateway
		}
	}
	return ""
}

// look asks the store something small, or for all locks when it was silent.
func (el *elector) look(ctx context.Context, silent bool) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	if !silent {
		_, err := el.b.store.Get(ctx, gatewayLockKey(el.b.cfg.Gateway))
		return err
	}
	pairs, err := el.b.store.List(ctx, ownersPrefix)
	if err != nil {
		return err
	}
	el.see(pairs)
	el.kick()
	return nil
}
