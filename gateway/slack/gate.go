package slack

import (
	"io"
	"net/http"
	"sync"
)

// doer is what slack-go sends its requests with.
type doer interface {
	Do(*http.Request) (*http.Response, error)
}

// gate stands before the body of a request: net/http reads the body when it is about to write it, on a connection that is up, so
// check is asked after the name was resolved and TLS was shaken hands on, which may take seconds, and again for each
// attempt of net/http's own. Without the body the request's head means nothing to Slack.
type gate struct {
	http  *http.Client
	check func() error

	mu      sync.Mutex
	left    bool  // something may have left
	refused error // what check said when it refused
}

// Do implements doer.
func (g *gate) Do(req *http.Request) (*http.Response, error) {
	again := req.GetBody
	req.Body = &gatedBody{ReadCloser: req.Body, gate: g}
	req.GetBody = nil
	if again != nil {
		req.GetBody = func() (io.ReadCloser, error) {
			b, err := again()
			return &gatedBody{ReadCloser: b, gate: g}, err
		}
	}
	return g.http.Do(req)
}

func (g *gate) pass() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.check != nil {
		if err := g.check(); err != nil {
			g.refused = err
			return err
		}
	}
	g.left = true
	return nil
}

// state says whether anything may have left, and why the gate was shut if it was.
func (g *gate) state() (left bool, refused error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.left, g.refused
}

type gatedBody struct {
	io.ReadCloser
	gate   *gate
	passed bool
}

func (b *gatedBody) Read(p []byte) (int, error) {
	if !b.passed {
		if err := b.gate.pass(); err != nil {
			return 0, err
		}
		b.passed = true
	}
	return b.ReadCloser.Read(p)
}
