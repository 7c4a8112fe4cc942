package infra

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"html"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	consulapi "github.com/hashicorp/consul/api"
	nomadapi "github.com/hashicorp/nomad/api"
)

const (
	// maxName and maxError bound what a server can make a report say.
	maxName  = 100
	maxError = 200
)

// errFiltered means: the server answered, and the token does not show all of it.
var errFiltered = errors.New("the answer was filtered: the token may not read everything")

// questionToken is the question that goes to a file, not to the server.
const questionToken = "token"

// questions runs the questions of one part side by side and keeps every error
// on its own.
type questions struct {
	ctx context.Context
	wg  sync.WaitGroup

	mu       sync.Mutex
	answered int
	failed   map[string]error
}

func newQuestions(ctx context.Context) *questions {
	return &questions{ctx: ctx, failed: map[string]error{}}
}

// ask runs f beside the others. An f that returns errFiltered has answered, but
// not everything.
func (q *questions) ask(name string, f func(context.Context) error) {
	q.wg.Go(func() {
		err := f(q.ctx)
		if err != nil && q.ctx.Err() != nil && !forbidden(err) {
			// Whatever the library made of it, the reason is ours.
			err = context.Cause(q.ctx)
			if errors.Is(err, context.Canceled) {
				err = errCancelled
			}
		}
		q.mu.Lock()
		defer q.mu.Unlock()
		if err == nil || forbidden(err) {
			q.answered++
		}
		if err != nil {
			q.failed[name] = err
		}
	})
}

// outcome is what the errors of one part amount to.
type outcome struct {
	status   Status
	errors   []string
	problems []string
}

// conclude waits for all questions. evaluate is called if any was answered: it
// fills the report and returns the troubles it saw, in words and as a number of
// those that the report counts by themselves.
func (q *questions) conclude(part string, explicit bool, clean *scrubber, evaluate func() (problems []string, counted int)) outcome {
	q.wg.Wait()
	var o outcome
	absent, denied := !explicit, false
	for name, err := range q.failed {
		absent = absent && (nobodyListens(err) || name == questionToken)
		denied = denied || forbidden(err)
	}
	// Not answered at all: one sentence about the part is enough.
	if q.answered == 0 {
		o.errors = q.words(clean, true)
		o.status = StatusUnreachable
		if absent {
			o.status = StatusAbsent
			return o
		}
		o.problems = []string{part + " unreachable"}
		return o
	}
	o.errors = q.words(clean, false)
	var counted int
	o.problems, counted = evaluate()
	o.status = StatusOK
	if len(o.problems) > 0 || counted > 0 {
		o.status = StatusAlert
	}
	for _, err := range q.failed {
		if !forbidden(err) {
			o.problems = append(o.problems, part+" check incomplete")
			o.status = StatusAlert
			break
		}
	}
	if denied {
		o.problems = append(o.problems, part+" forbidden")
		if o.status == StatusOK {
			o.status = StatusForbidden
		}
	}
	return o
}

// words lists the errors as "question: reason", sorted; with merge, equal
// reasons are said once and without the question.
func (q *questions) words(clean *scrubber, merge bool) []string {
	out := []string{}
	for name, err := range q.failed {
		text := clean.text(reason(err), maxError)
		if !merge {
			text = name + ": " + text
		}
		out = append(out, text)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// forbidden says whether err means "you may not see this".
func forbidden(err error) bool {
	return errors.Is(err, errFiltered) || statusCode(err) == http.StatusForbidden ||
		statusCode(err) == http.StatusUnauthorized
}

// nobodyListens says whether err means that no server is there at all. A
// connection that hangs is not that: something swallows the packets.
func nobodyListens(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial" && !op.Timeout()
}

// statusCode is the HTTP status in err, or 0.
func statusCode(err error) int {
	var c consulapi.StatusError
	if errors.As(err, &c) {
		return c.Code
	}
	var n nomadapi.UnexpectedResponseError
	if errors.As(err, &n) {
		return n.StatusCode()
	}
	return 0
}

// reason is err without what the report says elsewhere (method and URL).
func reason(err error) string {
	var c consulapi.StatusError
	if errors.As(err, &c) {
		return answered(c.Code, c.Body)
	}
	var n nomadapi.UnexpectedResponseError
	if errors.As(err, &n) && n.HasStatusCode() {
		return answered(n.StatusCode(), n.Body())
	}
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err.Error()
	}
	return err.Error()
}

// answered leaves pages of proxies out: they say nothing, at length, and quote
// what they were sent in ways of their own.
func answered(code int, body string) string {
	body = strings.TrimSpace(body)
	if body == "" || strings.HasPrefix(body, "<") {
		body = http.StatusText(code)
	}
	return fmt.Sprintf("answered %d: %s", code, body)
}

// newTransport keeps no connection: a check is rare, and a fresh connection is
// part of what it checks.
func newTransport() *http.Transport {
	return &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         (&net.Dialer{Timeout: 30 * time.Second}).DialContext,
		TLSHandshakeTimeout: 10 * time.Second,
		DisableKeepAlives:   true,
	}
}

