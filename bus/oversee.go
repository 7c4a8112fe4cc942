package bus

import (
	"context"
	"errors"
	"fmt"
	"time"
)

const (
	// overseeAgain is the pause after the store was not seen to hear of this gateway's checks; each try may wait by itself.
	overseeAgain = time.Second
	// overseeWait is how long a transfer waits for the next owner's checks to be heard of.
	overseeWait = 3 * time.Second
)

// overseer finds out whether the store hears of this gateway's checks; nil: it has none to hear of.
func (el *elector) overseer() Overseer {
	if len(el.b.cfg.SessionChecks) == 0 {
		return nil
	}
	return storeAs[Overseer](el.b.store)
}

// oversee finds out for every session whether its checks are heard of. Until then this gateway's failure would only be noticed by
// its session's TTL, so it comes last in line.
func (el *elector) oversee(ctx context.Context) {
	o := el.overseer()
	if o == nil {
		return
	}
	told := ""
	for {
		session, changed := el.b.session.now()
		again := (<-chan time.Time)(nil)
		switch {
		case session == "" || session == el.overseenUnder():
		case el.b.down.Load():
			again = time.After(overseeAgain) // a try writes, which a store that is in trouble has no use for
		default:
			err := o.Oversees(ctx, el.b.cfg.SessionChecks)
			switch {
			case ctx.Err() != nil:
				return
			case errors.Is(err, ErrForbidden):
				// As before anybody asked: whoever gave the rules may not want it to know.
				el.b.log.Warn("it cannot be told whether a failure of this gateway will be noticed by its check, and is believed; gatemesh acl policy prints the rules that it needs", "error", err)
				err = nil
			case err != nil && told != session:
				told = session
				el.b.log.Info("the store does not hear yet what this gateway's check finds; until then others come before it when duties are free", "error", err)
			}
			if err == nil {
				el.mu.Lock()
				el.seenUnder = session
				el.mu.Unlock()
				el.b.registry.kick()
				el.kick()
				continue // the session may have changed meanwhile
			}
			again = time.After(overseeAgain)
		}
		select {
		case <-changed:
		case <-again:
		case <-ctx.Done():
			return
		}
	}
}

func (el *elector) overseenUnder() string {
	el.mu.Lock()
	defer el.mu.Unlock()
	return el.seenUnder
}

// overseen reports whether this gateway's failure would be noticed by its checks, as far as it knows.
func (el *elector) overseen() bool {
	el.mu.Lock()
	defer el.mu.Unlock()
	return !el.unseenLocked(el.b.cfg.Gateway)
}

// unseenLocked reports whether a gateway's failure might not be noticed by its checks. el.mu is held.
func (el *elector) unseenLocked(gw string) bool {
	if gw == el.b.cfg.Gateway {
		session := el.b.session.id()
		return el.overseer() != nil && (session == "" || session != el.seenUnder)
	}
	return el.unseen[gw]
}

// awaitOverseen waits a moment for who is to have a duty to be one whose failure would be noticed.
func (b *Bus) awaitOverseen(ctx context.Context, gw string) error {
	ctx, cancel := context.WithTimeout(ctx, overseeWait)
	defer cancel()
	for {
		changed := b.RegistryChanged()
		b.elector.mu.Lock()
		unseen := b.elector.live[gw] && b.elector.unseenLocked(gw)
		b.elector.mu.Unlock()
		if !unseen {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("%w: the store does not hear yet what the check of %s finds, so its failure would be noticed late: try again in half a minute", ErrCannotOwn, gw)
		}
	}
}
