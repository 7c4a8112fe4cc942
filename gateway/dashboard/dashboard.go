// Package dashboard is the gateway's two pages (the mesh, and a chat): a document and a script each, and one style sheet,
// embedded, with nothing loaded from elsewhere. It holds no data; the script gets all of it
// from the API, with the token that its user types in.
package dashboard

import (
	"embed"
	"net/http"
	"path"
)

//go:embed index.html app.js chat.html chat.js style.css
var files embed.FS

// policy lets the page load its own files and talk to its own gateway, and nothing
// else.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

var types = map[string]string{".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8"}

// Handler serves the page at /, the chat at /chat and their parts below /dashboard/.
func Handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := path.Base(r.URL.Path)
		if r.URL.Path == "/" || r.URL.Path == "/dashboard/" {
			name = "index.html"
		}
		if r.URL.Path == "/chat" {
			name = "chat.html"
		}
		b, err := files.ReadFile(name)
		if err != nil {
			http.NotFound(w, r)
			return
		}
		h := w.Header()
		h.Set("Content-Type", types[path.Ext(name)])
		h.Set("Content-Security-Policy", policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cache-Control", "no-cache")
		_, _ = w.Write(b)
	})
}
