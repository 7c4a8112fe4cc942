package main

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strconv"

	"github.com/coder/websocket"

	"github.com/gatemesh/gatemesh/gateway"
)

// A stream is the events of one gateway as they happen.
type stream struct {
	c    *client
	conn *websocket.Conn
}

// maxFrame bounds one event.
const maxFrame = 1 << 20

// stream opens the event stream: all events, or only those of one message; replay asks for
// that many earlier ones first.
func (c *client) stream(ctx context.Context, message string, replay int) (*stream, error) {
	query := url.Values{}
	if message != "" {
		query.Set("message", message)
	}
	if replay > 0 {
		query.Set("replay", strconv.Itoa(replay))
	}
	header := http.Header{}
	if c.token != "" {
		header.Set("Authorization", "Bearer "+c.token)
	}
	conn, resp, err := websocket.Dial(ctx, c.url("v1/events", query), &websocket.DialOptions{
		HTTPClient: c.http, HTTPHeader: header, Subprotocols: []string{gateway.StreamProtocol},
	})
	if err != nil {
		if resp != nil && resp.StatusCode != http.StatusSwitchingProtocols {
			body := make([]byte, 4<<10)
			n, _ := resp.Body.Read(body) // the dialer keeps the beginning of a refusal
			return nil, c.refused(resp, body[:n])
		}
		return nil, c.unreachable(ctx, err)
	}
	conn.SetReadLimit(maxFrame)
	return &stream{c, conn}, nil
}

// next waits for the next event.
func (s *stream) next(ctx context.Context) (gateway.StreamEvent, error) {
	var ev gateway.StreamEvent
	_, frame, err := s.conn.Read(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return ev, ctx.Err()
		}
		if end := (websocket.CloseError{}); errors.As(err, &end) && end.Code == websocket.StatusPolicyViolation {
			return ev, failf(exitUnavailable, "gateway at %s ended the stream: %s", s.c.addr(), printable(end.Reason))
		}
		return ev, failf(exitUnavailable, "gateway at %s ended the stream: %w (it may be restarting; see: gatemesh doctor)", s.c.addr(), err)
	}
	if err := json.Unmarshal(frame, &ev); err != nil {
		return ev, failf(exitUnavailable, "gateway at %s sent a frame that is no event: %w", s.c.addr(), err)
	}
	return ev, nil
}

func (s *stream) close() { _ = s.conn.CloseNow() }