// guard bounds what client reads and stops it from following redirects: Go
// would send X-Consul-Token and X-Nomad-Token along, to any host.
func guard(client *http.Client, maxAnswer int) {
	client.Transport = limited{client.Transport, maxAnswer}
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
}

// limited is a transport whose answers end with an error after limit bytes.
type limited struct {
	http.RoundTripper
	limit int
}

func (l limited) RoundTrip(req *http.Request) (*http.Response, error) {
	// Unpacking is the transport's work: done later it would be outside the limit.
	req = req.Clone(req.Context())
	req.Header.Del("Accept-Encoding")
	resp, err := l.RoundTripper.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	resp.Body = &limitedBody{ReadCloser: resp.Body, left: l.limit, limit: l.limit}
	return resp, nil
}

type limitedBody struct {
	io.ReadCloser
	left, limit int
}

func (b *limitedBody) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, fmt.Errorf("the answer is larger than %d KiB", b.limit>>10)
	}
	if len(p) > b.left {
		p = p[:b.left]
	}
	n, err := b.ReadCloser.Read(p)
	b.left -= n
	return n, err
}

// scrubber makes text from outside fit for a report: no secret of ours, no
// control character, one line, bounded.
type scrubber struct{ replace *strings.Replacer }

// newScrubber knows secrets in the shapes in which a server or a library could
// give them back. Fewer than four characters are no secret and would only
// garble the text.
func newScrubber(secrets ...string) *scrubber {
	var pairs []string
	seen := map[string]bool{}
	// The longest first: a password must not break up the longer text it is in.
	var shapes []string
	for _, s := range secrets {
		if len(s) < 4 {
			continue
		}
		quoted := fmt.Sprintf("%q", s)
		shapes = append(shapes, s, url.QueryEscape(s), url.PathEscape(s), quoted[1:len(quoted)-1],
			html.EscapeString(s), base64.StdEncoding.EncodeToString([]byte(s)))
	}
	slices.SortStableFunc(shapes, func(a, b string) int { return len(b) - len(a) })
	for _, s := range shapes {
		if !seen[s] {
			seen[s] = true
			pairs = append(pairs, s, "[redacted]")
		}
	}
	return &scrubber{replace: strings.NewReplacer(pairs...)}
}

// text cleans s. The secrets go before the cut, so that no half of one is left.
func (c *scrubber) text(s string, limit int) string {
	s = c.replace.Replace(strings.ToValidUTF8(s, "?"))
	s = strings.Join(strings.FieldsFunc(s, func(r rune) bool {
		return unicode.IsSpace(r) || unicode.IsControl(r) || unicode.Is(unicode.Cf, r)
	}), " ")
	if runes := []rune(s); len(runes) > limit {
		s = string(runes[:limit-1]) + "…"
	}
	return s
}

func (c *scrubber) name(s string) string { return c.text(s, maxName) }

// list sorts names, cleans those that are shown, and counts the rest.
func (c *scrubber) list(names []string, limit int) List {
	slices.Sort(names)
	l := newList(names, limit)
	for i, n := range l.Names {
		l.Names[i] = c.name(n)
	}
	return l
}

func newList(names []string, limit int) List {
	shown := names[:min(len(names), limit)]
	return List{Count: len(names), Names: append([]string{}, shown...), More: len(names) - len(shown)}
}

// userinfo splits an address into what may be shown and the secrets in it.
func userinfo(address string) (shown string, secrets []string) {
	scheme, rest, ok := strings.Cut(address, "://")
	if !ok {
		scheme, rest = "", address
	} else {
		scheme += "://"
	}
	at := strings.LastIndex(rest, "@")
	if at < 0 {
		return address, nil
	}
	user := rest[:at]
	secrets = []string{user}
	if _, password, ok := strings.Cut(user, ":"); ok {
		secrets = append(secrets, password)
		if plain, err := url.PathUnescape(password); err == nil {
			secrets = append(secrets, plain)
		}
	}
	return scheme + rest[at+1:], secrets
}

// scrubbedError is err's text without secrets. It wraps nothing: whoever unwraps
// the cause would find them again.
func scrubbedError(err error, clean *scrubber) error {
	return errors.New(clean.text(err.Error(), 2*maxError))
}
