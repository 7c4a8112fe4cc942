package bus

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/cenkalti/backoff/v4"
)

// A Resident is a [Handler] with work of its own that goes on for as long as its gateway owns the inbox: a connection, a
// schedule.
type Resident interface {
	Handler
	// Reside is called when a term begins, after the mail that waited then has been read and put in order (of a source
	// with more than 2,048 waiting messages: those); of an [AgentSpec].Eager inbox at once. ctx ends with the term: when it is lost, and in a handover when the
	// running handlers are done, before the lock is released; the bus waits up to 2 s for its return then. When it returns while
	// the term goes on, it is called again after a pause of half a second, which doubles up to half a minute while it
	// keeps returning. It is never called twice at the same time on one gateway; another one calls its own as soon as it has
	// the lock.
	Reside(ctx context.Context, t *Term) error
}

const (
	// resideGrace is how long a handover waits for Reside to return.
	resideGrace = 2 * time.Second
	// resideSettled is how long Reside must have run for its next return to be taken for the first one.
	resideSettled = time.Minute
)

// reside runs the handler's own work until the term ends.
func (ib *inbox) reside(r Resident) {
	retry := backoff.NewExponentialBackOff()
	retry.InitialInterval, retry.MaxInterval, retry.MaxElapsedTime = 500*time.Millisecond, 30*time.Second, 0
	retry.Reset()
	for ib.residence.Err() == nil {
		began := time.Now()
		err := ib.callReside(r)
		if ib.residence.Err() != nil {
			return
		}
		if time.Since(began) >= resideSettled {
			retry.Reset()
		}
		d := retry.NextBackOff()
		ib.b.log.Warn("the work of an owned inbox stopped; starting it again", "agent", ib.spec.ID, "in", d.Round(time.Millisecond), "error", err)
		wait(ib.residence, d)
	}
}

func (ib *inbox) callReside(r Resident) (err error) {
	defer func() {
		if p := recover(); p != nil {
			ib.b.log.Error("an owned inbox's own work panicked", "agent", ib.spec.ID, "panic", p, "stack", string(debug.Stack()))
			err = fmt.Errorf("panicked: %v", p)
		}
	}()
	if err := r.Reside(ib.residence, &Term{ib}); err != nil {
		return err
	}
	return errors.New("it returned while the term goes on")
}

// CaughtUp waits until the mail that waited when the term began has been read and put in order: what is sent to the inbox after that comes behind it.
// Errors: [ErrDeposed], the cause of ctx's end.
func (t *Term) CaughtUp(ctx context.Context) error {
	select {
	case <-t.ib.caughtUp:
		return nil
	case <-t.ib.ctx.Done():
		return ErrDeposed
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// moveIn starts the handler's own work: when all that waits has been read, or at once.
func (ib *inbox) moveIn() {
	r, ok := ib.handler.(Resident)
	if !ok {
		return
	}
	ib.resident.Add(1)
	go func() {
		defer ib.resident.Done()
		if !ib.spec.Eager {
			select {
			case <-ib.caughtUp:
			case <-ib.residence.Done():
				return
			}
		}
		ib.reside(r)
	}()
}

// moveOut ends the handler's own work, and waits for it as long as a handover may.
func (ib *inbox) moveOut(ctx context.Context) {
	ib.leaveHome()
	out := make(chan struct{})
	go func() {
		ib.resident.Wait()
		close(out)
	}()
	t := time.NewTimer(resideGrace)
	defer t.Stop()
	select {
	case <-out:
		return
	case <-t.C:
	case <-ctx.Done():
	}
	ib.b.log.Warn("the work of an owned inbox did not stop in time; its next owner starts beside it", "agent", ib.spec.ID)
}
