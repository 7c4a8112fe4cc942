package whatsapp

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v4"
	"go.mau.fi/whatsmeow"
	"go.mau.fi/whatsmeow/store"
	"go.mau.fi/whatsmeow/types/events"

	"github.com/gatemesh/gatemesh/gateway"
)

// foreignPause is how long an account that somebody else has taken is left to them. Two who take it from each other would
// both lose it, and WhatsApp blocks numbers that do.
const foreignPause = 5 * time.Minute

// fixPair is what an operator does about an account that is not linked any more.
const fixPair = `link it again with "gatemesh channels pair"`

// Ends of a connection that a new one does not mend.
var (
	errReplaced   = errors.New("another connection uses this account's credentials")
	errLoggedOut  = errors.New("the account was unlinked")
	errBanned     = errors.New("WhatsApp has banned the account for some time")
	errOutdated   = errors.New("WhatsApp takes this version of its protocol no more")
	errRefused    = errors.New("WhatsApp refused the connection")
	errNotTakenIn = errors.New("an event could not be taken in")
	errUnreadable = errors.New("WhatsApp said what cannot be read")
	errSilent     = errors.New("WhatsApp does not answer")
	errPaired     = errors.New("linked") // the end of a pairing that went well
)

// Run implements [gateway.Channel].
func (c *channel) Run(ctx context.Context, in gateway.Ingress) error {
	defer c.base.CloseIdleConnections()
	pause := backoff.NewExponentialBackOff(backoff.WithInitialInterval(200*time.Millisecond), backoff.WithMaxInterval(time.Minute), backoff.WithMaxElapsedTime(0))
	if err := c.creds.load(ctx); err != nil {
		return ended(ctx, err)
	}
	for state := gateway.ChannelConnecting; ctx.Err() == nil; state = gateway.ChannelReconnecting {
		connected, err := c.connectOnce(ctx, in, state)
		if connected {
			pause.Reset()
		}
		wait := pause.NextBackOff()
		switch {
		case ctx.Err() != nil:
			continue
		case err == nil:
			continue // linked or unlinked
		case errors.Is(err, errReplaced):
			if wait, err = foreignPause, c.replaced(ctx, in); err != nil {
				return ended(ctx, err)
			}
		case errors.Is(err, errLoggedOut):
			if err := c.forget(ctx); err != nil {
				c.log.Warn("the credentials of an unlinked account are not deleted", "error", err)
			}
			in.Status(gateway.ChannelStatus{State: gateway.ChannelLoggedOut, Detail: errLoggedOut.Error() + ": " + fixPair})
			return gateway.BadCredentials(fixPair, errLoggedOut)
		case errors.Is(err, errBanned), errors.Is(err, errOutdated), errors.Is(err, errRefused):
			return err
		case c.creds.failed() != nil:
			return c.creds.failed() // what is in memory is not what is stored: begin anew
		default:
			in.Status(gateway.ChannelStatus{State: gateway.ChannelReconnecting, Detail: plain(err)})
		}
		select {
		case <-ctx.Done():
		case <-c.paired:
		case <-time.After(wait):
		}
	}
	in.Status(gateway.ChannelStatus{State: gateway.ChannelStopped})
	return nil
}

// ended is what Run returns: when it was told to end, nothing is wrong.
func ended(ctx context.Context, err error) error {
	if ctx.Err() == nil {
		return err
	}
	return nil
}

// replaced raises the alarm, unless it was our own successor: the store says so.
func (c *channel) replaced(ctx context.Context, in gateway.Ingress) error {
	c.creds.put("replaced", []byte(time.Now().UTC().Format(time.RFC3339Nano)))
	if err := c.creds.flush(ctx); err != nil {
		return err
	}
	in.Foreign(errReplaced.Error())
	in.Status(gateway.ChannelStatus{State: gateway.ChannelReconnecting, Detail: fmt.Sprintf("%v: it is left alone for %v", errReplaced, foreignPause)})
	return nil
}

// connectOnce has one connection until it ends; or waits for the account to be linked.
func (c *channel) connectOnce(ctx context.Context, in gateway.Ingress, state gateway.ChannelState) (connected bool, err error) {
	c.turn.Lock()
	defer c.turn.Unlock()
	device, err := c.creds.device()
	if err != nil {
		return false, err
	}
	if device == nil {
		in.Status(gateway.ChannelStatus{State: gateway.ChannelPairing, Detail: fixPair})
		c.turn.Unlock()
		select {
		case <-ctx.Done():
		case <-c.paired:
		}
		c.turn.Lock()
		return false, nil
	}
	in.Status(gateway.ChannelStatus{State: state, Self: device.GetJID().ToNonAD().String()})
	o := &observer{c: c, in: in, ctx: ctx}
	err = c.converse(ctx, device, o.handle, o)
	// The library forgets an account that was unlinked, and says so in a goroutine of its own, which may come too late to be heard.
	if o.verdict() == nil && c.creds.get(rowDevice) == nil && !o.session.leaving.Load() {
		err = errLoggedOut
	}
	return o.connected.Load(), err
}

