package gateway

import (
	"bytes"
	"context"
	"net/http"
)

// Call makes one request to a gateway's API and returns the answer's status and body.
type Call func(ctx context.Context, method, path string, body []byte) (status int, answer []byte, err error)

// CallAs calls the API of this process as the client of r would: from the same address, for the same host, with the same token. It is what servers of
// other protocols work with, so that none is a second way around roles, limits, policy and the audit log.
func CallAs(api http.Handler, r *http.Request) Call {
	return func(ctx context.Context, method, path string, body []byte) (int, []byte, error) {
		req, err := http.NewRequestWithContext(ctx, method, "http://"+r.Host+path, bytes.NewReader(body))
		if err != nil {
			return 0, nil, err
		}
		req.RemoteAddr, req.Host, req.RequestURI = r.RemoteAddr, r.Host, path
		if body != nil {
			req.Header.Set("Content-Type", "application/json")
		}
		for _, h := range []string{"Authorization", "Traceparent"} {
			if v := r.Header.Get(h); v != "" {
				req.Header.Set(h, v)
			}
		}
		w := &heldAnswer{header: http.Header{}, status: http.StatusOK}
		api.ServeHTTP(w, req)
		return w.status, w.body.Bytes(), ctx.Err()
	}
}

// heldAnswer keeps an answer. Deadlines of a connection it has none.
type heldAnswer struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (w *heldAnswer) Header() http.Header         { return w.header }
func (w *heldAnswer) WriteHeader(status int)      { w.status = status }
func (w *heldAnswer) Write(b []byte) (int, error) { return w.body.Write(b) }
