package slack

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/slack-go/slack/socketmode"

	"github.com/gatemesh/gatemesh/gateway"
)

// timings are the adapter's waits. Tests make them short.
type timings struct {
	// firstPause and longestPause bound the pause between two tries to connect, which doubles and is drawn from 50 to 150 %.
	firstPause, longestPause time.Duration
	// settled is how long a connection must have lived for the pauses to begin anew.
	settled time.Duration
	// hello is how long Slack may take to say hello on a new connection.
	hello time.Duration
	// ping is how often a connection is tried, and pong how long the answer may take.
	ping, pong time.Duration
	// linger is how long a connection that was replaced is still read.
	linger time.Duration
	// grace is how long more connections than ours may be seen before the alarm.
	grace time.Duration
	// probe is how often the connections are counted, by opening a fresh one.
	probe time.Duration
	// goodbye bounds the closing handshake.
	goodbye time.Duration
	// accept bounds one Ingress.Accept.
	accept time.Duration
}

var defaultTimings = timings{
	firstPause: 300 * time.Millisecond, longestPause: time.Minute, settled: 10 * time.Second,
	hello: 15 * time.Second, ping: 15 * time.Second, pong: 10 * time.Second, linger: 3 * time.Second,
	grace: 30 * time.Second, probe: 10 * time.Minute, goodbye: 300 * time.Millisecond, accept: 30 * time.Second,
}

// Reasons why a connection is replaced, beyond those that Slack gives.
const (
	reasonLost  = "lost"
	reasonProbe = "probe"
)

// Slack's reasons that are not "connect anew".
const (
	reasonDisabled = "link_disabled"
	reasonTooMany  = "too_many_websockets"
)

const switchedOff = "switch Socket Mode on, on the app's page Socket Mode"

// Run implements [gateway.Channel].
func (a *account) Run(ctx context.Context, in gateway.Ingress) error {
	a.runs.Add(1)
	ctx, cancel := context.WithCancel(ctx)
	r := &run{account: a, in: in, pause: newPause(a.timings)}
	r.startLanes(ctx)
	err := r.loop(ctx)
	if ctx.Err() != nil {
		err = nil
	}
	cancel()
	r.lanes.Wait() // what is being accepted is still acknowledged
	for _, s := range r.sockets {
		r.readers.Go(s.close)
	}
	r.readers.Wait()
	a.runs.Add(-1)
	a.hangUp()
	switch {
	case err == nil:
		in.Status(gateway.ChannelStatus{State: gateway.ChannelStopped, Self: r.who()})
	case gateway.IsBadCredentials(err):
		in.Status(gateway.ChannelStatus{State: gateway.ChannelLoggedOut, Detail: err.Error(), Self: r.who()})
	}
	return err
}

// run is one call of Run.
type run struct {
	*account
	in    gateway.Ingress
	pause *backoff.ExponentialBackOff

	lanes   sync.WaitGroup
	queues  []chan delivery
	readers sync.WaitGroup
	sockets map[int]*socket // only loop's goroutine; those that ended are taken out by sweep
	nextID  int
	open    atomic.Int32 // connections on which Slack said hello, until they end

	suspect time.Time // since when Slack counts more connections than ours; zero: it does not
}

func newPause(t timings) *backoff.ExponentialBackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval, b.MaxElapsedTime = t.firstPause, t.longestPause, 0
	b.Multiplier, b.RandomizationFactor = 2, 0.5
	b.Reset()
	return b
}

func (r *run) who() string {
	if s := r.self.Load(); s != nil {
		return s.name
	}
	return ""
}

// loop keeps one connection up. When Slack says that it will close it, a new one is opened first, so that there is always one to
// deliver to.
func (r *run) loop(ctx context.Context) error {
	r.in.Status(gateway.ChannelStatus{State: gateway.ChannelConnecting, Self: r.who()})
	var live *socket
	for ctx.Err() == nil {
		next, err := r.connect(ctx)
		if err != nil {
			if gateway.IsBadCredentials(err) || ctx.Err() != nil {
				return err
			}
			if !live.alive() {
				r.in.Status(gateway.ChannelStatus{State: gateway.ChannelReconnecting, Detail: detail(err), Self: r.who()})
			}
			r.log.Warn("slack: cannot connect, trying again", "cause", detail(err))
			r.wait(ctx, err)
			continue
		}
		r.retire(ctx, live)
		live = next
		r.in.Status(gateway.ChannelStatus{State: gateway.ChannelConnected, Self: r.who()})
		if err := r.hold(ctx, live); err != nil {
			return err
		}
	}
	return nil
}

// detail is an error for people who do not think of it as a post that was not sent.
func detail(err error) string {
	if e, ok := asType[*gateway.NotSentError](err); ok {
		err = e.Cause
	}
	return err.Error()
}