// converse connects and returns how the connection ended, with nothing of it left. The handler is told every event.
func (c *channel) converse(ctx context.Context, device *store.Device, handle func(any) bool, o *observer) error {
	// The library's goroutines end with the connection, and not before it: their context is cancelled last.
	inner, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	l := newLink(ctx, c.base, c.endpoint, c.creds)
	client := whatsmeow.NewClient(device, logger{to: c.log, unreadable: func() { l.close(errUnreadable) }})
	client.EnableAutoReconnect = false // each connection is a new client: nothing is sent again unasked
	client.SynchronousAck = true
	client.EnableDecryptedEventBuffer = true
	client.ManualHistorySyncDownload = true
	client.DisableLoginAutoReconnect = true
	client.BackgroundEventCtx = inner
	client.SetForceActiveDeliveryReceipts(true)
	h := &http.Client{Transport: l}
	client.SetWebsocketHTTPClient(h)
	client.SetPreLoginHTTPClient(h)
	client.SetMediaHTTPClient(&http.Client{Transport: c.base})
	o.session = &session{client: client, link: l}
	gone := make(chan struct{}, 1)
	var over gate
	client.AddEventHandlerWithSuccessStatus(func(evt any) bool {
		if _, ok := evt.(*events.Disconnected); ok {
			gone <- struct{}{}
		}
		// The handler is never removed: without one the library takes a message for handled, and forgets it.
		return over.pass(func() bool { return handle(evt) })
	})

	dialed := make(chan error, 1)
	go func() {
		err := client.ConnectContext(inner)
		close(l.up)
		dialed <- err
	}()
	var err error
	select {
	case err = <-dialed:
		if err == nil {
			select {
			case <-ctx.Done():
			case <-l.done:
			}
		}
	case <-ctx.Done():
		l.close(errClosed)
		err = <-dialed
	}
	c.setLive(nil)
	l.close(errClosed)
	l.posts.shut() // the link has ended what they wait for
	over.shut()    // ctx, or the link, has ended what its handlers wait for
	letGo(client, l, gone, err == nil)
	cancel()
	if verdict := o.verdict(); verdict != nil {
		return verdict
	}
	if err != nil {
		return fmt.Errorf("connecting: %s", plain(err))
	}
	if cause := l.cause(); !errors.Is(cause, errClosed) {
		return cause
	}
	return errLost
}

// letGo has the library see that its connection is over, when nothing sends any more. It must find out by itself: to be told while it finds
// out is a data race in it. When it expected the end it says nothing of it, and there is nothing to tell.
func letGo(client *whatsmeow.Client, l *link, gone <-chan struct{}, connected bool) {
	if connected {
		<-time.After(settling) // an acknowledgement may be on its way to a Write that drops it
	}
	close(l.quiet)
	if connected {
		t := time.NewTimer(2 * lastWords)
		defer t.Stop()
		select {
		case <-gone:
		case <-t.C:
			return
		}
	}
	client.Disconnect() // what waits for an answer gives up
}

// gate lets calls pass until it is shut; shutting it waits for those that are in it.
type gate struct {
	mu     sync.RWMutex
	closed bool
}

func (g *gate) pass(f func() bool) bool {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return !g.closed && f()
}

func (g *gate) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
}

// verdictOf says what an event means for the connection; nil: nothing.
func verdictOf(evt any) error {
	switch e := evt.(type) {
	case *events.StreamReplaced:
		return errReplaced
	case *events.LoggedOut:
		return errLoggedOut
	case *events.TemporaryBan:
		return gateway.BadCredentials(fmt.Sprintf("wait for %v, then restart the channel", e.Expire), errBanned)
	case *events.ClientOutdated:
		return gateway.BadCredentials("update gatemesh", errOutdated)
	case *events.ConnectFailure:
		return gateway.BadCredentials(fixPair, fmt.Errorf("%w (%s)", errRefused, e.Reason.NumberString()))
	case *events.ManualLoginReconnect:
		return errPaired
	}
	return nil
}
