package discord

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bwmarrin/discordgo"
	"github.com/coder/websocket"

	"github.com/gatemesh/gatemesh/gateway"
)

// The gateway's opcodes.
const (
	opDispatch       = 0
	opHeartbeat      = 1
	opIdentify       = 2
	opResume         = 6
	opReconnect      = 7
	opInvalidSession = 9
	opHello          = 10
	opAck            = 11
)

// intents are what is asked for; message content has to be allowed to the bot at the developer portal.
const intents = discordgo.IntentGuilds | discordgo.IntentGuildMessages | discordgo.IntentDirectMessages | discordgo.IntentMessageContent

const (
	// maxFrame is how big an event may be: a guild with thousands of rooms comes in one.
	maxFrame = 32 << 20
	// maxWaiting is how many events wait for the bus; then no more is read.
	maxWaiting = 1024
	// writeTime bounds the writing of one frame.
	writeTime = 10 * time.Second
)

// A closedError is how a connection ended.
type closedError struct {
	code int // 0: without a close frame
	why  string
}

func (e *closedError) Error() string {
	if e.code != 0 {
		return fmt.Sprintf("discord closed the connection with %d (%s)", e.code, e.why)
	}
	return e.why
}

// A pauseError asks for a pause before the next connection.
type pauseError struct {
	error
	pause time.Duration
}

func (e *pauseError) Unwrap() error { return e.error }

func pauseOf(err error) time.Duration {
	var p *pauseError
	if errors.As(err, &p) {
		return p.pause
	}
	var api *apiError
	if errors.As(err, &api) {
		return api.after
	}
	return 0
}

// A link is one WebSocket connection.
type link struct {
	c     *channel
	in    gateway.Ingress
	ws    *websocket.Conn
	fresh bool // the session is new: nothing of the past comes by itself
	guild map[string]bool

	unanswered atomic.Bool // a heartbeat waits for its acknowledgement
	stalled    atomic.Bool // nothing is read, for the bus is slow: an acknowledgement may lie unread
}

// session holds one connection, from the dialling to its end. It returns why it ended.
func (c *channel) session(ctx context.Context, in gateway.Ingress) error {
	id, url, seq := c.memory.session()
	switch {
	case id == "":
		if !sleep(ctx, c.timing.begin-time.Since(c.begun)) {
			return ctx.Err()
		}
		c.begun = time.Now()
		var err error
		if url, err = c.mayBegin(ctx, in); err != nil {
			return err
		}
	case url == "":
		g, err := c.gatewayBot(ctx)
		if err != nil {
			return err
		}
		url = g.URL
	}
	dial, cancel := context.WithTimeout(ctx, c.timing.silent)
	ws, resp, err := websocket.Dial(dial, strings.TrimRight(url, "/")+"/?v=10&encoding=json", &websocket.DialOptions{HTTPClient: &http.Client{
		Transport: c.rest.Client.Transport.(wire).next,
	}})
	cancel()
	if resp != nil && resp.Body != nil {
		_ = resp.Body.Close()
	}
	if err != nil {
		// A host to resume at may be gone; the next attempt asks for another, and reads what was missed.
		if ctx.Err() == nil && id != "" {
			c.memory.failedAt()
		}
		return &closedError{why: "cannot connect to Discord's gateway: " + c.scrub(err.Error())}
	}
	ws.SetReadLimit(maxFrame)
	defer func() { _ = ws.CloseNow() }()

	l := &link{c: c, in: in, ws: ws, guild: map[string]bool{}}
	beat, err := l.hello(ctx)
	if err != nil {
		return err
	}
	if id != "" {
		err = l.write(ctx, opResume, map[string]any{"token": c.token, "session_id": id, "seq": seq})
	} else {
		l.fresh = true
		err = l.write(ctx, opIdentify, map[string]any{
			"token": c.token, "intents": intents, "properties": map[string]string{"os": runtime.GOOS, "browser": "gatemesh", "device": "gatemesh"},
		})
	}
	if err != nil {
		return err
	}
	return l.run(ctx, beat)
}

// hello waits for the first word, which has the heartbeat's interval.
func (l *link) hello(ctx context.Context) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, l.c.timing.silent)
	defer cancel()
	e, err := l.next(ctx)
	if err != nil {
		return 0, err
	}
	var h struct {
		Interval int64 `json:"heartbeat_interval"` // ms
	}
	if e.Operation != opHello || json.Unmarshal(e.RawData, &h) != nil || h.Interval <= 0 || h.Interval > int64(time.Hour/time.Millisecond) {
		return 0, &closedError{why: fmt.Sprintf("Discord's gateway began with op %d instead of hello", e.Operation)}
	}
	return time.Duration(h.Interval) * time.Millisecond, nil
}

