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
	silent := false
	for {
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
		next := probeEvery
		if err := el.look(ctx, silent); err == nil {
			silent = false
		} else if ctx.Err() == nil {
			silent, next = true, probeAgain
		}
		t.Reset(next)
	}
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
