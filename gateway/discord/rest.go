package discord

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unicode"

	"github.com/bwmarrin/discordgo"

	"github.com/gatemesh/gatemesh/gateway"
)

// maxAnswer is how much of an answer is read.
const maxAnswer = 8 << 20

// An apiError is why a request failed. It has no request in it: that would have the token.
type apiError struct {
	what   string        // the request, without anything secret
	status int           // 0: there was no answer
	code   int           // Discord's own; 0: none
	said   bool          // the answer is in Discord's words, not those of something between
	text   string        // one line
	after  time.Duration // status 429
	left   bool          // the request may have reached Discord
	cause  error         // ctx's error, or the check's
}

func (e *apiError) Error() string {
	switch {
	case e.status == 0:
		return fmt.Sprintf("discord: %s: %s", e.what, e.text)
	case e.code != 0:
		return fmt.Sprintf("discord: %s: HTTP %d, code %d: %s", e.what, e.status, e.code, e.text)
	default:
		return fmt.Sprintf("discord: %s: HTTP %d: %s", e.what, e.status, e.text)
	}
}

func (e *apiError) Unwrap() error { return e.cause }

// gone reports whether Discord says that what was asked for is not there, or not for this bot: asking again will not help.
func gone(err error) bool {
	var e *apiError
	return errors.As(err, &e) && e.said && (e.status == http.StatusForbidden || e.status == http.StatusNotFound || e.status == http.StatusBadRequest)
}

// unauthorized reports whether Discord does not take the token.
func unauthorized(err error) bool {
	var e *apiError
	return errors.As(err, &e) && e.status == http.StatusUnauthorized
}

// outcome says what an error means for a post.
func (e *apiError) outcome() error {
	switch {
	case e.status == http.StatusTooManyRequests:
		return gateway.NotSent(e.after, e)
	case e.status == http.StatusUnauthorized:
		return badToken(e)
	case e.status == 0 && !e.left:
		return gateway.NotSent(0, e)
	case e.status == http.StatusRequestTimeout:
		return e // whether it was read to its end is not known
	case e.code == discordgo.ErrCodeUnknownMessage:
		return fmt.Errorf("%w: Discord answers so when the post was made under this nonce and then deleted", e)
	case e.status >= 300 && e.status < 500 && e.said:
		return gateway.Rejected(e)
	case e.status >= 300 && e.status < 500:
		return gateway.NotSent(0, e) // something between us and Discord refused it
	}
	return e
}

// A trip is what one request learns on its way; discordgo's errors keep less.
type trip struct {
	check  func() error // called when the bytes are about to leave; nil: no check
	left   atomic.Bool
	status int
	after  string
}

type tripKey struct{}

// wire is below discordgo's REST client: the last place before the bytes leave.
type wire struct{ next http.RoundTripper }

func (w wire) RoundTrip(r *http.Request) (*http.Response, error) {
	t, _ := r.Context().Value(tripKey{}).(*trip)
	if t == nil {
		return w.next.RoundTrip(r)
	}
	if r.Body != nil && r.ContentLength > 0 {
		// The body is read when there is a connection, however long that took: so the check is as late as it can be. Without GetBody the transport cannot
		// send it again by itself.
		r = r.Clone(r.Context())
		r.Body, r.GetBody = &gate{ReadCloser: r.Body, trip: t}, nil
	}
	resp, err := w.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	t.status, t.after = resp.StatusCode, resp.Header.Get("Retry-After")
	resp.Body = struct {
		io.Reader
		io.Closer
	}{io.LimitReader(resp.Body, maxAnswer), resp.Body}
	return resp, nil
}

// A gate is a body that asks before its first byte is read.
type gate struct {
	io.ReadCloser
	trip *trip
}

func (g *gate) Read(p []byte) (int, error) {
	if !g.trip.left.Load() {
		if g.trip.check != nil {
			if err := g.trip.check(); err != nil {
				return 0, err
			}
		}
		g.trip.left.Store(true)
	}
	return g.ReadCloser.Read(p)
}

// do makes one request, once. key names the rate limit that it counts for. Nothing is retried and nothing waits for a limit: a request that would have to
// wait fails at once with status 429.
func (c *channel) do(ctx context.Context, method, path, key string, in, out any, check func() error) error {
	what := method + " " + path
	var body []byte
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return &apiError{what: what, text: err.Error()}
		}
	}
	defer func() {
		if !c.running.Load() {
			c.idle()
		}
	}()
	bucket := c.rest.Ratelimiter.GetBucket(key)
	bucket.Lock()
	if wait := c.rest.Ratelimiter.GetWaitTime(bucket, 1); wait > 0 {
		bucket.Unlock()
		return &apiError{what: what, status: http.StatusTooManyRequests, after: wait, text: "the limit is not over yet; not asked"}
	}
	bucket.Remaining--
	t := &trip{check: check}
	ctx = context.WithValue(ctx, tripKey{}, t)
	got, err := c.rest.RequestWithLockedBucket(method, c.base+path, "application/json", body, bucket, 0, discordgo.WithContext(ctx))
	if err == nil && out != nil {
		err = json.Unmarshal(got, out)
	}
	if err == nil {
		return nil
	}
	return c.explain(what, t, ctx, err)
}

// explain makes an apiError of discordgo's, without what is secret.
func (c *channel) explain(what string, t *trip, ctx context.Context, err error) error { //nolint:revive // ctx is asked, not used
	e := &apiError{what: what, status: t.status, left: t.left.Load()}
	var refused *discordgo.RESTError
	switch {
	case errors.As(err, &refused) && refused.Message != nil:
		e.said, e.code, e.text = true, refused.Message.Code, c.scrub(refused.Message.Message)
	case t.status >= 200 && t.status < 300:
		e.text = "the answer cannot be read"
	case t.status != 0:
		e.text = "refused, without Discord's own words"
	case ctx.Err() != nil:
		e.cause, e.text = ctx.Err(), ctx.Err().Error()
	default:
		e.text = c.scrub(err.Error())
	}
	if t.status == http.StatusTooManyRequests {
		e.after = retryAfter(t.after, err)
	}
	return e
}

// retryAfter reads how long to wait: from the answer, or from its header when something between us and Discord refused it. A second when neither says.
func retryAfter(header string, err error) time.Duration {
	var limited *discordgo.RateLimitError
	if errors.As(err, &limited) && limited.RateLimit != nil && limited.TooManyRequests != nil && limited.RetryAfter > 0 {
		return limited.RetryAfter
	}
	if s, err := strconv.ParseFloat(header, 64); err == nil && s > 0 && s < 1e6 {
		return time.Duration(s * float64(time.Second))
	}
	return time.Second
}

// scrub makes one short line without the token of what somebody else said.
func (c *channel) scrub(s string) string {
	s = strings.ReplaceAll(s, c.token, "(token)")
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, s)
	if len(s) > 300 {
		s = strings.ToValidUTF8(s[:300], "") + "..."
	}
	return s
}