// hold returns when s must be replaced, after the pause that this asks for.
func (r *run) hold(ctx context.Context, s *socket) error {
	count := time.NewTimer(r.judgeCount(s.hello.NumConnections))
	defer count.Stop()
	var reason string
	select {
	case <-ctx.Done():
		return nil
	case reason = <-s.replace:
	case <-s.ended:
		reason = reasonLost
		select {
		case reason = <-s.replace: // it said why before it ended
		default:
		}
	case <-count.C:
		reason = reasonProbe
	}
	if time.Since(s.since) >= r.timings.settled {
		r.pause.Reset()
	}
	switch reason {
	case reasonDisabled:
		return gateway.BadCredentials(switchedOff, errors.New("connection closed by Slack: link_disabled, which is Socket Mode switched off"))
	case reasonTooMany:
		r.in.Foreign("Slack closed the connection because the app has more than ten: others use its tokens")
	case reasonProbe:
		return nil
	}
	r.log.Info("slack: replacing the connection", "reason", reason)
	if !s.alive() {
		r.in.Status(gateway.ChannelStatus{State: gateway.ChannelReconnecting, Detail: "the connection ended: " + reason, Self: r.who()})
		r.wait(ctx, nil)
	} else if time.Since(s.since) < r.timings.settled {
		r.wait(ctx, nil) // asked to leave at once: not in a circle without a pause
	}
	return nil
}

// wait is the pause before the next try, at least as long as Slack asked for.
func (r *run) wait(ctx context.Context, cause error) {
	d := r.pause.NextBackOff()
	if later, ok := asType[*gateway.NotSentError](cause); ok {
		d = max(d, later.After)
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// judgeCount compares Slack's count of connections with ours, and returns when to count again. Slack tells the count once, when a
// connection opens. More than ours are seen for a while after a handover, until Slack has noticed that the predecessor's is
// gone; only when a second count, after the grace, finds them still, somebody else is using the tokens.
func (r *run) judgeCount(told int) time.Duration {
	ours := int(r.open.Load())
	if told <= ours {
		r.suspect = time.Time{}
		return r.timings.probe/2 + rand.N(r.timings.probe/2+1)
	}
	now := time.Now()
	if r.suspect.IsZero() {
		r.suspect = now
	}
	if left := r.timings.grace - now.Sub(r.suspect); left > 0 {
		return left
	}
	r.in.Foreign(fmt.Sprintf("Slack counts %d Socket Mode connections of this app, %d of them ours: somebody else takes a part of the messages", told, ours))
	return r.timings.probe/2 + rand.N(r.timings.probe/2+1)
}

// connect opens a connection and waits for Slack's hello.
func (r *run) connect(ctx context.Context) (*socket, error) {
	if _, err := r.whoami(ctx); err != nil {
		return nil, err
	}
	sm := socketmode.New(r.client(r.http))
	_, url, err := sm.OpenContext(ctx)
	if err != nil {
		return nil, r.explain("apps.connections.open", err, false)
	}
	if url == "" {
		return nil, errors.New("apps.connections.open: Slack's answer names no URL")
	}
	s, err := r.dial(ctx, url)
	if err != nil {
		return nil, err
	}
	r.sweep()
	r.sockets[r.nextID] = s
	r.nextID++
	t := time.NewTimer(r.timings.hello)
	defer t.Stop()
	select {
	case <-s.helloed:
		return s, nil
	case reason := <-s.replace:
		s.close()
		if reason == reasonDisabled {
			return nil, gateway.BadCredentials(switchedOff, errors.New("connection refused by Slack: link_disabled, which is Socket Mode switched off"))
		}
		if reason == reasonTooMany {
			r.in.Foreign("Slack refuses a connection because the app has ten already: others use its tokens")
		}
		return nil, fmt.Errorf("connecting: Slack sent us away: %s", reason)
	case <-s.ended:
		return nil, errors.New("connecting: the connection ended before Slack said hello")
	case <-t.C:
		s.close()
		return nil, fmt.Errorf("connecting: Slack said no hello within %s", r.timings.hello)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// sweep forgets connections that have ended.
func (r *run) sweep() {
	if r.sockets == nil {
		r.sockets = map[int]*socket{}
	}
	for id, s := range r.sockets {
		if !s.alive() {
			delete(r.sockets, id)
		}
	}
}

// retire closes a connection that was replaced, after a while in which Slack may still deliver on it.
func (r *run) retire(ctx context.Context, s *socket) {
	if !s.alive() {
		return
	}
	r.readers.Go(func() {
		t := time.NewTimer(r.timings.linger)
		defer t.Stop()
		select {
		case <-t.C:
			s.close()
		case <-s.ended:
		case <-ctx.Done(): // Run closes it, once what is being accepted is acknowledged
		}
	})
}
