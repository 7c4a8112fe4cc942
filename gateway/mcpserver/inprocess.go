package mcpserver

import (
	"bytes"
	"context"
	"net/http"
)

// inProcess calls the API of this process as the client of r would: from the same address, for the same host, with the same token.
func inProcess(api http.Handler, r *http.Request) Call {
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
		w := &recorder{header: http.Header{}, status: http.StatusOK}
		api.ServeHTTP(w, req)
		return w.status, w.body.Bytes(), nil
	}
}

// recorder keeps an answer. Deadlines of a connection it has none.
type recorder struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (w *recorder) Header() http.Header         { return w.header }
func (w *recorder) WriteHeader(status int)      { w.status = status }
func (w *recorder) Write(b []byte) (int, error) { return w.body.Write(b) }