// run reads until the connection ends. Beside it go the heart and the one who brings events to the bus, in their order; none outlives it.
func (l *link) run(ctx context.Context, beat time.Duration) error {
	ctx, end := context.WithCancelCause(ctx)
	var beside sync.WaitGroup
	defer beside.Wait()
	defer end(nil)
	events := make(chan *discordgo.Event, maxWaiting)
	beside.Go(func() { end(l.heart(ctx, beat)) })
	beside.Go(func() { end(l.bring(ctx, events)) })
	silent := time.AfterFunc(l.c.timing.silent, func() { end(&closedError{why: "Discord did not answer the identify or resume"}) })
	defer silent.Stop()
	for {
		e, err := l.next(ctx)
		if err != nil {
			if cause := context.Cause(ctx); cause != nil {
				return cause
			}
			return err
		}
		if e.Operation == opDispatch {
			silent.Stop()
			if !l.queue(ctx, events, e) {
				return context.Cause(ctx)
			}
			continue
		}
		if err := l.control(ctx, e); err != nil {
			return err
		}
	}
}

// queue hands an event on. It waits when too many wait already.
func (l *link) queue(ctx context.Context, events chan<- *discordgo.Event, e *discordgo.Event) bool {
	select {
	case events <- e:
		return true
	default:
	}
	l.stalled.Store(true)
	defer l.stalled.Store(false)
	select {
	case events <- e:
		l.unanswered.Store(false) // it may have been answered meanwhile
		return true
	case <-ctx.Done():
		return false
	}
}

// control handles what is about the connection. An error ends it.
func (l *link) control(ctx context.Context, e *discordgo.Event) error {
	switch e.Operation {
	case opHeartbeat:
		return l.write(ctx, opHeartbeat, l.c.memory.seq())
	case opAck:
		l.unanswered.Store(false)
	case opReconnect:
		return &closedError{why: "Discord asked to connect anew"}
	case opInvalidSession:
		var resumable bool
		_ = json.Unmarshal(e.RawData, &resumable) // what cannot be read is not resumable
		if resumable {
			return &closedError{why: "Discord asked to resume the session"}
		}
		l.c.memory.setSession("", "")
		pause := l.c.timing.pause + rand.N(4*l.c.timing.pause+1)
		return &pauseError{&closedError{why: "Discord has ended the session"}, pause}
	}
	return nil
}

// next reads one frame. What is no frame of Discord's ends the connection: what was in it comes again with the resume.
func (l *link) next(ctx context.Context) (*discordgo.Event, error) {
	_, b, err := l.ws.Read(ctx)
	if err != nil {
		return nil, l.ended(err)
	}
	var e *discordgo.Event
	if json.Unmarshal(b, &e) != nil || e == nil {
		return nil, &closedError{why: "Discord's gateway said what cannot be read"}
	}
	return e, nil
}

// ended says how a connection ended, and forgets a session that ended with it.
func (l *link) ended(err error) error {
	code := int(websocket.CloseStatus(err))
	var said websocket.CloseError
	if code < 0 {
		return &closedError{why: "the connection to Discord broke: " + l.c.scrub(err.Error())}
	}
	why := ""
	if errors.As(err, &said) {
		why = l.c.scrub(said.Reason)
	}
	switch code {
	case 4003, 4007, 4009: // invalidated, invalid seq, timed out: only a new session helps
		l.c.memory.setSession("", "")
	}
	return &closedError{code: code, why: why}
}

func (l *link) write(ctx context.Context, op int, d any) error {
	b, err := json.Marshal(map[string]any{"op": op, "d": d})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, writeTime)
	defer cancel()
	if err := l.ws.Write(ctx, websocket.MessageText, b); err != nil {
		return &closedError{why: "the connection to Discord broke: " + l.c.scrub(err.Error())}
	}
	return nil
}

// heart beats. A beat names the last event that is in the bus, not the last that was read: what is not in it must come again. A beat that is not
// acknowledged before the next one means that the connection is dead, however open it looks.
func (l *link) heart(ctx context.Context, every time.Duration) error {
	t := time.NewTimer(rand.N(every))
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		if l.unanswered.Swap(true) && !l.stalled.Load() {
			return &closedError{why: "Discord did not acknowledge a heartbeat"}
		}
		if err := l.write(ctx, opHeartbeat, l.c.memory.seq()); err != nil {
			return err
		}
		t.Reset(every)
	}
}
